"""The core of a comparison: how much it may cost, and how lists are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from training.grading.reading.arithmetic import Number
from training.grading.reading.plain_latex import squeezed
from training.grading.verdict import Decision, all_of, right, unknown, wrong

_DEEPEST = 8  # brackets within brackets
_MOST = 24  # items of which every order is tried


class NeedsWorkerError(Exception):
    """The comparison takes more than this process should spend on it."""


class Effort(NamedTuple):
    """How much a comparison may cost."""

    bits: int  # of the largest exact number
    algebra: bool


# What one way of comparing says of two plain texts; None: they are not of its kind.
Step = Callable[["Comparison", str, str], Decision | None]


class Comparison:
    """Compares plain texts by steps, the first that decides.

    Args:
        steps: ways of comparing, the cheap ones first.
        depth: of brackets around what is compared.
    """

    def __init__(self, effort: Effort, steps: Sequence[Step], depth: int = 0) -> None:
        self.effort, self._steps, self._depth = effort, steps, depth

    def compare(self, candidate: str, reference: str) -> Decision:
        """Compare two texts, as `plain` writes them.

        Raises:
            NeedsWorkerError: it takes more than the effort allows.
        """
        if self._depth > _DEEPEST:
            return unknown("brackets within brackets within brackets")
        if not candidate:
            return wrong("the answer is empty")
        if squeezed(candidate) == squeezed(reference):
            return right("the same")
        for step in self._steps:
            decision = step(self, candidate, reference)
            if decision is not None:
                return decision
        return unknown("no way to compare them")

    def inner(self, candidate: str, reference: str) -> Decision:
        """Compare parts of the two texts."""
        return Comparison(self.effort, self._steps, self._depth + 1).compare(candidate, reference)

    def value(self, number: Number) -> Fraction:
        """The exact value; see `Number.value`."""
        return number.value(self.effort.bits)

    def in_order(self, a: Sequence[str], b: Sequence[str]) -> Decision:
        """Compare item by item."""
        if len(a) != len(b):
            return wrong("not as many values")
        cheap = []
        for x, y in zip(a, b, strict=True):
            decision = self.tried(x, y)
            if decision is not None and decision.correct is False:
                return wrong(f"{x} is not {y}")
            cheap.append(decision)
        if None in cheap:
            raise NeedsWorkerError
        return all_of([one for one in cheap if one is not None], "equal values in order")

    def tried(self, a: str, b: str) -> Decision | None:
        """The decision, or None if only a worker can make it."""
        try:
            return self.inner(a, b)
        except NeedsWorkerError:
            return None

    def any_order(self, a: Sequence[str], b: Sequence[str]) -> Decision:
        """Compare items, each of which may equal any of the other side."""
        if len(a) != len(b):
            return wrong("not as many values")
        if len(a) > _MOST:
            ordered = self.in_order(a, b)
            return ordered if ordered.correct else unknown("too many values to compare")
        table = [[self.inner(x, y).correct for y in b] for x in a]
        if _matched(table, (True,)):
            return right("equal values in any order")
        if not _matched(table, (True, None)):
            return wrong("different values")
        return unknown("values that may be equal")


def _matched(table: list[list[bool | None]], allowed: tuple[bool | None, ...]) -> bool:
    """Whether rows and columns can be paired so that every pair's entry is allowed."""
    partner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, entry in enumerate(table[row]):
            if entry in allowed and column not in tried:
                tried.add(column)
                if column not in partner or place(partner[column], tried):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(table)))
