"""Which of a Trainer's checkpoints a killed run can resume from."""

from __future__ import annotations

import json
from pathlib import Path


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
