"""One of the processes that train together, for test_train.py: FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from test_train import run_training

from training import processes
from training.contrastive_trainer import CheckpointNote
from training.stages.train import help_to_train


def main(folder: Path) -> None:
    """Train in the first process, help in the others."""
    processes.join()
    assert processes.count() == 2
    if processes.rank() > 0:
        processes.help_with(help_to_train)
        print("helped", flush=True)
    else:
        rows = json.loads((folder / "rows.json").read_text())
        for positions in ("decisions", "all"):

            def estimate(_: Any, __: Path, name: str = positions) -> CheckpointNote:
                print(f"estimated {name}", flush=True)
                return CheckpointNote("")

            run_training(folder / positions, rows, positions, on_checkpoint=estimate)
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
