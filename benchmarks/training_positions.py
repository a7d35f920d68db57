"""The training stage at decision points alone, against the paper's at every position.

    python -m benchmarks.training_positions                                    (the miniature)
    python -m benchmarks.training_positions --model BASE --rollouts 32 --dtype bfloat16

Both ways train the same adapter on the same rollouts for the same epochs, in processes of their own
that take turns. The seconds are those of the whole stage: the base's caches, every optimizer step
and the checkpoints; loading the model is left out. Tokens are random, since time and memory do not
depend on them.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from benchmarks.processes import measured_by, peak_mib
from benchmarks.report import in_turns, print_table, ratios, save, show, spread, spreads
from demo.server import end_as_asked
from training.config import Config
from training.hf_model import Dtype

WAYS = ("decisions", "all")


class PositionsConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.training_positions"

    model: str = "models/tiny-qwen2"
    dtype: Dtype = "auto"
    rollouts: int = Field(256, ge=1)
    prompt: int = Field(40, ge=1, description="Tokens of a prompt.")
    tokens: int = Field(
        160, ge=8, description="Mean length of an answer; half to half as much more."
    )
    rate: float = Field(0.05, gt=0, le=1, description="Share of decision points.")
    epochs: float = Field(1.0, gt=0)
    batch: int = Field(16, ge=1, description="Rollouts of a step.")
    rank: int = Field(16, ge=1)
    memory_gib: float = Field(4.0, ge=0, description="GiB of memory for the base's caches.")
    runs: int = Field(3, ge=1, description="Runs of each way, interleaved.")
    measure: Literal["", "decisions", "all"] = Field("", description="Internal: one run, JSON.")


def measure(config: PositionsConfig) -> None:
    """One run, in this process: prints one line of JSON."""
    import numpy as np

    from adapters.recipe import Checkpoints, Lora, Objective, Optimizer
    from training.base_cache import Budget
    from training.contrastive_trainer import TrainingRow
    from training.hf_model import load_model
    from training.run_folder import Stage
    from training.stages.train import train_adapter

    assert config.measure
    rng = np.random.default_rng(0)
    model = load_model(config.model, config.dtype)
    vocabulary = model.config.get_text_config().vocab_size
    rows = []
    for number in range(config.rollouts):
        length = int(rng.integers(config.tokens // 2, config.tokens * 3 // 2 + 1))
        decisions = rng.random(length) < config.rate
        decisions[rng.integers(length)] = True
        rows.append(
            TrainingRow(
                prompt_ids=rng.integers(vocabulary, size=config.prompt).tolist(),
                token_ids=rng.integers(vocabulary, size=length).tolist(),
                advantages=[1.0 if number % 2 else -1.0] * length,
                decisions=decisions.tolist(),
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_adapter(
            Stage.first(Path(folder), "training", {}),
            lambda: model,
            rows,
            lora=Lora(rank=config.rank, alpha=2 * config.rank),
            objective=Objective(positions=config.measure),
            optimizer=Optimizer(
                batch_size=config.batch, accumulation=1, epochs=config.epochs, order="shuffled"
            ),
            checkpoints=Checkpoints(every=config.epochs),
            seed=0,
            budget=Budget.of_gib(config.memory_gib, 0),
        )
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))


def main() -> None:
    """Command line."""
    config = PositionsConfig.load()
    if config.measure:
        measure(config)
        return
    end_as_asked()
    settings = config.values("measure", "runs")
    flags = [
        part
        for name, value in settings.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    module = "benchmarks.training_positions"
    found = in_turns(WAYS, config.runs, lambda way: measured_by(module, "--measure", way, *flags))
    seconds, peaks = (
        {way: [one[figure] for one in runs] for way, runs in found.items()}
        for figure in ("seconds", "peak_mib")
    )
    ratio = ratios(seconds["decisions"], seconds["all"])
    rows = [
        [way, show(seconds[way], 1), show(peaks[way], 0), show(ratio, 3) if way != "all" else "1"]
        for way in WAYS
    ]
    print_table(["positions", "seconds of the stage", "peak MiB", "ratio"], rows)
    save(
        "training_positions",
        {
            "settings": settings,
            "runs": config.runs,
            "ratio": spread(ratio),
            "ways": spreads(found, ("seconds", "peak_mib")),
        },
    )


if __name__ == "__main__":
    main()
