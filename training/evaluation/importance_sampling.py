"""The score of a gated adapter, estimated from answers of the base: nothing is decoded.

A gated adapter differs from the base at decision points only. So the probability of a whole base
answer y changes by a product of few factors, its weight

    w(y) = product over t with H_t > tau of  p_adapter(y_t) / p_base(y_t)

and the mean of right(y) over the base's answers, weighted by w(y), estimates how often the adapter
is right (self-normalised importance sampling: sum of w * right over sum of w). Both probabilities
are taken at the temperature of answers, T; a temperature of the gate, c, makes the adapter's T * c.
Another threshold changes which t belong to the product.

The mean of w must be 1 but for chance, and chance moves it and the mean of w * right alike: hence
the division. It falls far below where the adapter prefers tokens that the base's answers do not
contain. What follows those is unknown: it may be ruin, or a better way to answer. So the estimate
cannot be trusted, and it is not divided by less than MIN_WEIGHT: what is lost beyond counts as
wrong.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.evaluation.statistics import Estimate, mean

ESTIMATOR = "self-normalised"  # another one makes other files in a run folder
CAP = 5.0  # on log w: one answer in a hundred must not decide
LEAST = -100.0  # of log w, so that a sum of weights is never 0
MIN_WEIGHT = 0.8  # of the mean weight, in a trusted estimate
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
        return self.mean_weight >= MIN_WEIGHT and self.effective >= MIN_EFFECTIVE

    @property
    def at_least(self) -> float:
        """The gain less its standard error: by this candidates are ranked.

        The more an adapter has moved, the more few answers weigh and the wider the estimate; of
        many such, the highest is high by chance.
        """
        return self.gain.value - _or_zero(self.gain.stderr)

    @property
    def at_most(self) -> float:
        """The score and its standard error, were all right that the weights do not account for."""
        accounted = self.score.value * _divisor(self.mean_weight)
        return accounted + max(0.0, 1 - self.mean_weight) + _or_zero(self.score.stderr)

    def __str__(self) -> str:
        if not self.trusted:
            return f"not known before decoding (mean weight {self.mean_weight:.2f})"
        return f"{self.score} (gain {self.gain.signed})"


def _divisor(mean_weight: float) -> float:
    """What the mean of w * right is divided by."""
    return max(mean_weight, MIN_WEIGHT)


def _or_zero(stderr: float) -> float:
    """A standard error; that of a single problem is not known and counts as 0."""
    return 0.0 if math.isnan(stderr) else stderr


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
    w = np.exp(np.clip(np.asarray(log_weights, dtype=np.float64)[graded], LEAST, CAP))
    groups = [problem == one for one in np.unique(problem)]

    def by_problem(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([values[rows].mean() for rows in groups])

    weights = by_problem(w)
    mean_weight = float(weights.mean())
    divisor = _divisor(mean_weight)
    score = float(by_problem(w * right).mean()) / divisor
    # What each problem adds, to the first order where the divisor is itself a mean: of these the
    # errors are taken.
    slope = score if divisor == mean_weight else 0.0
    gains = by_problem((w / divisor - 1) * (right - slope))
    return WeightedScore(
        mean(by_problem(right) + gains),
        mean(gains),
        mean_weight,
        float((weights**2 / by_problem(w**2)).mean()),
    )
