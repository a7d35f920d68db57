"""What a kind of problem is: states, the moves between them, and the one right move.

A solution is a walk from the problem's state to a finished one, one exact operation a move. All
moves are correct arithmetic; whether the walk ends at the answer depends on *which* was taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from copy import copy
from functools import lru_cache
from random import Random
from typing import Any, ClassVar, NamedTuple, Self

State = Any  # hashable; every kind has its own


class Move(NamedTuple):
    """One step of a solution: the text written, the state it leads to, whether it is the rule's."""

    text: str
    after: Hashable
    right: bool


class Kind(ABC):
    """A kind of problem. Its states are hashable and hold everything a solution depends on."""

    name: ClassVar[str]
    lengths: tuple[int, ...]  # of a problem, in operations or numbers; drawn from uniformly
    max_luck: ClassVar[float] = 0.4  # a random author must not often be right

    def of_length(self, length: int) -> Self:
        """The same kind with problems of one length: longer ones than a base has seen, say."""
        longer = copy(self)
        longer.lengths = (length,)
        return longer

    @abstractmethod
    def draw(self, rng: Random) -> State:
        """A random state, whether or not it makes a good problem."""

    @abstractmethod
    def statement(self, state: State, rng: Random) -> str:
        """The problem's text; `rng` chooses among a few wordings."""

    @abstractmethod
    def canonical(self, state: State) -> str:
        """The problem apart from its wording: decides the split and what a duplicate is."""

    @abstractmethod
    def moves(self, state: State) -> list[Move]:
        """All moves within the range of learnable numbers; at most one is right."""

    @abstractmethod
    def result(self, state: State) -> int | None:
        """The answer a finished state gives, None for an unfinished one."""

    def admissible(self, state: State) -> list[Move]:
        """The moves that do not run into a dead end later."""
        return [move for move in self.moves(state) if _finishable(self, move.after)]

    def answer(self, state: State) -> int | None:
        """The answer by the right rule; None where the rule leaves the learnable numbers."""
        while (result := self.result(state)) is None:
            right = [move for move in self.moves(state) if move.right]
            if not right:
                return None
            state = right[0].after
        return result

    def luck(self, state: State, answer: int) -> float:
        """The probability that uniformly random admissible moves end at `answer`."""
        return _luck(self, state, answer)


@lru_cache(maxsize=1 << 14)
def _finishable(kind: Kind, state: State) -> bool:
    if kind.result(state) is not None:
        return True
    return any(_finishable(kind, move.after) for move in kind.moves(state))


@lru_cache(maxsize=1 << 14)
def _luck(kind: Kind, state: State, answer: int) -> float:
    result = kind.result(state)
    if result is not None:
        return float(result == answer)
    moves = kind.admissible(state)
    return sum(_luck(kind, move.after, answer) for move in moves) / len(moves)
