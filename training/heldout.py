"""Held-out answers of the base, and what they say of an adapter without asking it anything.

The base answers the held-out problems once. For each checkpoint the adapter runs at the decision
points of those answers, a few per cent of their tokens, and every combination of threshold and
temperature of the gate gets its estimate from the same pass (training/estimate.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from adapters.gate import opens
from training.base_cache import Budget, CacheStore
from training.decision_points import Batch, Points, layer_windows, make_batch, point_states
from training.estimate import WeightedScore, weighted_score
from training.model import head
from training.objective import token_log_probs

POINTS = 512  # of a batch: its logits are [POINTS, V] float32


class Setting(NamedTuple):
    """How an adapter may be served: the gate's threshold and its temperature."""

    tau: float  # nats
    temperature: float = 1.0


class Answers(NamedTuple):
    """Graded rollouts."""

    problems: npt.NDArray[np.int64]  # [N]
    prompts: list[list[int]]
    tokens: list[list[int]]
    rewards: npt.NDArray[np.float64]  # [N]
    entropies: list[npt.NDArray[np.float32]]  # N arrays, one nat figure a token


@torch.no_grad()
def point_log_probs(
    model: Any, batch: Batch, targets: Sequence[int], temperatures: Sequence[float] = (1.0,)
) -> torch.Tensor:
    """log p of the token that follows each decision point.

    Args:
        targets: [N] those tokens.

    Returns:
        [len(temperatures), N] float32, on the CPU.
    """
    logits = head(model)(point_states(model, batch)).float()
    tokens = torch.tensor(targets, device=logits.device)
    return torch.stack([token_log_probs(logits, tokens, t).cpu() for t in temperatures])


def batches_of(points: Sequence[Points]) -> Iterator[list[int]]:
    """Rollouts in batches of at most POINTS decision points (but one rollout at least)."""
    batch: list[int] = []
    count = 0
    for index in sorted(range(len(points)), key=lambda i: (points[i].reads, i)):
        if batch and count + len(points[index].ids) > POINTS:
            yield batch
            batch, count = [], 0
        batch.append(index)
        count += len(points[index].ids)
    if batch:
        yield batch


class HeldoutScorer:
    """Estimates gated scores of a model's adapter from the base's answers.

    Args:
        model: a PeftModel; its base computes the caches.
        answers: of the base, drawn at `temperature` without top_p and top_k.
        settings: those to be estimated.
        temperature: of answers.
    """

    def __init__(
        self,
        model: Any,
        answers: Answers,
        settings: Sequence[Setting],
        temperature: float,
        budget: Budget,
        folder: Path,
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
        tokens = [
            (answers.prompts[row] + answers.tokens[row])[: points.reads]
            for row, points in zip(self._rows, self._points, strict=True)
        ]
        self._store = CacheStore(model, tokens, budget, folder)
        self._store.fill("held-out base cache")
        with model.disable_adapter():
            self._base = self._log_probs(model, [temperature])[0]

    def _log_probs(self, model: Any, temperatures: Sequence[float]) -> list[list[np.ndarray]]:
        """By temperature and rollout of `_rows`: [n] log p of what follows its points."""
        found: list[list[Any]] = [[None] * len(self._points) for _ in temperatures]
        for batch in batches_of(self._points):
            points = [self._points[index] for index in batch]
            made = make_batch(points, self._store.get(batch), self._windows)
            targets = [token for one in points for token in one.targets]
            log_p = point_log_probs(model, made, targets, temperatures)
            sizes = [len(one.ids) for one in points]
            for which, values in enumerate(log_p):
                for index, part in zip(batch, values.split(sizes), strict=True):
                    found[which][index] = part.numpy().astype(np.float64)
        return found

    def score(self, model: Any) -> dict[Setting, WeightedScore]:
        """The estimates of the adapter that `model` has on now."""
        cools = sorted({setting.temperature for setting in self._settings})
        log_p = dict(
            zip(cools, self._log_probs(model, [self._temperature * c for c in cools]), strict=True)
        )
        return {setting: self._weigh(setting, log_p) for setting in self._settings}

    def _weigh(self, setting: Setting, log_p: dict[float, list[np.ndarray]]) -> WeightedScore:
        log_w = np.zeros(len(self._answers.rewards))
        adapted = log_p[setting.temperature]
        for place, row in enumerate(self._rows):
            at = opens(self._entropies[place], setting.tau)
            log_w[row] = (adapted[place] - self._base[place])[at].sum()
        return weighted_score(log_w, self._answers.rewards, self._answers.problems)

    def close(self) -> None:
        """Give memory and disk back."""
        self._store.close()
