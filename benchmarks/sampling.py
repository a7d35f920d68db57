"""The stages of a fit: tokens/s of sampling by vLLM and by transformers, seconds, peak memory.

    python -m benchmarks.sampling --problems 100 --runs 3

One whole fit is run, stage by stage. Then both engines answer the same problems, in turn, each run
in a process of its own; the start of the engine is a figure of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from adapters.recipe import recipe_for
from benchmarks.processes import measured_by, peak_mib
from benchmarks.report import in_turns, print_table, ratios, save, show, spread, spreads
from demo.server import end_as_asked
from training.config import Config
from training.generation import EngineName

ENGINES: tuple[EngineName, ...] = ("vllm", "transformers")
PROBLEMS = Path("models/tiny-problems/train.jsonl")


class SamplingConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.sampling"

    model: str = "models/tiny-qwen2"
    problems: int = Field(
        100, ge=1, le=1000, description="Problems, each sampled as in the recipe."
    )
    fit_problems: int = Field(400, ge=0, le=1000, description="Problems of the whole fit; 0: none.")
    runs: int = Field(3, ge=1, description="Runs of each engine, interleaved.")
    seed: int = 0
    measure: EngineName | None = Field(
        None, description="Internal: measure this engine, print JSON."
    )


def measure(engine: EngineName, config: SamplingConfig) -> None:
    """One run, in this process: prints one line of JSON."""
    from adapters.base_checkpoint import BaseCheckpoint
    from adapters.prompt import PromptRenderer
    from training.generation import SamplingOptions, longest_sequence, open_generator
    from training.problems import load_problems

    base = BaseCheckpoint.open(config.model)
    recipe = recipe_for(base)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    problems = load_problems(str(PROBLEMS), limit=config.problems)
    prompts = [renderer.token_ids(one.problem) for one in problems]
    sampling = recipe.sampling
    options = SamplingOptions(
        sampling.rollouts, sampling.temperature, sampling.top_p, sampling.max_tokens, config.seed
    )
    longest = longest_sequence(config.model, max(map(len, prompts)), sampling.max_tokens)
    with open_generator(config.model, engine=engine, max_model_len=longest) as generator:
        start = time.perf_counter()
        generator.generate(prompts[:1], options)  # starts the engine, warms it up
        ready = time.perf_counter()
        answers = generator.generate(prompts, options)
        end = time.perf_counter()
    tokens = sum(len(answer.token_ids) for row in answers for answer in row)
    result = {
        "tokens": tokens,
        "tokens_per_second": tokens / (end - ready),
        "start_seconds": ready - start,
        "peak_mib": max(peak_mib(), peak_mib(children=True)),
    }
    print(json.dumps(result))


def run(engine: str, config: SamplingConfig) -> dict[str, float]:
    """One run of `engine` in a process of its own."""
    return measured_by(
        *("benchmarks.sampling", "--measure", engine, "--model", config.model),
        *("--problems", str(config.problems), "--seed", str(config.seed)),
    )


def time_fit(config: SamplingConfig) -> dict[str, float]:
    """Seconds of each stage of a fit of a miniature, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "training.fit", "--model", config.model),
                *("--problems", str(PROBLEMS), "--limit", str(config.fit_problems)),
                *("--output", f"{folder}/adapter"),
                *("--run-dir", f"{folder}/run", "--seed", str(config.seed)),
            ],
            check=True,
        )
        seconds: dict[str, float] = json.loads(Path(folder, "run", "seconds.json").read_text())
        seconds["whole command"] = time.perf_counter() - start
    return {**seconds, "peak_mib (largest process)": peak_mib(children=True)}


def main() -> None:
    """Command line."""
    config = SamplingConfig.load()
    if config.measure:
        measure(config.measure, config)
        return
    end_as_asked()
    result: dict[str, Any] = {"model": config.model, "problems": config.problems}
    if config.fit_problems:  # first: the peak is that of the largest child until then
        fit = time_fit(config)
        print_table(
            ["stage of a fit", ""], [[name, f"{value:,.1f}"] for name, value in fit.items()]
        )
        print()
        result |= {"fit": fit, "fit_problems": config.fit_problems}
    found = in_turns(ENGINES, config.runs, lambda engine: run(engine, config))
    metrics = ("tokens_per_second", "start_seconds", "peak_mib")
    rows = [
        [engine, *(show([one[metric] for one in runs]) for metric in metrics)]
        for engine, runs in found.items()
    ]
    print_table(["sampling", "tokens/s", "start, s", "peak MiB"], rows)
    speeds = ([one["tokens_per_second"] for one in found[engine]] for engine in ENGINES)
    ratio = ratios(*speeds)
    print(f"\n{' to '.join(ENGINES)}, tokens/s, {config.runs} runs: {show(ratio, 2)}")
    save("sampling", result | {"sampling": spreads(found, metrics), "ratio": spread(ratio)})


if __name__ == "__main__":
    main()
