"""Held-out answers of the base, and what they say of an adapter without asking it anything.

The base answers the held-out problems once. For each checkpoint the adapter runs at the decision
points of those answers, a few per cent of their tokens. Every combination of threshold and
temperature of the gate gets its estimate from the same pass (`importance_sampling.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from adapters.gate import opens
from training.base_cache import Budget, CacheStore
from training.decision_points import Points, layer_windows, log_probs
from training.evaluation.importance_sampling import WeightedScore, weighted_score


class Setting(NamedTuple):
    """How an adapter may be served: the gate's threshold and its temperature."""

    tau: float  # nats
    temperature: float = 1.0


class Answers(NamedTuple):
    """Graded answers with the base's entropies, N of them."""

    problems: npt.NDArray[np.int64]  # [N] the problem each answer belongs to
    prompts: list[list[int]]  # token ids
    tokens: list[list[int]]  # token ids, [T] each
    rewards: npt.NDArray[np.float64]  # [N] 0 or 1; NaN: not graded
    entropies: list[npt.NDArray[np.float32]]  # N arrays [T], nats


class HeldoutScorer:
    """Estimates gated scores of a model's adapter from the base's answers.

    Args:
        model: a PeftModel; its base computes the caches.
        answers: of the base, drawn at `temperature` without top_p and top_k.
        settings: those to be estimated.
        temperature: of answers.
        budget, folder, keep: of the base's caches (`CacheStore`).
    """

    def __init__(
        self,
        model: Any,
        answers: Answers,
        settings: Sequence[Setting],
        temperature: float,
        budget: Budget,
        folder: Path,
        keep: bool = False,
    ) -> None:
        self._answers, self._settings, self._temperature = answers, list(settings), temperature
        self._windows = layer_windows(model.config)
        lowest = min(setting.tau for setting in settings)
        opened = [opens(h, lowest) for h in answers.entropies]
        self._rows = [row for row, at in enumerate(opened) if at.any()]
        self._points = [
            Points.of(answers.prompts[row], answers.tokens[row], opened[row].tolist())
            for row in self._rows
        ]
        self._entropies = [answers.entropies[row][opened[row]] for row in self._rows]
        self._store = CacheStore(
            model,
            [answers.prompts[row] for row in self._rows],
            [answers.tokens[row] for row in self._rows],
            budget,
            folder,
            [points.reads for points in self._points],
            keep=keep,
        )
        self._store.fill("held-out base cache")
        with model.disable_adapter():
            self._base = self._log_probs(model, [temperature], "held-out base")[0]

    def _log_probs(
        self, model: Any, temperatures: Sequence[float], label: str | None = None
    ) -> list[list[torch.Tensor]]:
        return log_probs(model, self._points, self._store, self._windows, temperatures, label)

    def score(self, model: Any) -> dict[Setting, WeightedScore]:
        """The estimates of the adapter that `model` has on now."""
        cools = sorted({setting.temperature for setting in self._settings})
        log_p = dict(
            zip(cools, self._log_probs(model, [self._temperature * c for c in cools]), strict=True)
        )
        return {setting: self._weigh(setting, log_p) for setting in self._settings}

    def _weigh(self, setting: Setting, log_p: dict[float, list[torch.Tensor]]) -> WeightedScore:
        log_w = np.zeros(len(self._answers.rewards))
        adapted = log_p[setting.temperature]
        for place, row in enumerate(self._rows):
            at = opens(self._entropies[place], setting.tau)
            log_w[row] = (adapted[place] - self._base[place]).numpy()[at].sum()
        return weighted_score(log_w, self._answers.rewards, self._answers.problems)

    def close(self) -> None:
        """Give the memory and disk of the caches back."""
        self._store.close()
