"""What experiments do with trainings: run one, and read what it has left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapters.manifest import Gate, Manifest


def run_module(*arguments: str) -> None:
    """Run `python -m arguments...`; it shows its own progress."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def cost_of(report: dict[str, Any], seconds: dict[str, float]) -> dict[str, float]:
    """What a fit took, by what it has left in its run folder."""
    return {
        "tokens": report["tokens"]["rollouts"],
        "heldout_tokens": report["tokens"]["heldout"],
        "steps": report["steps"],
        "seconds": round(sum(seconds.values()), 1),
    }


def gate_of(adapter: Path) -> Gate:
    """The gate that it is served behind."""
    gate = Manifest.read(adapter).gate
    assert gate is not None  # a fit always calibrates one
    return gate


def whole_checkpoints(run: Path) -> list[Path]:
    """The Trainer's checkpoints that are whole (its state is written last), oldest first."""
    found = []
    for folder in sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        found.append(folder)
    return found
