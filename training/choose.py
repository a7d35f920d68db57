"""Stage 6, choose: the checkpoint and the gate that score best on held-out problems.

An adapter that is served gated is chosen by estimates (training/heldout.py): every checkpoint with
every threshold and temperature of the gate has one, and only the best are decoded to confirm it.
Where the weights behind an estimate say that it cannot be trusted, and the candidate may still be
the best, it is decoded too. An adapter that is served always-on has no estimates: every checkpoint
is decoded.

A score that was used to choose is optimistic; what the adapter is worth is for `training.evaluate`
to say on fresh problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from adapters.manifest import Gate
from training.estimate import WeightedScore
from training.generate import Applied
from training.results import Result


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
    always: Result
    gated: Result
    decoded: list[Result]
    candidates: Sequence[Candidate] = ()  # with their estimates

    @property
    def results(self) -> tuple[Result, Result, Result]:
        return self.base, self.always, self.gated

    @property
    def tokens(self) -> int:
        """Generated for the choice, the base's answers aside."""
        asked = {id(one): one for one in (*self.decoded, self.always, self.gated)}
        return sum(int(one.tokens.sum()) for one in asked.values())


class Ask(Protocol):
    """Has held-out problems answered by an adapter, or by the base (None)."""

    def __call__(self, label: str, applied: Applied | None) -> Result: ...


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


def choose_gated(candidates: Sequence[Candidate], count: int, base: Result, ask: Ask) -> Choice:
    """Decode the shortlist behind its gates; keep the best answer rate, the first of equals."""
    listed = shortlist(candidates, count)
    decoded = [ask(one.label, Applied.behind(one.checkpoint, one.gate)) for one in listed]
    kept = best_of(decoded)
    checkpoint, gate = listed[kept].checkpoint, listed[kept].gate
    always = ask(f"{checkpoint.name} always", Applied(checkpoint))
    return Choice(checkpoint, gate, base, always, decoded[kept], decoded, candidates)


def choose_always(checkpoints: Sequence[Path], gate: Gate, base: Result, ask: Ask) -> Choice:
    """Decode every checkpoint always-on; keep the best, the first of equals."""
    decoded = [ask(f"{path.name} always", Applied(path)) for path in checkpoints]
    kept = best_of(decoded)
    best = checkpoints[kept]
    gated = ask(f"{best.name} at {gate.tau:.3f}", Applied.behind(best, gate))
    return Choice(best, gate, base, decoded[kept], gated, decoded)


def best_estimated(candidates: Sequence[Candidate]) -> Candidate:
    """The best trusted candidate, or the best of all where none is trusted."""
    return shortlist(candidates, 1)[0]


def best_of(results: Sequence[Result]) -> int:
    """The place of the highest pass@1, the first one of equals."""
    return max(range(len(results)), key=lambda place: results[place].pass_at_1.value)
