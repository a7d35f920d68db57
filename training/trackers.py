"""Experiment trackers: what a training run sends to TensorBoard, Weights & Biases, Trackio, MLflow.

    reasonmaxxer fit ... --report-to tensorboard
    tensorboard --logdir runs/fit/NAME

The callbacks are transformers' own. They get the loss, the learning rate and the norm of the
gradient; and from here, once, what is known before training, the held-out estimate of each
checkpoint, and at the end the decoded scores of the base and the adapter.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from adapters.first_line import first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger("training.fit")

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "none"]
# Packages of which one is enough; none is a dependency of ours.
PACKAGES: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}


class Tracking(NamedTuple):
    """Where a run is reported, and what it is called there."""

    trackers: Sequence[Tracker] = ()
    name: str = ""
    facts: Mapping[str, float] = {}  # known before the first step

    def arguments(self) -> dict[str, Any]:
        """For `TrainingArguments`; without trackers nothing is reported."""
        if not self.trackers:
            return {"report_to": []}
        named = {"run_name": self.name, "project": "reasonmaxxer"} if self.name else {}
        return {"report_to": list(self.trackers), **named}


def check_installed(trackers: Sequence[Tracker]) -> list[Tracker]:
    """The trackers without "none".

    Raises:
        ValueError: a package is missing, or "none" stands beside others.
    """
    if "none" in trackers and len(trackers) > 1:
        raise ValueError("'none' goes with no other")
    wanted: list[Tracker] = [one for one in trackers if one != "none"]
    for tracker in wanted:
        packages = PACKAGES[tracker]
        if not any(importlib.util.find_spec(name) for name in packages):
            raise ValueError(
                f"'{tracker}' needs the package {packages[0]}, which is not installed: "
                f"pip install {packages[0]}"
            )
    return wanted


def report_scores(arguments: TrainingArguments, step: int, scores: Mapping[str, float]) -> None:
    """Send what was measured after training to the run that training was reported to.

    A tracker that fails is named in a warning: the adapter is there already.

    Args:
        arguments: those of the training.
        step: its last one.
    """
    from transformers import TrainerControl, TrainerState
    from transformers.integrations import get_reporting_integration_callbacks

    finite = {name: value for name, value in scores.items() if math.isfinite(value)}
    state = TrainerState(global_step=step, max_steps=step)
    for tracker in arguments.report_to:
        [kind] = get_reporting_integration_callbacks([tracker])
        try:
            with _run_of(tracker):
                callback = kind()
                if tracker == "tensorboard":
                    callback.logging_dir = _events_of(Path(arguments.output_dir))
                callback.on_log(arguments, state, TrainerControl(), logs=dict(finite))
                callback.on_train_end(arguments, state, TrainerControl())
        except Exception as error:  # of somebody's package, or of the network
            reason = first_line(error)[:300]
            logger.warning("%s has not been told the final scores: %s", tracker, reason)


def _events_of(folder: Path) -> str:
    """Where TensorBoard's files of the training in `folder` lie; the newest ones."""
    written = sorted(folder.glob("runs/*/"), key=lambda path: path.stat().st_mtime)
    return str(written[-1] if written else folder / "runs" / "scores")


@contextmanager
def _run_of(tracker: str) -> Iterator[None]:
    """Within, `tracker` goes on with the run of this process, not with a new one.

    wandb's is still open, Trackio finds its own by name. MLflow's has ended.
    """
    last = None
    if tracker == "mlflow" and "mlflow" in sys.modules and "MLFLOW_RUN_ID" not in os.environ:
        last = sys.modules["mlflow"].last_active_run()
    if last is None:
        yield
        return
    os.environ["MLFLOW_RUN_ID"] = last.info.run_id
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
