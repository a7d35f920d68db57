"""`vllm bench serve` on plain vLLM and on this project's server, side by side.

    python -m benchmarks.vllm_bench                              (about 20 minutes)
    python -m benchmarks.vllm_bench --runs 1 --requests 2 --users 1,8

Two servers of the same base, with the same flags: vLLM's own with its own LoRA (plain_vllm.py), and
ours. Five systems: plain base, plain LoRA, our base, our adapter always-on, and gated. Both servers
stay up, because an idle server takes no processor time, and so the systems take turns within
seconds of each other. The servers are pinned to one core and the client to another.

Each run sends `--requests` prompts per user, `--users` at a time. An answer has between half
and one and a half times `--max-tokens` tokens; prompts and lengths are the same for all systems.
The table gives median (range) over the runs, and ratios run by run; runs/benchmarks/vllm_bench.json
has every run. Exit code 1: a request failed, so that the figures are of no use.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field, ValidationInfo, field_validator

from adapters.base_checkpoint import BaseCheckpoint
from adapters.command_line import CommandLine
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from adapters.store import SHIPPED, Store
from benchmarks.report import print_table, ratios, save, show, spread
from benchmarks.streams import environment
from demo.server import Running, end_as_asked, running, running_server

MODELS = SHIPPED.parents[1] / "models"
BASE, PROBLEMS = MODELS / "tiny-qwen2", MODELS / "tiny-problems" / "heldout.jsonl"
PLAIN_BASE, PLAIN_LORA = "plain base", "plain LoRA"
SYSTEMS = (PLAIN_BASE, PLAIN_LORA, "our base", "our adapter, always-on", "our adapter, gated")
# Field of vLLM's result -> column; more is better for the first alone.
FIGURES = {
    "output_throughput": "tokens/s",
    "median_ttft_ms": "TTFT p50, ms",
    "p99_ttft_ms": "TTFT p99, ms",
    "median_itl_ms": "inter-token p50, ms",
    "p99_itl_ms": "inter-token p99, ms",
}
HEADER = ["users", "system", *FIGURES.values(), "tokens/s to plain base", "to plain LoRA"]


CORES = sorted(os.sched_getaffinity(0))


class BenchConfig(CommandLine):
    """Run `vllm bench serve` on plain vLLM and on this project's server, side by side."""

    program: ClassVar[str] = "python -m benchmarks.vllm_bench"

    runs: int = Field(3, ge=1, description="Runs of each system, by turns.")
    requests: int = Field(8, ge=1, description="Requests per user and run.")
    users: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 8, 32], min_length=1, description="Users at a time, one after the other: 1,8,32."
    )
    max_tokens: int = Field(64, ge=2, description="Tokens of an answer, on average.")
    temperature: float = Field(0.6, ge=0, description="Sampling temperature.")
    model: Path = Field(BASE, description="Folder of the base.")
    adapters: Path = Field(SHIPPED, description="The store.")
    adapter: str = Field("", description="Adapter of the store; default: its first.")
    dtype: str = Field("float32", description="What both servers compute in.")
    max_num_seqs: int = Field(64, ge=1, description="Requests in one batch of a server.")
    kv_cache_bytes: int = Field(2**28, ge=1, description="KV cache of each server.")
    server_cores: list[int] = Field(
        CORES[:1] if len(CORES) > 1 else [], description="Cores of the servers, such as 0,1."
    )
    client_cores: list[int] = Field(CORES[1:2], description="Cores of the client.")

    @field_validator("model")
    @classmethod
    def _is_a_model(cls, value: Path) -> Path:
        if not (value / "config.json").is_file():
            raise ValueError("no folder of a model")
        return value

    @field_validator("adapters")
    @classmethod
    def _has_adapters(cls, value: Path) -> Path:
        if not value.is_dir() or not Store(value).names():
            raise ValueError("no store with an adapter in it")
        return value

    @field_validator("adapter")
    @classmethod
    def _is_in_the_store(cls, value: str, info: ValidationInfo) -> str:
        names = Store(info.data["adapters"]).names() if "adapters" in info.data else []
        if value and names and value not in names:
            raise ValueError(f"there are {', '.join(names)}")
        return value

    @field_validator("server_cores", "client_cores")
    @classmethod
    def _are_there(cls, value: list[int]) -> list[int]:
        if not set(value) <= set(CORES):
            raise ValueError(f"this machine has {CORES}")
        return value


class BenchError(RuntimeError):
    """A request failed, or an answer has another length; the message says how many."""


class System(NamedTuple):
    """Where a system is asked."""

    host: str
    model: str


def server_flags(options: BenchConfig) -> list[str]:
    """The flags that both servers share."""
    return [
        *("--dtype", options.dtype, "--max-model-len", "512"),
        *("--max-num-seqs", str(options.max_num_seqs)),
        *("--kv-cache-memory-bytes", str(options.kv_cache_bytes)),
        *("--max-loras", "4", "--max-cpu-loras", "16", "--max-lora-rank", "64"),
    ]


def plain_server(
    base: Path, adapter: tuple[str, Path], flags: Sequence[str]
) -> AbstractContextManager[Running]:
    """Start vLLM's own server with an adapter, (name, folder); see `running`."""
    return running(
        *("benchmarks.plain_vllm", "--model", str(base)),
        *("--served-model-name", base.resolve().name),  # as ours names it
        *("--host", "127.0.0.1", "--generation-config", "vllm", "--uvicorn-log-level", "warning"),
        *("--enable-lora", "--lora-modules", f"{adapter[0]}={adapter[1]}", *flags),
    )


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this process, and what it starts in the block, on `cores`; on any if there are none."""
    me = psutil.Process()
    before = me.cpu_affinity()
    try:
        if cores:
            me.cpu_affinity(list(cores))
        yield
    finally:
        me.cpu_affinity(before)


@contextmanager
def running_systems(options: BenchConfig) -> Iterator[dict[str, System]]:
    """Start both servers: name of a system -> where it is asked.

    Raises:
        RuntimeError: one does not start.
    """
    store = Store(options.adapters)
    name = options.adapter or store.names()[0]
    folder = store.path(store.resolve(name)).resolve()
    for variable in [one for one in os.environ if one.startswith("REASONMAXXER_")]:
        del os.environ[variable]  # no keys, and no settings that only one of them reads
    environment()
    flags = server_flags(options)
    ours_flags = ("--model", str(options.model), "--adapters", str(options.adapters), *flags)
    with ExitStack() as stack, on_cores(options.server_cores):
        plain = stack.enter_context(plain_server(options.model, (name, folder), flags))
        ours = stack.enter_context(running_server(*ours_flags))
        base = options.model.resolve().name
        places = [(plain.url, base), (plain.url, name)]
        places += ((ours.url, base), (ours.url, name), (ours.url, f"{name}:gated"))
        found = zip(SYSTEMS, (System(*place) for place in places), strict=True)
        with on_cores(options.client_cores):
            yield dict(found)


def write_prompts(path: Path, model: Path, count: int, max_tokens: int, seed: int) -> int:
    """Write `count` prompts for `vllm bench serve`. Returns the tokens of all answers together."""
    prompts = PromptRenderer.load(model, recipe_for(BaseCheckpoint.open(str(model))).prompt)
    draw = random.Random(seed)
    with PROBLEMS.open(encoding="utf-8") as file:
        problems = [json.loads(line)["problem"] for line in file]
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompts.text(draw.choice(problems)),
            # Answers of one length, begun together, would also end together.
            "output_tokens": draw.randint((max_tokens + 1) // 2, 3 * max_tokens // 2),
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum(int(row["output_tokens"]) for row in rows)


def bench_serve(*flags: str) -> dict[str, Any]:
    """Run `vllm bench serve` in this process, which spares each run the import of vLLM."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    with redirect_stdout(io.StringIO()):
        return main(parser.parse_args(list(flags)))


def bench_flags(system: System, users: int, prompts: Path, options: BenchConfig) -> list[str]:
    """The flags of `vllm bench serve` for one run."""
    return [
        *("--backend", "openai", "--base-url", system.host, "--model", system.model),
        *("--tokenizer", str(options.model), "--dataset-name", "custom"),
        *("--dataset-path", str(prompts), "--custom-output-len", "-1", "--disable-shuffle"),
        *("--skip-chat-template", "--num-prompts", str(users * options.requests)),
        *("--max-concurrency", str(users), "--temperature", str(options.temperature)),
        *("--ignore-eos", "--num-warmups", str(users), "--disable-tqdm"),
        *("--extra-body", '{"add_special_tokens": false}'),  # the prompts have them
    ]


def check(result: dict[str, Any], requests: int, tokens: int) -> dict[str, Any]:
    """The figures of a result.

    Raises:
        BenchError: a request failed, or the answers together do not have `tokens` tokens.
    """
    if result["completed"] != requests:
        raise BenchError(f"{requests - result['completed']} of {requests} requests failed")
    if result["total_output_tokens"] != tokens:
        raise BenchError(f"{result['total_output_tokens']} tokens, not {tokens}")
    kept = (*FIGURES, "completed", "duration", "total_input_tokens", "total_output_tokens")
    return {name: result[name] for name in kept}


def gated_and_generated(host: str) -> tuple[float, float]:
    """(gated tokens, generated tokens) of gated requests so far; 0 on plain vLLM."""
    page = httpx.get(f"{host}/metrics", timeout=60).text
    totals = dict.fromkeys(
        ("reasonmaxxer_gated_tokens_total", "reasonmaxxer_generated_tokens_total"), 0.0
    )
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in totals:
                totals[sample.name] += sample.value
    gated, generated = totals.values()
    return gated, generated


def turns(count: int, run: int) -> list[int]:
    """The order of the systems in a run: each begins once, and half the runs go backwards."""
    order = [(index + run) % count for index in range(count)]
    return order[::-1] if run % 2 else order


class Comparison(dict[tuple[int, str], list[dict[str, Any]]]):
    """All measurements: (users, system) -> its runs, in order."""

    def add(self, users: int, system: str, figures: dict[str, Any]) -> None:
        """Add one more run."""
        self.setdefault((users, system), []).append(figures)

    def values_of(self, users: int, system: str, figure: str) -> list[float]:
        """A figure, run by run."""
        return [run[figure] for run in self[users, system]]

    def ratios(self, users: int, system: str, to: str, figure: str) -> list[float]:
        """The figure over that of system `to`, run by run: the two were seconds apart."""
        return ratios(self.values_of(users, system, figure), self.values_of(users, to, figure))

    def table(self) -> list[list[str]]:
        """Rows of text, by users and in the order of SYSTEMS."""
        order = sorted(self, key=lambda key: (key[0], SYSTEMS.index(key[1])))
        return [self._row(users, system) for users, system in order]

    def _row(self, users: int, system: str) -> list[str]:
        figures = [
            show(self.values_of(users, system, figure), 0 if figure == "output_throughput" else 1)
            for figure in FIGURES
        ]
        bases = (PLAIN_BASE, PLAIN_LORA)
        ratios = [show(self.ratios(users, system, to, "output_throughput"), 2) for to in bases]
        return [str(users), system, *figures, *ratios]

    def result(self) -> list[dict[str, Any]]:
        """The same as JSON, with every run."""
        return [
            {
                "users": users,
                "system": system,
                **{figure: spread(self.values_of(users, system, figure)) for figure in FIGURES},
                "ratios": {
                    to: {
                        figure: spread(self.ratios(users, system, to, figure)) for figure in FIGURES
                    }
                    for to in (PLAIN_BASE, PLAIN_LORA)
                },
                "each_run": runs,
            }
            for (users, system), runs in self.items()
        ]


def compare(options: BenchConfig) -> Comparison:
    """Measure all systems in turn.

    Raises:
        RuntimeError: a server does not start, or a request fails.
    """
    comparison = Comparison()
    with (
        tempfile.TemporaryDirectory(prefix="vllm-bench-") as work,
        running_systems(options) as systems,
    ):
        for run in range(options.runs):
            for users in options.users:
                prompts, count = Path(work, "prompts.jsonl"), users * options.requests
                tokens = write_prompts(prompts, options.model, count, options.max_tokens, run)
                for index in turns(len(SYSTEMS), run):
                    name = SYSTEMS[index]
                    before = gated_and_generated(systems[name].host)
                    result = bench_serve(*bench_flags(systems[name], users, prompts, options))
                    figures = check(result, count, tokens)
                    after = gated_and_generated(systems[name].host)
                    gated, generated = (b - a for a, b in zip(before, after, strict=True))
                    figures["gate_rate"] = gated / generated if generated else None
                    comparison.add(users, name, figures)
                    rate, gap = figures["output_throughput"], figures["median_itl_ms"]
                    print(
                        f"run {run + 1}/{options.runs}, {users} users, {name}: "
                        f"{rate:,.0f} tokens/s, a token each {gap:.1f} ms",
                        flush=True,
                    )
    return comparison


def main(argv: list[str]) -> int:
    """Compare. Returns the exit code."""
    options = BenchConfig.load(argv)
    end_as_asked()
    try:
        comparison = compare(options)
    except RuntimeError as error:
        print(f"{options.called()}: {error}", file=sys.stderr)
        return 1
    print()
    print_table(HEADER, comparison.table())
    settings = options.model_dump(mode="json")
    flags = server_flags(options)
    save("vllm_bench", {"settings": settings, "flags": flags, "rows": comparison.result()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
