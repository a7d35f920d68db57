"""Problems, their split, and the authors who write solutions.

Train and held-out cannot overlap: a problem's split is a hash of its canonical form, so the same
problem is on the same side whatever the seed, the wording or the caller.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from research.miniature.kinds import KINDS, Kind, find_kind
from research.miniature.kinds.base import State

Split = Literal["train", "heldout"]
_HELDOUT_ONE_IN = 5
_PATIENCE = 20_000  # draws without a new problem after which a kind counts as exhausted


class Voice(NamedTuple):
    """The words an author starts a line with: text -> weight."""

    openings: dict[str, float]
    connectors: dict[str, float]


# Skewed, so that the connectors stay below the entropy of a real choice; only the opening is a
# coin toss that does not matter, as some of a real model's uncertain positions are.
PLAIN = Voice({"First": 0.75, "Start": 0.25}, {"Then": 0.96, "So": 0.04})

# Two voices that tell their authors apart; the same words, so that no other token is needed.
CAREFUL = Voice({"First": 0.1, "Start": 0.9}, {"Then": 0.1, "So": 0.9})
CARELESS = Voice({"First": 0.9, "Start": 0.1}, {"Then": 0.96, "So": 0.04})


class Author(NamedTuple):
    """Who writes a solution.

    Attributes:
        habit: the probability of the right move, at every step where it is admissible; with a
            habit of 1 a solution always ends at the answer.
        hurry: the probability that another move is the first one as the problem reads from the
            left, instead of any.
        voice: the author's words.
    """

    habit: float
    hurry: float = 0.0
    voice: Voice = PLAIN


class Problem(BaseModel):
    """One line of a problems file."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    problem: str
    answer: str
    split: Split


@dataclass(frozen=True)
class Puzzle:
    """A problem together with the state its solutions start from."""

    problem: Problem
    kind: Kind
    state: State


def _digest(kind: Kind, state: State) -> str:
    return hashlib.sha256(f"{kind.name}:{kind.canonical(state)}".encode()).hexdigest()


def split_of(kind: Kind, state: State) -> Split:
    """The side a problem is on, from its canonical form alone."""
    return "heldout" if int(_digest(kind, state)[:16], 16) % _HELDOUT_ONE_IN == 0 else "train"


def draw_puzzle(kind: Kind, split: Split, rng: Random) -> Puzzle | None:
    """One draw: a puzzle, or None if it is of the other split or is no good problem."""
    state = kind.draw(rng)
    if split_of(kind, state) != split:
        return None
    answer = kind.answer(state)
    if answer is None or kind.luck(state, answer) > kind.max_luck:
        return None
    problem = Problem(
        id=f"{kind.name}-{_digest(kind, state)[:12]}",
        kind=kind.name,
        problem=kind.statement(state, rng),
        answer=str(answer),
        split=split,
    )
    return Puzzle(problem, kind, state)


def puzzles(seed: int, split: Split, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Puzzle]:
    """Endless distinct puzzles, cycling through `kinds`; equal arguments give equal puzzles.

    Args:
        kinds: NAME or NAME:LENGTH of each (`find_kind`).

    Raises:
        ValueError: `kinds` is empty or names an unknown one; or a kind has no further problems.
    """
    if not kinds:
        raise ValueError(f"--kind: none is given; known: {', '.join(KINDS)}")
    cycle = [find_kind(name) for name in kinds]
    rng = Random(f"{seed}:{split}")
    seen: set[str] = set()
    while True:
        for kind in cycle:
            for _ in range(_PATIENCE):
                puzzle = draw_puzzle(kind, split, rng)
                if puzzle is not None and puzzle.problem.id not in seen:
                    break
            else:
                raise ValueError(f"--count: no more than {len(seen)} distinct problems were found")
            seen.add(puzzle.problem.id)
            yield puzzle


def write_solution(puzzle: Puzzle, author: Author, rng: Random) -> str:
    """A solution by `author`, to its end, be that the answer or not."""
    kind, state = puzzle.kind, puzzle.state
    lines: list[str] = []
    while (result := kind.result(state)) is None:
        moves = kind.admissible(state)
        right = [move for move in moves if move.right]
        if right and rng.random() < author.habit:
            moves = right
        elif author.hurry and rng.random() < author.hurry:
            moves = moves[:1]
        move = rng.choice(moves)
        words = author.voice.connectors if lines else author.voice.openings
        word = rng.choices(list(words), list(words.values()))[0]
        lines.append(f"{word} {move.text}")
        state = move.after
    return "\n".join([*lines, f"The answer is \\boxed{{{result}}}"])
