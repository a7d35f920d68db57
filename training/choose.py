"""Stage 6, choose: the checkpoint and the gate that score best on held-out problems.

An adapter that is served gated is chosen by estimates (training/heldout.py): every checkpoint with
every threshold and temperature of the gate has one, and only the best are decoded to confirm it.
Where the weights behind an estimate say that it cannot be trusted, and the candidate may still be
the best, it is decoded too. An adapter that is served always-on has no estimates: every checkpoint
is decoded.

Decoding is a race: all answer a quarter of the held-out problems, those that are behind the leader
by more than the standard error of the paired difference drop out, the others go on to a half, and
those that are left to all. So most answers are spent on the candidates that are hard to tell apart.

A score that was used to choose is optimistic; what the adapter is worth is for `training.evaluate`
to say on fresh problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from adapters.manifest import Gate
from training.estimate import WeightedScore
from training.generate import Applied
from training.results import Result

SHARES = (0.25, 0.5, 1.0)  # of the held-out problems, after which candidates drop out
FEWEST = 10  # problems on which nobody drops out: they tell nothing, and small batches are slow


class Candidate(NamedTuple):
    """A checkpoint behind a gate, and its estimated score."""

    checkpoint: Path
    gate: Gate
    estimate: WeightedScore

    @property
    def label(self) -> str:
        text = f"{self.checkpoint.name} at {self.gate.tau:.3f}"
        cooled = self.gate.temperature != 1
        return f"{text}, temperature {self.gate.temperature:g}" if cooled else text

    @property
    def at_most(self) -> float:
        """What it may score at best: all that the weights do not account for might be right."""
        lost = max(0.0, 1 - self.estimate.mean_weight)
        return self.estimate.score.value + lost + self.estimate.score.stderr


class Choice(NamedTuple):
    """The checkpoint and the gate that are kept, and how they did on the held-out problems."""

    checkpoint: Path
    gate: Gate
    base: Result
    kept: Result
    decoded: list[Result]  # of every candidate that was decoded, as far as it came
    candidates: Sequence[Candidate] = ()  # with their estimates

    @property
    def tokens(self) -> int:
        """Generated for the choice, the base's answers aside."""
        return sum(int(one.tokens.sum()) for one in self.decoded)


class Ask(Protocol):
    """Has the first `count` held-out problems answered by an adapter."""

    def __call__(self, label: str, applied: Applied, count: int) -> Result: ...


def shortlist(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The candidates to decode: the `count` best, and as many doubtful ones that may be better.

    Best is by the estimated gain less its standard error. Ties go to the earlier candidate: an
    earlier checkpoint has moved less from the base.
    """
    ranked = sorted(candidates, key=lambda one: -one.estimate.at_least)
    trusted = [one for one in ranked if one.estimate.trusted]
    doubtful = [one for one in ranked if not one.estimate.trusted]
    if trusted:
        best = trusted[0].estimate.score.value
        doubtful = [one for one in doubtful if one.at_most > best]
    return trusted[:count] + doubtful[:count]


def choose_gated(
    candidates: Sequence[Candidate], count: int, problems: int, base: Result, ask: Ask
) -> Choice:
    """Decode the shortlist behind its gates; keep the best answer rate, the first of equals.

    Args:
        count: of candidates to decode.
        problems: held out.
    """
    listed = shortlist(candidates, count)
    entrants = [(one.label, Applied.behind(one.checkpoint, one.gate)) for one in listed]
    kept, decoded = race(entrants, problems, ask)
    checkpoint, gate = listed[kept].checkpoint, listed[kept].gate
    return Choice(checkpoint, gate, base, decoded[kept], decoded, candidates)


def choose_always(
    checkpoints: Sequence[Path], gate: Gate, problems: int, base: Result, ask: Ask
) -> Choice:
    """Decode every checkpoint always-on; keep the best, the first of equals."""
    entrants = [(f"{path.name} always", Applied(path)) for path in checkpoints]
    kept, decoded = race(entrants, problems, ask)
    return Choice(checkpoints[kept], gate, base, decoded[kept], decoded)


def race(
    entrants: Sequence[tuple[str, Applied]], problems: int, ask: Ask
) -> tuple[int, list[Result]]:
    """Decode `entrants` on more and more of the problems, dropping those that fall behind.

    Returns:
        The place of the winner, and each entrant's result as far as it came.
    """
    results: list[Result] = []
    running = list(range(len(entrants)))
    for share in SHARES:
        count = round(share * problems)
        if count < min(FEWEST, problems):
            continue
        found = {place: ask(*entrants[place], count) for place in running}
        results = [found.get(place, before) for place, before in enumerate(results)] or list(
            found.values()
        )
        best = running[best_of([found[place] for place in running])]
        running = [place for place in running if not is_behind(found[place], found[best])]
    return best, results


def is_behind(result: Result, leader: Result) -> bool:
    """Whether `result` is worse by more than the standard error of the paired difference."""
    gap = leader.against(result)
    return gap.value > (0.0 if math.isnan(gap.stderr) else gap.stderr)


def best_estimated(candidates: Sequence[Candidate]) -> Candidate:
    """The best trusted candidate, or the best of all where none is trusted."""
    return shortlist(candidates, 1)[0]


def best_of(results: Sequence[Result]) -> int:
    """The place of the highest pass@1, the first one of equals."""
    return max(range(len(results)), key=lambda place: results[place].pass_at_1.value)
