"""An alternating sum of numbers taken in increasing order. Right: the smallest one left."""

from random import Random
from typing import NamedTuple

from training.tiny.kinds.base import Kind, Move
from training.tiny.kinds.numbers import apply


class Sum(NamedTuple):
    """Numbers not yet taken, in the order of the problem; the running total; numbers taken."""

    remaining: tuple[int, ...]
    total: int
    taken: int


class Increasing(Kind):
    name = "increasing"
    counts = (4, 5)
    tens = range(7)
    wordings = (
        "Take {} in increasing order, subtract and add in turn.",
        "Subtract and add in turn {} in increasing order.",
    )

    def draw(self, rng: Random) -> Sum:
        """Numbers with different tens, so that which is smallest is plain to see."""
        tens = rng.sample(self.tens, rng.choice(self.counts))
        return Sum(tuple(10 * ten + rng.randint(ten == 0, 9) for ten in tens), 0, 0)

    def statement(self, state: Sum, rng: Random) -> str:
        return rng.choice(self.wordings).format(",".join(map(str, state.remaining)))

    def canonical(self, state: Sum) -> str:
        return ",".join(map(str, sorted(state.remaining)))  # the given order changes nothing

    def moves(self, state: Sum) -> list[Move]:
        operator = "-" if state.taken % 2 else "+"
        moves = []
        for number in state.remaining:
            total = apply(state.total, operator, number)
            equation = f"{state.total}{operator}{number}={total}"
            text = f"{number}: {equation}" if state.taken else str(number)
            rest = tuple(other for other in state.remaining if other != number)
            after = Sum(rest, total, state.taken + 1)
            moves.append(Move(text, after, number == min(state.remaining)))
        return moves

    def result(self, state: Sum) -> int | None:
        return None if state.remaining else state.total
