"""Experiment trackers: what a training run sends to TensorBoard, Weights & Biases, Trackio, MLflow.

    reasonmaxxer fit ... --report-to tensorboard
    tensorboard --logdir runs/fit/NAME

The callbacks are transformers' own. They get the loss, the learning rate and the norm of the
gradient; and from here, once, what is known before training, and the held-out estimate of each
checkpoint.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

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
