"""What a set of graded answers says, with standard errors over problems.

Answers to one problem are not independent, so each problem is first reduced to one number (its mean
over samples, or its pass@k), and the standard error is that of the mean over problems. Everything
is a pure function of numpy arrays; `correct` is [P, K], problems by samples.

An answer that could not be graded is NaN in `correct`. It is left out: a problem's mean is that of
its other samples, and a problem without any has no score.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean over problems, with its standard error."""

    value: float
    stderr: float  # nan for a single problem
    n: int  # problems

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}"

    @property
    def signed(self) -> str:
        """As a difference is written: with its sign."""
        return f"{self.value:+.3f} ± {self.stderr:.3f}"


def without_nan(value: Any) -> Any:
    """`value` as JSON can hold it: null for NaN, the standard error of a single problem, say."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def mean(scores: npt.ArrayLike) -> Estimate:
    """Mean of one score per problem, [P], and its standard error s / sqrt(P), s with P - 1.

    Raises:
        ValueError: no scores, or not one-dimensional.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError("scores: one number for each of at least one problem is needed")
    n = values.size
    stderr = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Estimate(float(values.mean()), stderr, n)


def per_problem(values: npt.ArrayLike) -> Floats:
    """[P, K] -> [P]: the mean over each problem's samples."""
    return _matrix(values).mean(axis=1)


def graded_mean(correct: npt.ArrayLike) -> Floats:
    """[P, K] -> [P]: the share of right answers among those graded; NaN where there are none."""
    matrix = _matrix(correct)
    graded = ~np.isnan(matrix)
    counts = graded.sum(axis=1)
    right = np.where(graded, matrix, 0.0).sum(axis=1)
    return np.divide(right, counts, out=np.full(len(matrix), np.nan), where=counts > 0)


def graded(scores: npt.ArrayLike) -> Estimate:
    """Mean over the problems that have a score; NaN, of no problem, where none has."""
    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    return mean(values) if values.size else Estimate(math.nan, math.nan, 0)


def pass_at_1(correct: npt.ArrayLike) -> Estimate:
    """The share of right answers; over K samples also called avg@K."""
    return graded(graded_mean(correct))


def pass_at_k(correct: npt.ArrayLike, k: int) -> Estimate:
    """The chance that at least one of `k` samples is right, estimated without bias from K >= k.

    For c right among K: 1 - C(K - c, k) / C(K, k) (Chen et al. 2021, section 2.1).

    Raises:
        ValueError: k is not between 1 and K.
    """
    return graded(pass_at_k_scores(correct, k))


def pass_at_k_scores(correct: npt.ArrayLike, k: int) -> Floats:
    """[P, K] -> [P]: each problem's unbiased pass@k; NaN where fewer than k were graded."""
    matrix = _matrix(correct)
    if not 1 <= k <= matrix.shape[1]:
        raise ValueError(
            f"k: {k} is not between 1 and the {matrix.shape[1]} samples of each problem"
        )
    right = (matrix == 1).sum(axis=1)  # [P]
    samples = (~np.isnan(matrix)).sum(axis=1)  # [P]
    # Whole numbers until the one division: exact for any K. comb is 0 where k > K - c.
    return np.array(
        [
            1.0 - math.comb(int(n - c), k) / math.comb(int(n), k) if n >= k else math.nan
            for n, c in zip(samples, right, strict=True)
        ]
    )


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> Estimate:
    """Mean of b - a over the same problems ([P] each), with the paired standard error.

    Problems that have no score on one side are left out.

    Raises:
        ValueError: the two are not scores of the same problems.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"scores of {first.size} and {second.size} problems cannot be paired")
    return graded(second - first)


def ratio(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> Estimate:
    """Sum of parts / sum of wholes over problems ([P] each), such as gated / generated tokens.

    The standard error is the linearized one of a ratio of means.
    """
    return ratio_over_seeds(np.array([parts]), np.array([wholes]))


def over_seeds(scores: npt.ArrayLike) -> Estimate:
    """Mean of [seeds, problems] scores; the standard error has both sources.

    Problems are the same for all seeds: se^2 = se over problems of the seeds' mean, squared, plus
    the variance between the seeds' means over the number of seeds.
    """
    return contrast_over_seeds((1.0, scores))


def contrast_over_seeds(*terms: tuple[float, npt.ArrayLike]) -> Estimate:
    """Sum of weight x mean of [seeds, problems] scores, as `(1, tuned), (-1, control)`.

    Problems are the same in all terms and are paired; seeds are each term's own, so that the
    variance between them adds up. A term with one seed adds none: its spread is not known.
    """
    matrices = [np.asarray(scores, dtype=np.float64) for _, scores in terms]
    weights = [weight for weight, _ in terms]
    known = ~np.any([np.isnan(one).any(axis=0) for one in matrices], axis=0)
    matrices = [one[:, known] for one in matrices]
    weighed = zip(weights, matrices, strict=True)
    problems = mean(sum(weight * one.mean(axis=0) for weight, one in weighed))
    between = sum(w**2 * _between_seeds(one) for w, one in zip(weights, matrices, strict=True))
    return Estimate(problems.value, math.sqrt(problems.stderr**2 + between), problems.n)


def ratio_over_seeds(parts: npt.ArrayLike, wholes: npt.ArrayLike) -> Estimate:
    """Mean of parts / mean of wholes, such as the share of a gain; [seeds, problems] each.

    Problems are the same for all, seeds may differ. The standard error is the linearized one of a
    ratio of means, from the sources of `over_seeds`.
    """
    part, whole = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    value = float(part.mean() / whole.mean())
    problems = mean(part.mean(axis=0) - value * whole.mean(axis=0))
    between = _between_seeds(part) + value**2 * _between_seeds(whole)
    stderr = math.sqrt(problems.stderr**2 + between) / abs(float(whole.mean()))
    return Estimate(value, stderr, problems.n)


def _between_seeds(matrix: Floats) -> float:
    """[seeds, problems] -> what the seeds add to the squared standard error of the mean."""
    return float(matrix.mean(axis=1).var(ddof=1) / len(matrix)) if len(matrix) > 1 else 0.0


def _matrix(values: npt.ArrayLike) -> Floats:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError("a matrix of problems by samples is needed, at least 1 x 1")
    return matrix
