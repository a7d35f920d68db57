"""Graded answers of one model, and what they say: scores, tables, paired differences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapters.manifest import Mode, Score
from training.evaluation.statistics import (
    Estimate,
    Floats,
    graded_mean,
    mean,
    paired_difference,
    pass_at_1,
    pass_at_k,
    per_problem,
    ratio,
    without_nan,
)


class Reply(NamedTuple):
    """One answer of a model, not graded yet."""

    text: str
    tokens: int  # generated, with the end-of-sequence token
    finish_reason: str  # "stop" or "length"
    gated: int = 0  # tokens sampled through the open gate


@dataclass(frozen=True)
class Result:
    """Graded answers of one model; every array is [problems, samples], in the problems' order.

    Attributes:
        correct: 1, 0, or NaN where the grader cannot tell; such answers count in no score.
        reasons: why it could not, and how often.
    """

    label: str
    mode: Mode
    source: str  # benchmark name or problems file
    temperature: float
    problem_ids: list[str]
    correct: npt.NDArray[np.float64] | npt.NDArray[np.bool_]
    boxed: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    gated: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    timed_out: int = 0
    sources: Sequence[str] = ()  # each problem's part of a mixture; empty: not a mixture
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many problems were answered."""
        return len(self.problem_ids)

    @property
    def samples(self) -> int:
        """How many answers each problem got."""
        return int(self.correct.shape[1])

    @property
    def scores(self) -> Floats:
        """The share of right answers to each problem, [problems]; NaN: none could be graded."""
        return graded_mean(self.correct)

    @property
    def not_graded(self) -> int:
        """How many answers the grader could not tell right from wrong."""
        return int(np.isnan(np.asarray(self.correct, dtype=np.float64)).sum())

    @property
    def pass_at_1(self) -> Estimate:
        """The share of right answers, a mean over problems."""
        return pass_at_1(self.correct)

    @property
    def stderr(self) -> float:
        """The standard error of pass@1, over problems."""
        return self.pass_at_1.stderr

    @property
    def boxed_rate(self) -> Estimate:
        """The share of answers with a complete, non-empty box."""
        return mean(per_problem(self.boxed))

    @property
    def mean_tokens(self) -> Estimate:
        """The mean length of an answer, in tokens."""
        return mean(per_problem(self.tokens))

    @property
    def truncated_rate(self) -> Estimate:
        """The share of answers that were cut off at the longest length."""
        return mean(per_problem(self.truncated))

    @property
    def gate_rate(self) -> Estimate:
        """The gate rate: gated tokens / generated tokens."""
        return ratio(self.gated.sum(-1), self.tokens.sum(-1))

    def by_source(self) -> dict[str, Estimate]:
        """pass@1 of each part of a mixture; empty where there are not several."""
        names = list(dict.fromkeys(self.sources))
        if len(names) < 2:
            return {}
        sources = np.array(self.sources)
        return {name: pass_at_1(self.correct[sources == name]) for name in names}

    def metrics(self, ks: Iterable[int] = ()) -> dict[str, Estimate]:
        """Metric -> estimate: pass@1, avg@K for K > 1 samples, pass@k for each of `ks`, the rest.

        Raises:
            ValueError: a k larger than the number of samples.
        """
        found = {"pass@1": self.pass_at_1}
        if self.samples > 1:
            found[f"avg@{self.samples}"] = self.pass_at_1
        found |= {f"pass@{k}": pass_at_k(self.correct, k) for k in sorted(set(ks) - {1})}
        return found | {
            "boxed_rate": self.boxed_rate,
            "mean_tokens": self.mean_tokens,
            "truncated_rate": self.truncated_rate,
            **({"gate_rate": self.gate_rate} if self.mode == "gated" else {}),
        }

    def against(self, other: Result) -> Estimate:
        """pass@1 of this minus that of `other`, paired by problem.

        Raises:
            ValueError: the two did not answer the same problems.
        """
        if self.problem_ids != other.problem_ids:
            raise ValueError(f"{self.label} and {other.label} answered different problems")
        return paired_difference(other.scores, self.scores)

    def to_scores(self, ks: Iterable[int] = ()) -> list[Score]:
        """The figures as a manifest keeps them."""
        return [
            Score(
                mode=self.mode,
                problems=self.source,
                metric=metric,
                value=estimate.value,
                stderr=without_nan(estimate.stderr),
                n=estimate.n,
                temperature=self.temperature,
            )
            for metric, estimate in self.metrics(ks).items()
            if not math.isnan(estimate.value)
        ]

    def report(self, ks: Iterable[int] = ()) -> dict[str, Any]:
        """The figures as JSON: {"pass@1": x, "stderr": s, "n": n, ...}."""
        values: dict[str, Any] = {}
        for metric, estimate in self.metrics(ks).items():
            values[metric] = estimate.value
            error = "stderr" if metric == "pass@1" else f"{metric}_stderr"
            values[error] = estimate.stderr
        parts = {
            name: {"pass@1": one.value, "stderr": one.stderr, "n": one.n}
            for name, one in self.by_source().items()
        }
        found: dict[str, Any] = without_nan(
            {
                "mode": self.mode,
                **values,
                "n": self.n,
                "samples": self.samples,
                "temperature": self.temperature,
                "timed_out": self.timed_out,
                "not_graded": self.not_graded,
                **({"not_graded_because": dict(self.reasons)} if self.reasons else {}),
                **({"by_source": parts} if parts else {}),
            }
        )
        return found


def compare(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each later result against the first, paired by problem, as JSON."""
    differences = []
    for result in results[1:]:
        gain = result.against(results[0])
        differences.append(
            {
                "of": result.label,
                "against": results[0].label,
                "pass@1": without_nan(gain.value),
                "stderr": without_nan(gain.stderr),
                "n": gain.n,
            }
        )
    return differences


def table(results: Sequence[Result], ks: Iterable[int] = ()) -> str:
    """The results as a table for a terminal, and the paired differences below it."""
    ks = sorted(set(ks))
    columns = list(dict.fromkeys(metric for result in results for metric in result.metrics(ks)))
    rows = [["", "n", "samples", *columns]]
    for result in results:
        cells = {
            metric: f"{estimate.value:.1f}" if metric == "mean_tokens" else str(estimate)
            for metric, estimate in result.metrics(ks).items()
        }
        figures = [cells.get(metric, "") for metric in columns]
        rows.append([result.label, str(result.n), str(result.samples), *figures])
    lines = _aligned(rows)
    for result in results[1:]:
        gain = result.against(results[0])
        lines.append(
            f"{result.label} - {results[0].label}: pass@1 {gain.signed} (paired, {gain.n} problems)"
        )
    lines += [line for result in results if (line := _not_graded(result))]
    parts = [result.by_source() for result in results]
    if parts and parts[0]:
        rows = [["pass@1 by source", "n", *(result.label for result in results)]]
        for name, first in parts[0].items():
            rows.append([name, str(first.n), *(str(part.get(name, "")) for part in parts)])
        lines += ["", *_aligned(rows)]
    return "\n".join(line.rstrip() for line in lines)


def _not_graded(result: Result) -> str:
    """A line on the answers that count in no score; empty: there are none."""
    if not result.not_graded:
        return ""
    reasons = Counter(result.reasons).most_common(3)
    because = "; ".join(f"{count}: {reason}" for reason, count in reasons)
    return (
        f"{result.label}: {result.not_graded} of {result.correct.size} answers could not be graded "
        f"and are left out{f' ({because})' if because else ''}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with columns of equal width, the first underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
