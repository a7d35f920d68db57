"""An alternating sum of numbers taken in increasing order. Right: the smallest one left."""

from random import Random
from typing import NamedTuple

from research.miniature.kinds.base import Kind, Move
from research.miniature.kinds.numbers import apply


class Sum(NamedTuple):
    """Numbers not yet taken, in the order of the problem; the running total; numbers taken."""

    remaining: tuple[int, ...]
    total: int
    taken: int


class Increasing(Kind):
    name = "increasing"
    max_luck = 0.4
    lengths = (4, 5)  # numbers
    largest = 60

    def draw(self, rng: Random) -> Sum:
        return Sum(tuple(rng.sample(range(1, self.largest + 1), rng.choice(self.lengths))), 0, 0)

    def statement(self, state: Sum, rng: Random) -> str:
        numbers = ",".join(map(str, state.remaining))
        wording = rng.choice(
            (
                "Take {} in increasing order, subtract and add in turn.",
                "Subtract and add in turn {} in increasing order.",
            )
        )
        return wording.format(numbers)

    def canonical(self, state: Sum) -> str:
        return ",".join(map(str, sorted(state.remaining)))  # the given order changes nothing

    def moves(self, state: Sum) -> list[Move]:
        moves = []
        for number in state.remaining:
            operator = "-" if state.taken % 2 else "+"
            total = apply(state.total, operator, number)
            if total is None:
                continue
            equation = f"{state.total}{operator}{number}={total}"
            text = f"{number}: {equation}" if state.taken else str(number)
            rest = tuple(other for other in state.remaining if other != number)
            after = Sum(rest, total, state.taken + 1)
            moves.append(Move(text, after, number == min(state.remaining)))
        return moves

    def result(self, state: Sum) -> int | None:
        return None if state.remaining else state.total
