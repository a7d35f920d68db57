"""The same load on plain vLLM and on this project's server, side by side.

    python -m loadtests.compare                              (about 20 minutes)
    python -m loadtests.compare --runs 1 --seconds 5 --users 1,8

Two servers of the same base, with the same flags: vLLM's own with its own LoRA (plain.py), and
ours. Five systems: plain base, plain LoRA, our base, our adapter at every step, and gated. Both
servers stay up; one that is asked nothing takes no processor time, and so the systems take turns
within seconds of each other. Servers are pinned to one core and the users to another, and the cost
of the users is the same for all. Every answer has the same number of tokens.

Figures are of the time after `--warm` seconds; median (range) over the runs. Exit code 1: a request
failed, so that the figures are of no use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import write_json, write_text
from adapters.prompt import PromptFormat
from adapters.recipe import recipe_for
from adapters.store import SHIPPED, Store
from benchmarks.report import machine, print_table, show, spread
from benchmarks.streams import environment
from demo.server import Running, end_as_asked, free_port, running_server, stop, wait_until_healthy
from loadtests import figures
from loadtests.__main__ import RESULTS, Parser
from loadtests.answers import Answer
from loadtests.plan import Plan, make_problems
from loadtests.run import LocustError, drive
from loadtests.stand import BASE

PLAIN_BASE, PLAIN_LORA = "plain base", "plain LoRA"
SYSTEMS = (PLAIN_BASE, PLAIN_LORA, "our base", "our adapter, every step", "our adapter, gated")
# Of a measurement; more is better for the first alone.
FIGURES = {
    "tokens_per_second": "tokens/s",
    "ttft_p50_ms": "TTFT p50, ms",
    "ttft_p99_ms": "TTFT p99, ms",
    "inter_token_p50_ms": "inter-token p50, ms",
    "inter_token_p99_ms": "inter-token p99, ms",
}


class Where(NamedTuple):
    """A system: which server, which model."""

    host: str
    model: str


def flags(options: argparse.Namespace) -> list[str]:
    """What both servers are told alike."""
    return [
        *("--dtype", options.dtype, "--max-model-len", "512"),
        *("--max-num-seqs", str(options.max_num_seqs)),
        *("--kv-cache-memory-bytes", str(options.kv_cache_bytes)),
        *("--max-loras", "4", "--max-cpu-loras", "16", "--max-lora-rank", "64"),
    ]


@contextmanager
def plain_server(base: Path, adapter: tuple[str, Path], more: Sequence[str]) -> Iterator[Running]:
    """vLLM's own server with the adapter NAME from its folder, and the same prompts as ours.

    Raises:
        RuntimeError: it does not start.
    """
    from transformers import AutoTokenizer

    recipe = recipe_for(BaseCheckpoint.open(str(base)))
    template = PromptFormat.of(AutoTokenizer.from_pretrained(base), recipe.prompt).template
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        path = Path(folder, "chat_template.jinja")
        path.write_text(template, encoding="utf-8")
        port = free_port()
        command = [sys.executable, "-m", "loadtests.plain", "--model", str(base)]
        command += ["--served-model-name", base.name, "--port", str(port), "--host", "127.0.0.1"]
        command += ["--chat-template", str(path), "--generation-config", "vllm"]
        command += ["--enable-lora", "--lora-modules", f"{adapter[0]}={adapter[1]}"]
        command += ["--uvicorn-log-level", "warning", *more]
        print(f"\n$ {' '.join(command[1:])}", flush=True)
        process = subprocess.Popen(command)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(process, url, time.monotonic() + 300)
            yield Running(url, process.pid)
        finally:
            stop(process)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started in the block runs on `cores`; none: anywhere."""
    me = psutil.Process()
    before = me.cpu_affinity()
    try:
        if cores:
            me.cpu_affinity(list(cores))
        yield
    finally:
        me.cpu_affinity(before)


@contextmanager
def systems(options: argparse.Namespace) -> Iterator[dict[str, Where]]:
    """Both servers, up: name of a system -> where it is asked.

    Raises:
        RuntimeError: one does not start.
    """
    store = Store(options.adapters)
    name = options.adapter or store.names()[0]
    folder = store.path(store.resolve(name))
    for variable in [one for one in os.environ if one.startswith("REASONMAXXER_")]:
        del os.environ[variable]  # no keys, no settings but those that are alike
    environment()
    with ExitStack() as stack:
        with on_cores(options.server_cores):
            plain = stack.enter_context(
                plain_server(options.model, (name, folder.resolve()), flags(options))
            )
            ours = stack.enter_context(
                running_server(
                    *("--model", str(options.model), "--adapters", str(options.adapters)),
                    *flags(options),
                )
            )
        base = options.model.resolve().name
        yield dict(
            zip(
                SYSTEMS,
                (
                    Where(plain.url, base),
                    Where(plain.url, name),
                    Where(ours.url, base),
                    Where(ours.url, name),
                    Where(ours.url, f"{name}:gated"),
                ),
                strict=True,
            )
        )


def measure(answers: Sequence[Answer], start: float, end: float, tokens: int) -> dict[str, Any]:
    """The figures of one run, of what came in [start, end).

    Raises:
        LocustError: a request failed, or an answer has another number of tokens.
    """
    wrong = [f"HTTP {one.status}: {one.error}" for one in answers if one.error]
    wrong += [
        f"{one.tokens} tokens, not {tokens}"
        for one in answers
        if one.at >= start and not one.error and one.tokens != tokens
    ]
    if wrong:
        raise LocustError(f"{len(wrong)} of {len(answers)} answers are no good; first: {wrong[0]}")
    begun = [one for one in answers if start <= one.at < end]
    ttft = [one.ttft for one in begun if one.ttft is not None]
    gaps = figures.gaps_between(answers, start, end)
    if not ttft or not len(gaps):
        raise LocustError("nothing was answered in the time measured; give more --seconds")
    shares = (50, 99)
    return {
        "tokens_per_second": figures.tokens_between(answers, start, end) / (end - start),
        **{f"ttft_p{share}_ms": float(np.percentile(ttft, share)) for share in shares},
        **{f"inter_token_p{share}_ms": float(np.percentile(gaps, share)) for share in shares},
        "gate_rate": figures.gate_rate(begun),
        "requests": len(begun),
        "prompt_tokens": float(np.mean([one.prompt for one in begun])),
        "tokens_per_piece": sum(a.tokens for a in begun) / sum(1 + len(a.gaps) for a in begun),
    }


def turns(count: int, run: int) -> list[int]:
    """The order of the systems in a run: each begins once, and half the runs go backwards."""
    order = [(index + run) % count for index in range(count)]
    return order[::-1] if run % 2 else order


def _shown(values: Sequence[float], digits: int) -> str:
    return show(values, digits) if len(values) > 1 else f"{values[0]:,.{digits}f}"


class Rows:
    """All measurements: (users, system) -> its runs, in order."""

    def __init__(self) -> None:
        self.runs: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def add(self, users: int, system: str, figures: dict[str, Any]) -> None:
        """One more run."""
        self.runs.setdefault((users, system), []).append(figures)

    def values(self, users: int, system: str, figure: str) -> list[float]:
        """A figure, run by run."""
        return [run[figure] for run in self.runs[users, system]]

    def ratios(self, users: int, system: str, to: str, figure: str) -> list[float]:
        """The figure over that of system `to`, run by run: the two were seconds apart."""
        pairs = zip(self.values(users, system, figure), self.values(users, to, figure), strict=True)
        return [mine / other for mine, other in pairs]

    def table(self) -> list[list[str]]:
        """Rows of text, in the order of measuring."""
        order = sorted(self.runs, key=lambda key: (key[0], SYSTEMS.index(key[1])))
        return [self._row(users, system) for users, system in order]

    def _row(self, users: int, system: str) -> list[str]:
        cells = [
            _shown(self.values(users, system, figure), 0 if figure == "tokens_per_second" else 1)
            for figure in FIGURES
        ]
        ratios = [
            _shown(self.ratios(users, system, to, "tokens_per_second"), 2)
            for to in (PLAIN_BASE, PLAIN_LORA)
        ]
        return [str(users), system, *cells, *ratios]

    def result(self) -> list[dict[str, Any]]:
        """The same as JSON, with every run."""
        return [
            {
                "users": users,
                "system": system,
                **{figure: spread(self.values(users, system, figure)) for figure in FIGURES},
                "ratios": {
                    to: {
                        figure: spread(self.ratios(users, system, to, figure)) for figure in FIGURES
                    }
                    for to in (PLAIN_BASE, PLAIN_LORA)
                },
                "each_run": runs,
            }
            for (users, system), runs in self.runs.items()
        ]


HEADER = ["users", "system", *FIGURES.values(), "tokens/s to plain base", "to plain LoRA"]


def compare(options: argparse.Namespace, folder: Path) -> Rows:
    """Measure all systems in turn. Returns the measurements.

    Raises:
        RuntimeError, LocustError: a server does not start, or a request fails.
    """
    rows = Rows()
    problems = folder / "problems.jsonl"
    make_problems(problems)
    length = options.warm + options.seconds
    with systems(options) as places, on_cores(options.client_cores):
        for where in places.values():  # what is done at the first request is done by now
            _drive(where, 1, 2.0, 0, options, problems, folder / "warm-up")
        for run in range(options.runs):
            for users in options.users:
                for index in turns(len(SYSTEMS), run):
                    system = SYSTEMS[index]
                    place = folder / f"{system.replace(', ', ' ').replace(' ', '-')}-{users}-{run}"
                    answers = _drive(places[system], users, length, run, options, problems, place)
                    found = measure(answers, options.warm, length, options.max_tokens)
                    rows.add(users, system, found)
                    rate, gap = found["tokens_per_second"], found["inter_token_p50_ms"]
                    print(
                        f"run {run + 1}/{options.runs}, {users} users, {system}: "
                        f"{rate:,.0f} tokens/s, a token each {gap:.1f} ms",
                        flush=True,
                    )
    return rows


def _drive(
    where: Where,
    users: int,
    seconds: float,
    seed: int,
    options: argparse.Namespace,
    problems: Path,
    folder: Path,
) -> list[Answer]:
    plan = Plan(
        scenario="steady",
        host=where.host,
        users=users,
        seconds=seconds,
        seed=seed,
        mix={where.model: 1.0},
        problems=str(problems.resolve()),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        exact=True,
    )
    return drive(plan, folder).answers


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    cores = list(range(os.cpu_count() or 1))

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser = Parser(prog="python -m loadtests.compare", allow_abbrev=False)
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--runs", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of a run (%(default)s)")
    parser.add_argument("--warm", type=float, default=3, help="seconds before them (%(default)s)")
    parser.add_argument("--users", type=numbers, default=[1, 8, 32], help="at a time (1,8,32)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.6, help="(%(default)s)")
    parser.add_argument("--model", type=Path, default=BASE, help="folder of the base (shipped)")
    parser.add_argument("--adapters", type=Path, default=SHIPPED, help="store (shipped)")
    parser.add_argument("--adapter", default="", help="its name; default: the first")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--kv-cache-bytes", type=int, default=2**28, help="(%(default)s)")
    parser.add_argument(
        "--server-cores", type=numbers, default=cores[:1] if len(cores) > 1 else [], metavar="N,N"
    )
    parser.add_argument("--client-cores", type=numbers, default=cores[1:2], metavar="N,N")
    parser.add_argument("--results", type=Path, help=f"folder ({RESULTS}/compare-TIME)")
    options = parser.parse_args(argv)
    if options.runs < 1 or options.seconds <= 0 or options.warm < 0 or options.max_tokens < 2:
        parser.error(
            "--runs and --seconds must be above 0, --warm not below, --max-tokens 2 or more"
        )
    if not options.users or min(options.users) < 1:
        parser.error("--users: numbers of users, such as 1,8,32")
    if not set(options.server_cores + options.client_cores) <= set(cores):
        parser.error(f"--server-cores, --client-cores: this machine has {cores}")
    store = Store(options.adapters)
    if not (options.model / "config.json").is_file():
        parser.error(f"--model {options.model}: no folder of a model")
    if not options.adapters.is_dir() or not store.names():
        parser.error(f"--adapters {options.adapters}: no store with an adapter in it")
    if options.adapter and options.adapter not in store.names():
        parser.error(f"--adapter {options.adapter}: there are {', '.join(store.names())}")
    return options


def main(argv: list[str]) -> int:
    """Compare. Returns the exit code."""
    options = parse(argv)
    end_as_asked()
    folder = options.results or RESULTS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = compare(options, folder)
    except (RuntimeError, LocustError) as error:
        print(f"python -m loadtests.compare: {error}", file=sys.stderr)
        return 1
    print()
    print_table(HEADER, rows.table())
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    write_json(
        folder / "compare.json",
        {
            "machine": machine(),
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()},
            "flags": flags(options),
            "servers": "both up, one asked at a time",
            "rows": rows.result(),
        },
    )
    from loadtests.report import comparison

    write_text(folder / "report.html", comparison(folder))
    print(f"\n{folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
