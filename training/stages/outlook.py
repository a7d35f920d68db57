"""Is it worth going on? What the base's answers say before anything is trained.

    outlook: one rollout 0.435 ± 0.039, best of 8 0.875 ± 0.048, 41 of 48 problems are mixed, 20% of
    the rollouts are cut off; held out, temperature 0 gains -0.313 ± 0.187; 52% of the uncertainty
    lies at decision points. Worth training.

The method moves answers from those that the base sometimes gives to those that are right. So it
needs problems that are sometimes right (mixed), room between one sample and the best of several
(pass@k), and uncertainty that lies at few tokens. The rollouts tell of these; they are many. Where
temperature 0 alone closes much of that room on the held-out problems, it is the cheaper way, and
the log says so. Nothing here stops a run.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapters.files import write_json
from adapters.manifest import Gate
from training.evaluation.statistics import (
    Estimate,
    graded_mean,
    paired_difference,
    pass_at_1,
    pass_at_k,
    without_nan,
)
from training.run import Run
from training.stages.score import Rollouts
from training.stages.verify import VerifiedRollouts

logger = logging.getLogger("training.fit")

FILE = "outlook.json"
FEWEST_MIXED = 20  # problems with right and wrong rollouts
LEAST_ROOM = 0.1  # pass@k above pass@1
GREEDY_SHARE = 0.5  # of the room that temperature 0 closes
MOST_CUT = 0.25  # of the rollouts


class Outlook(NamedTuple):
    """Figures of the base's rollouts, and of its answers to the held-out problems."""

    one: Estimate  # pass@1 of the rollouts
    best: Estimate  # pass@k of the rollouts
    k: int
    greedy: Estimate  # held out, pass@1 at temperature 0
    greedy_gain: Estimate  # this less pass@1 at the temperature of answers, paired by problem
    mixed: int  # problems with right and wrong rollouts
    asked: int
    uncertainty: float  # share of the entropy that lies at decision points, in mixed problems
    cut: float  # share of the rollouts that reached the longest answer

    @property
    def room(self) -> float:
        """What a perfect choice among the base's own answers would gain."""
        return self.best.value - self.one.value

    @property
    def advice(self) -> list[str]:
        """What speaks against going on as planned; empty: nothing does."""
        found = []
        if self.mixed < FEWEST_MIXED:
            found.append(
                f"only {self.mixed} of {self.asked} problems have right and wrong rollouts: give "
                "more problems, nearer to what the base can do"
            )
        if self.cut > MOST_CUT:
            found.append(
                f"{self.cut:.0%} of the rollouts were cut off and count as wrong, so that the fit "
                "teaches short answers first: raise --sampling.max-tokens"
            )
        if self.room < LEAST_ROOM:
            found.append(
                f"the best of {self.k} answers is right on {self.best.value:.3f} of the problems, "
                f"one answer on {self.one.value:.3f}: there is little for an adapter to choose "
                "from; take other problems or a larger base"
            )
        elif self.greedy_gain.value > max(GREEDY_SHARE * self.room, 2 * self.greedy_gain.stderr):
            found.append(
                f"temperature 0 alone gains {self.greedy_gain.signed}, most of the room of "
                f"{self.room:.3f}: try it first, and compare the adapter with it"
            )
        return found

    def __str__(self) -> str:
        return (
            f"one rollout {self.one}, best of {self.k} {self.best}, {self.mixed} of {self.asked} "
            f"problems are mixed, {self.cut:.0%} of the rollouts are cut off; held out, "
            f"temperature 0 gains {self.greedy_gain.signed}; "
            f"{self.uncertainty:.0%} of the uncertainty lies at decision points"
        )

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "pass@1": self.one.value,
            f"pass@{self.k}": self.best.value,
            "pass@1, temperature 0": self.greedy.value,
            "gain of temperature 0": self.greedy_gain.value,
            "gain_stderr": self.greedy_gain.stderr,
            "mixed": self.mixed,
            "asked": self.asked,
            "uncertainty at decision points": self.uncertainty,
            "cut off": self.cut,
            "advice": self.advice,
        }


def look_ahead(
    run: Run, rollouts: Rollouts, heldout: Rollouts, greedy: VerifiedRollouts, gate: Gate
) -> Outlook:
    """Log the outlook, and write it into the run folder.

    Args:
        greedy: the base's answers to the held-out problems at temperature 0.
    """
    rewards = by_problem(rollouts)
    k = rewards.shape[1]
    outlook = Outlook(
        one=pass_at_1(rewards),
        best=pass_at_k(rewards, k),
        k=k,
        greedy=pass_at_1(by_problem(greedy)),
        greedy_gain=paired_difference(graded_mean(by_problem(heldout)), by_problem(greedy)[:, 0]),
        mixed=len(mixed := mixed_problems(rollouts)),
        asked=len(rollouts.problems),
        uncertainty=share_at_decisions(rollouts, mixed, gate.tau),
        cut=share_cut(rollouts),
    )
    logger.info("outlook: %s. %s", outlook, "" if outlook.advice else "Worth training.")
    for sentence in outlook.advice:
        logger.warning("outlook: %s", sentence)
    write_json(run.config.run_dir / FILE, without_nan(outlook.report()))
    return outlook


def by_problem(answers: VerifiedRollouts) -> npt.NDArray[np.float64]:
    """[problems, samples]; NaN where the grader cannot tell."""
    return answers.rewards.reshape(len(answers.problems), -1)


def mixed_problems(rollouts: VerifiedRollouts) -> set[int]:
    """Those that the base solved sometimes."""
    rewards = by_problem(rollouts)
    right, wrong = (rewards == 1).any(axis=1), (rewards == 0).any(axis=1)
    return {int(place) for place in np.flatnonzero(right & wrong)}


def share_cut(rollouts: Rollouts) -> float:
    """Rollouts that reached the longest answer / all."""
    reasons = rollouts.table["finish_reason"].to_pylist()
    return reasons.count("length") / len(reasons)


def share_at_decisions(rollouts: Rollouts, mixed: set[int], tau: float) -> float:
    """Entropy above `tau` / all entropy, of the rollouts of these problems; 0: there are none."""
    places = rollouts.table["problem"].to_pylist()
    found = [h for h, place in zip(rollouts.entropies, places, strict=True) if place in mixed]
    if not found:
        return 0.0
    entropies = np.concatenate(found).astype(np.float64)
    return float(entropies[entropies > tau].sum() / max(entropies.sum(), 1e-12))
