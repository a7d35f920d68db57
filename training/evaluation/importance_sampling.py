"""The score of a gated adapter, estimated from answers of the base: nothing is decoded.

A gated adapter differs from the base at decision points only. So the probability of a whole base
answer y changes by a product of few factors, its weight

    w(y) = product over t with H_t > tau of  p_adapter(y_t) / p_base(y_t)

and the mean of w(y) * right(y) over the base's answers estimates how often the adapter is right
(importance sampling). Both probabilities are taken at the temperature of answers, T; a temperature
of the gate, c, makes the adapter's T * c. Another threshold changes which t belong to the product.

The mean of w alone must be 1. It falls below where the adapter prefers tokens that the base's
answers do not contain. What follows those is unknown: it may be ruin, or a better way to answer. It
rises above where a few heavy answers decide. In both cases the estimate cannot be trusted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.statistics import Estimate, mean

CAP = 5.0  # on log w: one answer in a hundred must not decide
MIN_WEIGHT, MAX_WEIGHT = 0.8, 1.25  # of the mean weight, in a trusted estimate
MIN_EFFECTIVE = 0.2  # of the effective share, in a trusted estimate


class WeightedScore(NamedTuple):
    """An estimated pass@1 and what it rests on."""

    score: Estimate
    gain: Estimate  # over the base, on the same answers
    mean_weight: float  # 1 in expectation
    effective: float  # (sum w)^2 / (n sum w^2), mean over problems: the share of answers that count

    @property
    def trusted(self) -> bool:
        """Whether the weights carry the estimate; where not, decoding must tell."""
        return MIN_WEIGHT <= self.mean_weight <= MAX_WEIGHT and self.effective >= MIN_EFFECTIVE

    @property
    def at_least(self) -> float:
        """The gain less its standard error: by this candidates are ranked.

        The more an adapter has moved, the more few answers weigh and the wider the estimate; of
        many such, the highest is high by chance.
        """
        return self.gain.value - (0.0 if math.isnan(self.gain.stderr) else self.gain.stderr)

    def __str__(self) -> str:
        if not self.trusted:
            return f"not known before decoding (mean weight {self.mean_weight:.2f})"
        return f"{self.score} (gain {self.gain.signed})"


def weighted_score(
    log_weights: npt.ArrayLike, rewards: npt.ArrayLike, problems: npt.ArrayLike
) -> WeightedScore:
    """Estimate how often an adapter is right, from answers of the base.

    Args:
        log_weights: [N] log w of each answer; 0 where it has no decision point.
        rewards: [N] 0 or 1; NaN: not graded. Such answers are left out.
        problems: [N] the problem each answer belongs to. Problems count alike.
    """
    right = np.asarray(rewards, dtype=np.float64)
    graded = ~np.isnan(right)
    right, problem = right[graded], np.asarray(problems)[graded]
    w = np.exp(np.minimum(np.asarray(log_weights, dtype=np.float64)[graded], CAP))
    groups = [problem == one for one in np.unique(problem)]

    def by_problem(values: npt.NDArray[np.float64]) -> list[float]:
        return [float(values[rows].mean()) for rows in groups]

    weights = np.array(by_problem(w))
    return WeightedScore(
        mean(by_problem(w * right)),
        mean(by_problem((w - 1) * right)),
        float(weights.mean()),
        float((weights**2 / np.array(by_problem(w**2))).mean()),
    )
