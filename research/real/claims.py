"""Each claim beside what was measured, by base and task: holds, holds in part, does not hold,
cannot tell.

A figure decides only where it lies two standard errors from the claim's bound; between, it cannot
tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from research.real import plan
from research.real.tables import (
    ALONE_ROW,
    BASE_ROW,
    GATED_ROW,
    GREEDY_ROW,
    GRPO_ROW,
    Results,
    beyond,
    lines,
)
from training.evaluation.statistics import Estimate

HOLDS, PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "cannot tell"
SURE = 2.0  # standard errors


class Claim(NamedTuple):
    """One claim, what was measured for it, and the verdict on each base and task."""

    text: str
    measured: list[str]  # a line for each base and task
    verdicts: dict[str, str]  # "BASE, TASK" -> verdict

    @property
    def verdict(self) -> str:
        """Of all bases and tasks together."""
        counts = Counter(self.verdicts.values())
        if set(counts) <= {OPEN}:
            return OPEN
        if set(counts) == {HOLDS}:
            return HOLDS
        return FAILS if set(counts) <= {FAILS, OPEN} else PART


def above(found: Estimate | dict[str, float], bound: float) -> str:
    """Is the figure above `bound`, or below it, or is it not known?"""
    value, stderr = (
        (found["value"], found["stderr"]) if isinstance(found, dict) else (found[0], found[1])
    )
    if value - SURE * stderr > bound:
        return HOLDS
    return FAILS if value + SURE * stderr < bound else OPEN


def both(verdicts: Sequence[str]) -> str:
    """Of a claim with several parts."""
    if FAILS in verdicts:
        return PART if HOLDS in verdicts else FAILS
    return OPEN if OPEN in verdicts else HOLDS


def judge(bases: dict[str, Results]) -> list[Claim]:
    """The five claims of the paper, and ours."""
    return [
        gains(bases),
        sparse(bases),
        uncertain(bases),
        causal(bases),
        low_dimensional(bases),
        no_loop(bases),
    ]


def _each(bases: dict[str, Results]) -> list[tuple[str, Results, str]]:
    """(name, results, task) of each base and task."""
    return [
        (f"{base}, {task}", results, task)
        for base, results in bases.items()
        for task in results.tasks
    ]


def gains(bases: dict[str, Results]) -> Claim:
    """Ours: a gain over the base, over greedy decoding and over the gate alone."""
    measured, verdicts = [], {}
    for name, results, task in _each(bases):
        line = lines(results, task).get(GATED_ROW)
        if line is None or not {BASE_ROW, GREEDY_ROW} <= line.gains.keys():
            continue
        rivals = [one for one in (BASE_ROW, GREEDY_ROW, ALONE_ROW) if one in line.gains]
        told = ", ".join(f"to {one} {line.gains[one].signed}" for one in rivals)
        measured.append(f"{name}: {line.score} gated; {told}")
        verdicts[name] = both([above(line.gains[one], 0) for one in rivals])
    return Claim(
        "The gated adapter beats the base, its greedy answers and the base behind the same gate, "
        "each by more than two standard errors.",
        measured,
        verdicts,
    )


def _looks(bases: dict[str, Results], kind: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, report) of footprints or interventions."""
    return [
        (name, one)
        for name, results, task in _each(bases)
        for one in results.of(kind, f"{plan.METHOD}/{task}")
    ]


def sparse(bases: dict[str, Results]) -> Claim:
    """Claim 1, of the adapter at every step."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.FOOTPRINT):
        measured.append(
            f"{name}: {one['unshifted']['value']:.1%} unshifted, {one['reranked']['value']:.1%} "
            f"reranked, {one['shifted']['value']:.2%} shifted"
        )
        verdicts[name] = above(one["unshifted"], 0.95)
    return Claim(
        "Few choices change: at least 95 % of positions are unshifted (paper: 95.9-99.0 %).",
        measured,
        verdicts,
    )


def uncertain(bases: dict[str, Results]) -> Claim:
    """Claim 2."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.FOOTPRINT):
        found = one["entropy_ratio"]
        if found is None:
            continue
        measured.append(f"{name}: {found['value']:.1f} ± {found['stderr']:.1f} times")
        verdicts[name] = above(found, 5)
    return Claim(
        "They change where the base is uncertain: its entropy there is at least 5 times the "
        "answer's mean (paper: 5-12).",
        measured,
        verdicts,
    )


def causal(bases: dict[str, Results]) -> Claim:
    """Claim 3: the adapter's token at uncertain positions recovers its gain, at random ones not."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.INTERVENE):
        scores = {
            row: Estimate(r["pass@1"], r["stderr"], 0)
            for row, r in one["results"].items()
            if row in ("base", "tuned", "oracle", "random", "entropy")
        }
        told = ", ".join(f"{row} {score}" for row, score in scores.items())
        measured.append(f"{name}: {told}")
        gain = scores["tuned"].value - scores["base"].value
        noise = (scores["tuned"].stderr ** 2 + scores["base"].stderr ** 2) ** 0.5
        if gain < SURE * noise:
            verdicts[name] = OPEN  # there is no gain to recover
            continue
        recovered = {
            row: (scores[row].value - scores["base"].value) / gain for row in ("entropy", "random")
        }
        parts = (recovered["entropy"] >= 0.8, recovered["random"] <= 0.2)
        verdicts[name] = HOLDS if all(parts) else PART if any(parts) else FAILS
    return Claim(
        "Those positions are the cause: the adapter's token where entropy exceeds tau recovers "
        "80 % of its gain, at random positions at most 20 %.",
        measured,
        verdicts,
    )


def low_dimensional(bases: dict[str, Results]) -> Claim:
    """Claim 4."""
    measured, verdicts = [], {}
    for name, results, task in _each(bases):
        found = lines(results, task)
        parts = [found[one] for one in ("rank 1", "o_proj alone") if one in found]
        whole = found.get(GATED_ROW)
        if not parts or whole is None or BASE_ROW not in whole.gains:
            continue
        measured.append(
            f"{name}: recipe {whole.gains[BASE_ROW].signed}; "
            + ", ".join(f"{one.label} {one.gains[BASE_ROW].signed}" for one in parts)
        )
        if above(whole.gains[BASE_ROW], 0) != HOLDS:
            verdicts[name] = OPEN
            continue
        kept = [beyond(results, task, one.label, 0.8, GATED_ROW) for one in parts]
        verdicts[name] = both([above(one, 0) for one in kept])
    return Claim(
        "The change is low-dimensional: rank 1, or o_proj alone, keeps 80 % of the gain.",
        measured,
        verdicts,
    )


def no_loop(bases: dict[str, Results]) -> Claim:
    """Claim 5, with what users can afford: a tenth of the generated tokens."""
    measured, verdicts = [], {}
    for name, results, task in _each(bases):
        found = lines(results, task)
        ours, theirs = found.get(GATED_ROW), found.get(GRPO_ROW)
        if ours is None or theirs is None or BASE_ROW not in ours.gains:
            continue
        costs = [
            [one["cost"]["tokens"] for one in results.of(kind, variant)]
            for kind, variant in ((plan.GRPO, ""), (plan.FIT, plan.METHOD))
        ]
        times = (sum(costs[0]) / len(costs[0])) / (sum(costs[1]) / len(costs[1]))
        measured.append(
            f"{name}: gated {ours.gains[BASE_ROW].signed}, GRPO {theirs.gains[BASE_ROW].signed} "
            f"with {times:.1f} times the generated tokens"
        )
        if above(theirs.gains[BASE_ROW], 0) != HOLDS:
            verdicts[name] = OPEN
            continue
        enough = above(beyond(results, task, GATED_ROW, 0.9, GRPO_ROW), 0)
        verdicts[name] = both([enough, HOLDS if times >= 10 else FAILS])
    return Claim(
        "No RL loop is needed: 90 % of GRPO's gain with at most a tenth of its generated tokens.",
        measured,
        verdicts,
    )
