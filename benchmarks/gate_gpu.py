"""What the gate costs on a GPU: tokens per second, and how often the host waits for the device.

    python -m benchmarks.gate_gpu
    python -m benchmarks.gate_gpu --shape tiny --batch 1,4 --tokens 16 --runs 1    # also on a CPU

A model with Qwen2.5-1.5B's shape and random weights, in bfloat16, answers random prompts. Each
engine runs in a process of its own, one after the other: the base without LoRA; the gate; the gate
with two rows for one position (vllm_gate/two_rows.py). On a GPU each runs with CUDA graphs and
without. Modes of an engine take turns; ratios are to the base's median with the same batch and
graphs. The thresholds are calibrated on the entropies of the same requests.

Waits are counted in a run apart, since counting takes time. With asynchronous scheduling a step of
the base waits once, for its result; what a step waits beside is waste.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from adapters.files import write_json
from adapters.gate import calibrate
from benchmarks.engines import SHAPES, Shape, make_engine, make_model, prepare
from benchmarks.gate import (
    PROMPT,
    GateConfig,
    Mode,
    Positive,
    Rate,
    gated_at,
    generate,
    make_prompts,
    measured_entropies,
)
from benchmarks.report import print_table, save, show, spread
from benchmarks.waiting import counted
from demo.server import end_as_asked
from training.config import Config
from vllm_gate import GateReport
from vllm_gate.params import NEVER

TWO_ROWS = "gate with two rows"
Engine = Literal["base", "gate", "gate with two rows"]
NEVER_OPENS, ALWAYS = "gate never opens", "always-on"


class GpuConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.gate_gpu"

    shape: Shape = "1.5b"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    batch: list[Positive] = Field([1, 16, 64, 256], min_length=1, description="At a time.")
    rates: list[Rate] = Field([0.03, 0.1], description="Gate rates to look for.")
    runs: int = Field(5, ge=1, description="Runs of each mode, interleaved.")
    requests: int = Field(2, ge=1, description="Requests of a run, for each sequence of the batch.")
    tokens: int = Field(128, ge=2, description="Tokens of a request.")
    rows: int = Field(64, ge=0, description="Largest step with two rows; 0: do not measure them.")
    engines: list[Engine] = Field(list(get_args(Engine)), description="Engines to measure.")
    only_eager: bool = Field(False, description="No CUDA graphs; so it is without a GPU.")
    child: Path | None = Field(None, description="For the benchmark's own processes.")


def main() -> int:
    """Measure each engine in a process of its own; exit code 1 if one failed."""
    config = GpuConfig.load()
    prepare()
    end_as_asked()
    if config.child is not None:
        measure_engine(config, config.child)
        return 0
    import torch

    gpu = torch.cuda.is_available()
    found: list[dict[str, Any]] = []
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        base, (adapter,), parameters = make_model(Path(folder), config.shape, dtype=config.dtype)
        print(f"{parameters / 1e6:.1f} M parameters")
        for graphs in (True, False) if gpu and not config.only_eager else (False,):
            for engine in config.engines:
                if engine == TWO_ROWS and not (config.rows and gpu):
                    continue  # the V2 runner's, which a CPU has under an interpreter alone
                told: dict[str, Any] = {"engine": engine, "graphs": graphs}
                told |= {"base": str(base), "adapter": str(adapter)}
                measured = run_child(config, Path(folder), told)
                failed, found = failed or not measured, found + measured
    report(found)
    settings = config.values("child", "engines")
    save(f"gate-gpu-{config.shape}", {**settings, "gpu": gpu, "measured": found})
    return int(failed)


def run_child(config: GpuConfig, folder: Path, told: dict[str, Any]) -> list[dict[str, Any]]:
    """What one engine's process has measured; nothing of one that failed, which says why."""
    given, results = folder / "child.json", folder / "results.json"
    results.unlink(missing_ok=True)
    write_json(given, told | {"settings": config.values("child")})
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gate_gpu", "--child", str(given)], check=False
    )
    if ended.returncode or not results.is_file():
        print(f"{told['engine']}, graphs {told['graphs']}: ended with {ended.returncode}")
        return []
    measured: list[dict[str, Any]] = json.loads(results.read_text())
    return measured


def measure_engine(config: GpuConfig, given: Path) -> None:
    """In a process of its own: all modes and batches of one engine."""
    told = json.loads(given.read_text())
    config = GpuConfig(**told["settings"])
    engine: Engine = told["engine"]
    adapter = Path(told["adapter"])
    longest = PROMPT + config.tokens + 1
    sequences = max(config.batch)
    limits: dict[str, Any] = {
        "dtype": config.dtype,
        "max_num_seqs": sequences,
        "max_model_len": longest,
        "max_num_batched_tokens": max(2048, sequences * 8),
        "enable_prefix_caching": False,
        "enforce_eager": not told["graphs"],
        "kv_cache_memory_bytes": kv_bytes(config, sequences * (longest + 64)),
    }
    if engine == TWO_ROWS:
        limits["additional_config"] = {"gate_two_rows": {"rows": config.rows, "rate": 0.02}}
    llm = make_engine(Path(told["base"]), engine != "base", **limits)
    found = []
    for batch in config.batch:
        for name, figures in measure(config, llm, engine, adapter, batch).items():
            where = {"engine": engine, "graphs": told["graphs"], "batch": batch}
            found.append(where | {"mode": name} | figures)
            print(json.dumps(found[-1]), flush=True)
    write_json(given.with_name("results.json"), found)


def kv_bytes(config: GpuConfig, tokens: int) -> int:
    """Bytes of keys and values for so many tokens."""
    shape = SHAPES[config.shape]
    head = shape["hidden_size"] // shape["num_attention_heads"]
    size = 2 if config.dtype == "bfloat16" else 4
    of_a_token = 2 * size * shape["num_hidden_layers"] * shape["num_key_value_heads"] * head
    return max(2**26, tokens * of_a_token)


def measure(
    config: GpuConfig, llm: Any, engine: Engine, adapter: Path, batch: int
) -> dict[str, dict[str, Any]]:
    """The figures of each mode of an engine."""
    asked = GateConfig(shape=config.shape, batch=[batch], tokens=config.tokens)
    prompts = make_prompts(asked, config.requests * batch)
    if engine == "base":
        modes = {"base": Mode(llm)}
    else:
        never = Mode(llm, adapter, NEVER)
        entropies = measured_entropies(never, asked, prompts, batch)
        modes = {
            gated_at(rate): Mode(llm, adapter, calibrate(entropies, rate)) for rate in config.rates
        }
        if engine == "gate":
            modes |= {NEVER_OPENS: never, ALWAYS: Mode(llm, adapter)}
    for mode in modes.values():
        generate(mode, prompts[:batch], batch, min(8, config.tokens))  # warms up
    speeds: dict[str, list[float]] = {name: [] for name in modes}
    rates: dict[str, float] = {}
    for _ in range(config.runs):
        for name, mode in modes.items():
            answers, seconds = generate(mode, prompts, batch, config.tokens)
            tokens = len(prompts) * config.tokens
            reports = [GateReport.of(answer) for answer in answers]
            rates[name] = sum(one.gated_tokens for one in reports if one) / tokens
            speeds[name].append(tokens / seconds)
    return {
        name: {
            "tokens_per_second": spread(speeds[name]),
            "runs_tokens_per_second": speeds[name],
            "gate_rate": rates[name],
            "waiting": waits(mode, prompts[:batch], batch, config.tokens),
        }
        for name, mode in modes.items()
    }


def waits(mode: Mode, prompts: list[list[int]], batch: int, tokens: int) -> dict[str, Any]:
    """How often a step of one more run waits for the device."""
    with steps_counted(mode.engine) as steps, counted() as found:
        generate(mode, prompts, batch, tokens)
    return found.figures(steps[0])


@contextmanager
def steps_counted(llm: Any) -> Iterator[list[int]]:
    """Within, a list of one number counts the steps that are scheduled."""
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    stock, steps = scheduler.schedule, [0]

    def schedule(*args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs)
        steps[0] += output.total_num_scheduled_tokens > 0
        return output

    scheduler.schedule = schedule
    try:
        yield steps
    finally:
        scheduler.schedule = stock


def report(found: list[dict[str, Any]]) -> None:
    """Print a table for each batch, and add ratios to the base with the same graphs."""
    for batch in sorted({one["batch"] for one in found}):
        rows = []
        for one in (one for one in found if one["batch"] == batch):
            bases = [
                other["tokens_per_second"]["median"]
                for other in found
                if other["engine"] == "base"
                and (other["batch"], other["graphs"]) == (batch, one["graphs"])
            ]
            one["ratio_to_base"] = (
                one["tokens_per_second"]["median"] / statistics.median(bases) if bases else None
            )
            ratio, waiting = one["ratio_to_base"], one["waiting"]
            rows.append(
                [
                    one["engine"],
                    one["mode"],
                    "yes" if one["graphs"] else "no",
                    f"{one['gate_rate']:.1%}",
                    show(one["runs_tokens_per_second"]),
                    f"{ratio:.3f}" if ratio else "",
                    f"{waiting['waits_per_step']:.2f}",
                    f"{waiting['waits_per_step_in_the_gate']:.2f}",
                ]
            )
        print(f"\nbatch {batch}\n")
        header = ["engine", "mode", "graphs", "gate rate", "tokens/s", "ratio to base"]
        print_table([*header, "waits a step", "in the gate"], rows)


if __name__ == "__main__":
    sys.exit(main())
