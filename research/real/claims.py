"""Each claim beside what was measured, by base and task: holds, holds in part, does not hold,
cannot tell.

A figure decides only where it lies two standard errors from the claim's bound; between, it cannot
tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from research.real import plan, ways
from research.real.tables import AGAINST, Results, gain, lines
from research.real.ways import Way
from training.evaluation.statistics import Estimate, Floats, contrast_over_seeds, over_seeds

HOLDS, PART, FAILS, OPEN = "holds", "holds in part", "does not hold", "cannot tell"
SURE = 2.0  # standard errors
# Where the adapter's token is taken -> the share of its gain: at least, and at most.
RECOVERED = {"entropy": 0.8, "random": 0.2}


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


Measured = tuple[list[str], dict[str, str]]  # of a claim


def judge(bases: dict[str, Results]) -> list[Claim]:
    """Our two claims, and the five of the paper."""
    return [Claim(text, *measure(bases)) for measure, text in CLAIMS.items()]


def _each(bases: dict[str, Results]) -> list[tuple[str, Results, str]]:
    """(name, results, task) of each base and task."""
    return [
        (f"{base}, {task}", results, task)
        for base, results in bases.items()
        for task in results.tasks
    ]


def gains_of(way: Way) -> Callable[[dict[str, Results]], Measured]:
    """Ours: a gain over the base, over greedy decoding and over the gate alone."""

    def gains(bases: dict[str, Results]) -> Measured:
        measured, verdicts = [], {}
        for name, results, task in _each(bases):
            line = lines(results, task).get(way.name)
            if line is None or not {one.name for one in AGAINST} <= line.gains.keys():
                continue
            told = ", ".join(f"to {one.label} {line.gains[one.name].signed}" for one in AGAINST)
            measured.append(f"{name}: {line.score}; {told}")
            verdicts[name] = both([above(line.gains[one.name], 0) for one in AGAINST])
        return measured, verdicts

    return gains


def _looks(bases: dict[str, Results], kind: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, report) of footprints or interventions."""
    return [(name, one) for name, results, task in _each(bases) for one in results.of(kind, task)]


def sparse(bases: dict[str, Results]) -> Measured:
    """Claim 1, of the adapter at every step."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.FOOTPRINT):
        measured.append(
            f"{name}: {one['unshifted']['value']:.1%} unshifted, {one['reranked']['value']:.1%} "
            f"reranked, {one['shifted']['value']:.2%} shifted"
        )
        verdicts[name] = above(one["unshifted"], 0.95)
    return measured, verdicts


def uncertain(bases: dict[str, Results]) -> Measured:
    """Claim 2."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.FOOTPRINT):
        found = one["entropy_ratio"]
        if found is None:
            continue
        measured.append(f"{name}: {found['value']:.1f} ± {found['stderr']:.1f} times")
        verdicts[name] = above(found, 5)
    return measured, verdicts


def causal(bases: dict[str, Results]) -> Measured:
    """Claim 3: the adapter's token at uncertain positions recovers its gain, at random ones not."""
    measured, verdicts = [], {}
    for name, one in _looks(bases, plan.INTERVENE):
        rows = {
            row: np.array([one["results"][row]["scores"]], dtype=np.float64)
            for row in ("base", "tuned", "oracle", "random", "entropy")
        }

        def beyond(row: str, share: float, rows: dict[str, Floats] = rows) -> Estimate:
            """The gain of a row over the base, less a share of the tuned model's."""
            base, tuned = rows["base"], rows["tuned"]
            return contrast_over_seeds((1, rows[row]), (-share, tuned), (share - 1, base))

        told = ", ".join(f"{row} {over_seeds(scores)}" for row, scores in rows.items())
        less = ", ".join(
            f"{row} less {share:.0%} of the adapter's gain {beyond(row, share).signed}"
            for row, share in RECOVERED.items()
        )
        measured.append(f"{name}: {told}; {less}")
        if above(beyond("tuned", 0), 0) != HOLDS:
            verdicts[name] = OPEN  # there is no gain to recover
            continue
        entropy, random = (above(beyond(row, share), 0) for row, share in RECOVERED.items())
        verdicts[name] = both([entropy, {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[random]])
    return measured, verdicts


def low_dimensional(bases: dict[str, Results]) -> Measured:
    """Claim 4."""
    measured, verdicts = [], {}
    for name, results, task in _each(bases):
        whole = gain(results, task, ways.GATED, ways.BASE)
        gains = {way: gain(results, task, way, ways.BASE) for way in (ways.RANK_1, ways.O_ONLY)}
        parts = {way: one for way, one in gains.items() if one is not None}
        if len(parts) < len(gains) or whole is None:
            continue
        measured.append(
            f"{name}: recipe {whole.signed}; "
            + ", ".join(f"{way.label} {one.signed}" for way, one in parts.items())
        )
        if above(whole, 0) != HOLDS:
            verdicts[name] = OPEN
            continue
        kept = [gain(results, task, way, ways.GATED, 0.8) for way in parts]
        verdicts[name] = both([above(one, 0) for one in kept if one is not None])
    return measured, verdicts


def no_loop(bases: dict[str, Results]) -> Measured:
    """Claim 5, with what users can afford: a tenth of the generated tokens."""
    measured, verdicts = [], {}
    for name, results, task in _each(bases):
        ours = gain(results, task, ways.GATED, ways.BASE)
        theirs = gain(results, task, ways.REINFORCED, ways.BASE)
        beyond = gain(results, task, ways.GATED, ways.REINFORCED, 0.9)
        costs = [
            [one["cost"]["tokens"] for one in results.fits(trained, task)]
            for trained in (ways.GRPO, ways.METHOD)
        ]
        if ours is None or theirs is None or beyond is None or not all(costs):
            continue
        times = (sum(costs[0]) / len(costs[0])) / (sum(costs[1]) / len(costs[1]))
        measured.append(
            f"{name}: gated {ours.signed}, GRPO {theirs.signed} "
            f"with {times:.1f} times the generated tokens"
        )
        rising = not all(one["stopped_rising"] for one in results.fits(ways.GRPO, task))
        if above(theirs, 0) != HOLDS or rising:
            verdicts[name] = OPEN  # there is no gain to compare with, or it was cut short
            continue
        verdicts[name] = both([above(beyond, 0), HOLDS if times >= 10 else FAILS])
    return measured, verdicts


CLAIMS: dict[Callable[[dict[str, Results]], Measured], str] = {
    gains_of(ways.GATED): (
        "The gated adapter beats the base, its greedy answers and the base behind the same gate, "
        "each by more than two standard errors."
    ),
    gains_of(ways.MEAN): "So does the mean of the gated adapters of all seeds, as one adapter.",
    sparse: "Few choices change: at least 95 % of positions are unshifted (paper: 95.9-99.0 %).",
    uncertain: (
        "They change where the base is uncertain: its entropy there is at least 5 times the "
        "answer's mean (paper: 5-12)."
    ),
    causal: (
        "Those positions are the cause: the adapter's token where entropy exceeds tau recovers "
        "80 % of its gain, at random positions at most 20 %."
    ),
    low_dimensional: (
        "The change is low-dimensional: rank 1, or o_proj alone, keeps 80 % of the gain."
    ),
    no_loop: (
        "No RL loop is needed: 90 % of GRPO's gain with at most a tenth of its generated tokens."
    ),
}
