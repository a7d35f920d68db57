"""What the gate costs: generated tokens per second, as a ratio to the base without LoRA enabled.

    python -m benchmarks.gate --model runs/models/Qwen2.5-Coder-0.5B-Instruct --batch 1,4,16
    python -m benchmarks.gate --batch 16
    python -m benchmarks.gate --batch 64 --requests 2 --only always --only "always (stock kernels)"
    python -m benchmarks.gate --model FOLDER --speculative ngram --tokens 256 --rates 0.03

With --model: a real model in bfloat16 on all cores, arithmetic questions in its own chat template,
and how long servers of it take to start. Without: a model with random weights, made on the spot,
float32, one thread, random prompts.

Without and with LoRA there are two engines in this process; the modes take turns, so that what else
the machine does falls on all alike, and each run's ratio is to the base's run of the same turn. A
run also takes the time to the first token: seconds until a batch of prompts has one token each. The
thresholds are calibrated on the entropies of the same requests; the gate rate that was reached
stands in the table. So does the best ratio that it leaves, for a gated token costs one more step.

With --speculative ngram two more engines draft tokens by n-grams: the base's, and the gate's. With
--drafts-up-to 4 they stop in larger batches.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import psutil
from pydantic import Field, model_validator

from adapters.command_line import usage_error
from adapters.gate import calibrate
from benchmarks import startup
from benchmarks.engines import (
    SHAPES,
    Shape,
    exactly,
    make_adapter,
    make_engine,
    make_model,
    prepare,
)
from benchmarks.report import in_turns, print_table, ratios, save, show, spread
from demo.server import end_as_asked
from training.config import Config
from vllm_gate import GateReport, engine_args
from vllm_gate.params import NEVER

BASE = "base without LoRA"
COMPILED = "base without LoRA (compiled)"
NEVER_OPENS = "gate never opens"
DRAFTS = " with n-gram drafts"  # with it, the same modes on engines that draft
PROMPT = 32  # random tokens, where the model is made up

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, le=1)]


class GateConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.gate"

    model: Path | None = Field(None, description="Folder of a real model, instead of a shape.")
    adapter: Path | None = Field(None, description="PEFT folder for it; a random one if none.")
    shape: Shape = "31m"
    dtype: str = Field("", description="Type of weights: bfloat16 with --model, else float32.")
    threads: int = Field(0, ge=0, description="All cores with --model, else one.")
    batch: list[Positive] = Field([1, 4, 16], min_length=1, description="Sequences at a time.")
    runs: int = Field(5, ge=1, description="Runs of each mode, interleaved.")
    requests: int = Field(3, ge=1, description="Requests of a run, for each sequence of the batch.")
    tokens: int = Field(64, ge=1, description="Tokens of a request.")
    rates: list[Rate] = Field([0.03, 0.1], description="Gate rates to look for.")
    only: list[str] = Field([], description="Modes to measure beside the base; all if none.")
    compiled: bool = Field(False, description="Also the base as vLLM compiles it without LoRA.")
    speculative: Literal["", "ngram"] = Field("", description="Also with speculative decoding.")
    drafts: int = Field(4, ge=1, description="Drafted tokens of a step, with --speculative.")
    drafts_up_to: int = Field(
        0,
        ge=0,
        description="Draft for so many sequences at a time, not for more; 0: for any number.",
    )
    starts: int = Field(1, ge=0, description="With --model: starts of each server; 0: none.")

    @model_validator(mode="after")
    def _of_model(self) -> Self:
        for flag, names in (
            ("model", ("adapter", "starts")),
            ("speculative", ("drafts", "drafts_up_to")),
        ):
            for name in self.model_fields_set.intersection(names):
                if getattr(self, name) and not getattr(self, flag):
                    raise ValueError(f"--{name.replace('_', '-')} goes with --{flag}")
        self.dtype = self.dtype or ("bfloat16" if self.model else "float32")
        self.threads = self.threads or (len(os.sched_getaffinity(0)) if self.model else 1)
        return self


class Mode(NamedTuple):
    """A way to serve the same requests."""

    engine: Any
    adapter: Path | None = None
    tau: float | None = None
    stock: bool = False  # vLLM's own LoRA kernels


class Run(NamedTuple):
    """What came out of one run."""

    speed: float  # tokens per second
    rate: float  # gated tokens / generated tokens
    first: float  # seconds to the first token of a batch


def gated_at(rate: float) -> str:
    """The mode of a gate rate."""
    return f"gated at {100 * rate:g}%"


def make_prompts(config: GateConfig, count: int) -> list[list[int]]:
    """Token ids: questions in the model's own chat template, or random ones."""
    choose = random.Random(1)
    if config.model is None:
        last = SHAPES[config.shape]["vocab_size"] - 1
        return [[choose.randint(1, last) for _ in range(PROMPT)] for _ in range(count)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    prompts = []
    for _ in range(count):
        a, b, c = (choose.randint(11, 99) for _ in range(3))
        text = f"A shop sells {a} boxes of {b} apples, and {c} apples are bad. How many are good?"
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prompts


def generate(mode: Mode, prompts: list[list[int]], batch: int, tokens: int, trace: int = 0) -> Any:
    """(the answers, seconds they took together): `batch` at a time, all there from the start."""
    from vllm.lora.request import LoRARequest

    from vllm_gate import GateParams, patches

    gate = None if mode.tau is None else GateParams(mode.tau, trace=trace).extra_args()
    params = exactly(tokens, extra_args=gate)
    lora = LoRARequest("adapter", 1, str(mode.adapter)) if mode.adapter else None
    mode.engine.llm_engine.engine_core.engine_core.scheduler.max_num_active_reqs = batch
    given = [{"prompt_token_ids": one} for one in prompts]
    with patches.stock("cpu") if mode.stock else nullcontext():
        start = time.perf_counter()
        answers = mode.engine.generate(given, params, lora_request=lora, use_tqdm=False)
        return answers, time.perf_counter() - start


def run(mode: Mode, config: GateConfig, prompts: list[list[int]], batch: int) -> Run:
    """Serve the prompts, and then the first `batch` of them for one token each."""
    answers, seconds = generate(mode, prompts, batch, config.tokens)
    reports = [GateReport.of(answer) for answer in answers]
    tokens = len(prompts) * config.tokens
    gated = sum(report.gated_tokens for report in reports if report)
    _, first = generate(mode, prompts[:batch], batch, 1)
    return Run(tokens / seconds, gated / tokens, first)


def measured_entropies(
    never: Mode, config: GateConfig, prompts: list[list[int]], batch: int
) -> list[float]:
    """The base's entropy at every token but the first of its answers to the prompts."""
    answers, _ = generate(never, prompts, batch, config.tokens, trace=2)
    reports = [GateReport.of(answer) for answer in answers]
    traces = [report.trace for report in reports if report]
    return [entry["entropy"] for trace in traces for entry in trace if "entropy" in entry]


def measure(
    config: GateConfig, engines: dict[str, Any], adapter: Path, batch: int
) -> dict[str, list[Run]]:
    """The runs of each mode."""
    gated, drafting = engines[NEVER_OPENS], engines.get(NEVER_OPENS + DRAFTS)
    prompts = make_prompts(config, config.requests * batch)
    never = Mode(gated, adapter, NEVER)
    entropies = measured_entropies(never, config, prompts, batch)  # warms up, too
    modes = {
        **{
            name: Mode(engine)
            for name, engine in engines.items()
            if engine not in (gated, drafting)
        },
        NEVER_OPENS: never,
        **{
            gated_at(rate): Mode(gated, adapter, calibrate(entropies, rate))
            for rate in config.rates
        },
        "always": Mode(gated, adapter),
    }
    if drafting is not None:
        behind_gate = [name for name, mode in modes.items() if mode.engine is gated]
        modes |= {name + DRAFTS: modes[name]._replace(engine=drafting) for name in behind_gate}
    if config.model is None:
        modes["always (stock kernels)"] = Mode(gated, adapter, stock=True)
    if unknown := set(config.only) - set(modes):
        there = ", ".join(modes)
        usage_error(config.called(), f"--only {', '.join(sorted(unknown))}: there are {there}")
    modes = {n: m for n, m in modes.items() if not config.only or n in (BASE, *config.only)}
    for mode in modes.values():
        generate(mode, prompts[:batch], batch, 8)  # warms up
    return in_turns(modes, config.runs, lambda name: run(modes[name], config, prompts, batch))


def speculative_config(config: GateConfig) -> dict[str, Any]:
    """vLLM's speculative configuration."""
    few, drafts = config.drafts_up_to, config.drafts
    by_load = {"num_speculative_tokens_per_batch_size": [[1, few, drafts], [few + 1, few + 1, 0]]}
    return {
        "method": config.speculative,
        "num_speculative_tokens": drafts,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 4,
    } | (by_load if few else {})


def report(runs: dict[str, list[Run]], batch: int) -> dict[str, Any]:
    """Print a table; the same as figures."""
    speeds = {name: [one.speed for one in found] for name, found in runs.items()}
    firsts = {name: [one.first for one in found] for name, found in runs.items()}
    rates = {name: statistics.mean(one.rate for one in found) for name, found in runs.items()}

    def to_base(values: dict[str, list[float]], name: str) -> list[float]:
        return ratios(values[name], values[BASE])

    print(f"\nbatch {batch}, median (range) of {len(runs[BASE])} interleaved runs\n")
    header = ["mode", "gate rate", "tokens/s", "ratio to base", "at best", "first token, s"]
    print_table(
        [*header, "ratio"],
        [
            [
                name,
                f"{rates[name]:.1%}",
                show(speeds[name], 1),
                show(to_base(speeds, name), 3),
                f"{1 / (1 + rates[name]):.3f}",
                show(firsts[name], 3),
                show(to_base(firsts, name), 2),
            ]
            for name in runs
        ],
    )
    return {
        name: {
            "gate_rate": rates[name],
            "tokens_per_second": spread(speeds[name]),
            "ratio_to_base": spread(to_base(speeds, name)),
            "first_token_seconds": spread(firsts[name]),
            "first_token_ratio": spread(to_base(firsts, name)),
        }
        for name in runs
    }


def main() -> None:
    """Measure each batch size."""
    config = GateConfig.load()
    if config.model and not (config.model / "config.json").is_file():
        usage_error(config.called(), f"--model {config.model}: no model folder")
    prepare(config.threads)
    end_as_asked()
    servers = {}
    if config.model and config.starts:  # before this process takes memory
        servers = startup.report(startup.measure(config.model, config.dtype, config.starts))
    with tempfile.TemporaryDirectory() as folder:
        if config.model:
            base, name = config.model, config.model.resolve().name
            adapter = config.adapter or make_adapter(base, Path(folder, "adapter"))
        else:
            base, (adapter,), parameters = make_model(Path(folder), config.shape)
            name = config.shape
            print(f"{parameters / 1e6:.1f} M parameters")
        limits: dict[str, Any] = {
            "max_num_seqs": max(config.batch),
            "max_model_len": max(512, 2 * config.tokens),  # 256 of them or more for a prompt
            "enable_prefix_caching": False,
            "dtype": config.dtype,
        }
        engines = {BASE: make_engine(base, False, **limits)}
        if config.compiled:
            engines[COMPILED] = make_engine(base, False, **limits, enforce_eager=False)
        engines[NEVER_OPENS] = make_engine(base, True, **limits)
        if config.speculative:
            drafts: dict[str, Any] = {"speculative_config": speculative_config(config)}
            corrected = engine_args("cpu", gate=False)  # stock vLLM's n-grams are ten times slower
            engines[BASE + DRAFTS] = make_engine(base, False, **limits, **drafts, **corrected)
            engines[NEVER_OPENS + DRAFTS] = make_engine(base, True, **limits, **drafts)
        for batch in config.batch:
            figures = report(measure(config, engines, adapter, batch), batch)
            rss = psutil.Process().memory_info().rss
            result = config.values("batch") | {"batch": batch, "modes": figures}
            result["rss_of_all_engines"] = rss
            only = "".join(f" {mode}" for mode in (*config.only, config.speculative) if mode)
            part = re.sub("[^a-z0-9]+", "-", only)
            save(f"gate-{name}-{batch}{part}", {**result, "servers": servers})


if __name__ == "__main__":
    main()
