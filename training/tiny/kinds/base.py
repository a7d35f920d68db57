"""What a kind of problem is: states, the moves between them, and the one right move.

A solution is a walk from the problem's state to a finished one, one exact operation a move. All
moves are correct arithmetic; whether the walk ends at the answer depends on *which* was taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from functools import lru_cache
from random import Random
from typing import Any, ClassVar, NamedTuple

State = Any  # hashable; every kind has its own


class Move(NamedTuple):
    """One step of a solution: the text written, the state it leads to, whether it is the rule's."""

    text: str
    after: Hashable
    right: bool


class Kind(ABC):
    """A kind of problem. Its states are hashable and hold everything a solution depends on."""

    name: ClassVar[str]
    max_luck: ClassVar[float] = 0.4  # a random author must not often be right

    @abstractmethod
    def draw(self, rng: Random) -> State:
        """A random state, whether or not it makes a good problem. May raise OutOfRange."""

    @abstractmethod
    def statement(self, state: State, rng: Random) -> str:
        """The problem's text; `rng` chooses among a few wordings."""

    @abstractmethod
    def canonical(self, state: State) -> str:
        """The problem apart from its wording: decides the split and what a duplicate is."""

    @abstractmethod
    def moves(self, state: State) -> list[Move]:
        """All moves that can be written down; at most one is right, and an unfinished state that
        a good problem can come to has at least one.

        Raises:
            OutOfRange: one of them leaves the learnable numbers; the problem is not used then.
        """

    @abstractmethod
    def result(self, state: State) -> int | None:
        """The answer a finished state gives, None for an unfinished one."""

    def answer(self, state: State) -> int | None:
        """The answer by the right rule; None where its move cannot be written down."""
        while (result := self.result(state)) is None:
            right = [move for move in self.moves(state) if move.right]
            if not right:
                return None
            state = right[0].after
        return result

    def luck(self, state: State, answer: int) -> float:
        """The probability that uniformly random moves end at `answer`.

        Raises:
            OutOfRange: some order of moves leaves the learnable numbers.
        """
        return _luck(self, state, answer)


@lru_cache(maxsize=1 << 14)
def _luck(kind: Kind, state: State, answer: int) -> float:
    result = kind.result(state)
    if result is not None:
        return float(result == answer)
    moves = kind.moves(state)
    return sum(_luck(kind, move.after, answer) for move in moves) / len(moves)
