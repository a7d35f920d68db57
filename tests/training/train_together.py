"""One of the processes that train together, for test_train.py: FOLDER."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from test_train import BASE, run_training

from training import processes, sharded_base
from training.base_cache import Budget
from training.contrastive_trainer import CheckpointNote
from training.hf_model import head, hidden_states, load_model
from training.stages.score import sequence_entropies

IDS = torch.tensor([[5, 9, 2, 7]])


def local_bytes(model: Any) -> int:
    """What this process holds of the parameters."""
    return sum(getattr(one, "_local_tensor", one).nbytes for one in model.parameters())


def entropy_alone(model: Any) -> float:
    """Of the last token, by the first process alone."""
    return float(sequence_entropies(model, [[5, 9]], [[2, 7]])[0][-1])


def logit_of(model: Any) -> float:
    """One figure that shows the adapter which is on."""
    with torch.no_grad():
        return float(head(model)(hidden_states(model, IDS, torch.ones_like(IDS)))[0, -1, 3])


def main(folder: Path) -> None:
    """Train in the first process, help in the others."""
    processes.join()
    assert processes.count() == 2
    if processes.rank() > 0:
        processes.help_the_first()
        print("helped", flush=True)
    else:
        rows = json.loads((folder / "rows.json").read_text())
        with sharded_base.lent(partial(load_model, BASE)) as base:
            told: dict[str, Any] = {"bytes": local_bytes(base), "entropy": entropy_alone(base)}
        for positions in ("decisions", "all"):
            told[positions] = logits = []

            def estimate(model: Any, _: Path, to: list[float] = logits) -> CheckpointNote:
                to.append(logit_of(model))
                return CheckpointNote("")

            # Too little room for the base's caches: each process computes some when it needs them.
            budget = Budget(60_000, 0)
            run_training(
                folder / positions,
                rows,
                positions,
                on_checkpoint=estimate,
                budget=budget,
                base=str(folder / "untied"),
            )
        (folder / "told.json").write_text(json.dumps(told))
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
