"""What the gate costs: generated tokens per second, as a ratio to the base without LoRA enabled.

    python -m benchmarks.gate --batch 16
    python -m benchmarks.gate --batch 64 --requests 2 --only always --only "always, stock kernels"

A model with random weights, made on the spot, float32, one thread. Without and with LoRA there are
two engines in this process; the modes take turns, so that what else the machine does falls on all
alike, and each run's ratio is to the base's run of the same turn. Thresholds are found by
measuring; the gate rate that was reached stands in the table.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from benchmarks.engines import SHAPES, Shape, make_engine, make_model, prepare
from benchmarks.report import print_table, save, show, spread
from training.config import Config

BASE = "base without LoRA"
PROMPT = 32
NEVER = 1e9  # nats; the entropy is computed all the same


class GateConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.gate"

    shape: Shape = "31m"
    batch: list[int] = Field([16, 64], description="Sequences at a time.")
    runs: int = Field(5, ge=1, description="Runs of each mode, interleaved.")
    requests: int = Field(3, ge=1, description="Requests of a run, for each sequence of the batch.")
    tokens: int = Field(64, ge=1, description="Tokens of a request.")
    rates: list[float] = Field([0.02, 0.1], description="Gate rates to look for.")
    only: list[str] = Field([], description="Modes to measure beside the base; all if none.")


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


def run(mode: Mode, config: GateConfig, batch: int, requests: int) -> Run:
    """Serve `requests` x batch requests, all there from the start."""
    import torch
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from serving.engine import cpu_layers

    generator = torch.Generator().manual_seed(1)
    size = (requests * batch, PROMPT)
    ids = torch.randint(1, SHAPES[config.shape]["vocab_size"], size, generator=generator).tolist()
    params = SamplingParams(
        temperature=0,
        max_tokens=config.tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=None if mode.tau is None else {"gate_tau": mode.tau},
    )
    lora = LoRARequest("adapter", 1, str(mode.adapter)) if mode.adapter else None
    prompts = [{"prompt_token_ids": one} for one in ids]
    with cpu_layers.stock() if mode.stock else nullcontext():
        start = time.perf_counter()
        answers = mode.engine.generate(prompts, params, lora_request=lora, use_tqdm=False)
        seconds = time.perf_counter() - start
    reports = [getattr(answer.outputs[0], "gate", None) for answer in answers]
    tokens = len(ids) * config.tokens
    return Run(tokens / seconds, sum(report.gated for report in reports if report) / tokens)


def with_rate(mode: Mode, config: GateConfig, batch: int, wanted: float) -> Mode:
    """`mode` with the tau that gates about `wanted` of the tokens: bisection on the engine."""
    low, high = 0.0, 12.0
    for _ in range(12):
        mode = mode._replace(tau=(low + high) / 2)
        rate = run(mode, config, batch, 1).rate
        if abs(rate - wanted) < 0.1 * wanted:
            break
        assert mode.tau is not None
        low, high = (mode.tau, high) if rate > wanted else (low, mode.tau)
    return mode


def measure(config: GateConfig, base: Path, adapter: Path, batch: int) -> dict[str, list[Run]]:
    """The runs of each mode."""
    limits = {"max_num_seqs": batch, "max_model_len": 256, "enable_prefix_caching": False}
    plain, gated = (make_engine(base, gate, **limits) for gate in (False, True))
    modes = {
        BASE: Mode(plain),
        "gate never opens": Mode(gated, adapter, NEVER),
        **{f"gated, {rate:.0%} wanted": Mode(gated, adapter, rate) for rate in config.rates},
        "always": Mode(gated, adapter),
        "always, stock kernels": Mode(gated, adapter, stock=True),
    }
    modes = {n: m for n, m in modes.items() if not config.only or n in (BASE, *config.only)}
    for name, mode in modes.items():
        if mode.tau is not None and mode.tau != NEVER:
            modes[name] = with_rate(mode, config, batch, mode.tau)
    runs: dict[str, list[Run]] = {name: [] for name in modes}
    for mode in modes.values():
        run(mode, config, batch, 1)  # warms up
    names = list(modes)
    for turn in range(config.runs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            runs[name].append(run(modes[name], config, batch, config.requests))
    return runs


def main() -> None:
    """Measure each batch size."""
    config = GateConfig.load()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        base, (adapter,), parameters = make_model(Path(folder), config.shape)
        print(f"{parameters / 1e6:.1f} M parameters")
        for batch in config.batch:
            runs = measure(config, base, adapter, batch)
            speeds = {name: [one.speed for one in found] for name, found in runs.items()}
            ratios = {
                name: [one / beside for one, beside in zip(values, speeds[BASE], strict=True)]
                for name, values in speeds.items()
            }
            rates = {
                name: statistics.mean(one.rate for one in found) for name, found in runs.items()
            }
            print(f"\nbatch {batch}, median (range) of {config.runs} interleaved runs\n")
            print_table(
                ["mode", "gate rate", "tokens/s", "ratio to base"],
                [
                    [name, f"{rates[name]:.1%}", show(speeds[name]), show(ratios[name], 3)]
                    for name in runs
                ],
            )
            figures = {
                name: {
                    "gate_rate": rates[name],
                    "tokens_per_second": spread(speeds[name]),
                    "ratio_to_base": spread(ratios[name]),
                }
                for name in runs
            }
            settings = config.model_dump(mode="json", exclude={"config", "batch"})
            result = {**settings, "batch": batch, "parameters": parameters, "modes": figures}
            part = re.sub("[^a-z0-9]+", "-", "".join(f" {mode}" for mode in config.only))
            save(f"gate-{config.shape}-{batch}{part}", result)


if __name__ == "__main__":
    main()
