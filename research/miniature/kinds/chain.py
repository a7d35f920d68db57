"""A chain of numbers and operators, rewritten one operation at a time: 9-11*7+12 -> 9-77+12.

Kinds that look the same but reduce in another order build on it.
"""

from abc import abstractmethod
from random import Random
from typing import NamedTuple

from research.miniature.kinds.base import Kind, Move
from research.miniature.kinds.numbers import apply


class Chain(NamedTuple):
    """numbers[0] operators[0] numbers[1] ...; only the first number may be negative."""

    numbers: tuple[int, ...]
    operators: str

    def __str__(self) -> str:
        tail = zip(self.operators, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{op}{number}" for op, number in tail)


def reduced(chain: Chain, index: int) -> tuple[str, Chain] | None:
    """Carry out operator `index`: its equation and the shorter chain, or None if not admissible."""
    numbers, operators = chain
    left, operator, right = numbers[index], operators[index], numbers[index + 1]
    result = apply(left, operator, right)
    # A negative number after an operator could not be written without brackets.
    if result is None or (result < 0 and index > 0):
        return None
    rest = Chain(
        (*numbers[:index], result, *numbers[index + 2 :]),
        operators[:index] + operators[index + 1 :],
    )
    return f"{left}{operator}{right}={result}", rest


class ChainKind(Kind):
    """Moves of a chain; subclasses say which operation is due."""

    operators: str  # drawn from, uniformly
    largest = 20
    wordings: tuple[str, ...]

    @abstractmethod
    def due(self, operators: str) -> int:
        """Index of the operation that the right rule carries out next."""

    def draw(self, rng: Random) -> Chain:
        operators = "".join(rng.choices(self.operators, k=rng.choice(self.lengths)))
        return Chain(
            tuple(rng.randint(1, self.largest) for _ in range(len(operators) + 1)), operators
        )

    def statement(self, state: Chain, rng: Random) -> str:
        return rng.choice(self.wordings).format(state)

    def canonical(self, state: Chain) -> str:
        return str(state)

    def moves(self, state: Chain) -> list[Move]:
        due = self.due(state.operators) if state.operators else -1
        found: dict[str, Move] = {}
        for index in range(len(state.operators)):
            step = reduced(state, index)
            if step is None:
                continue
            equation, rest = step
            text = f"{equation}: {rest}" if rest.operators else equation
            # Equal operations at two places may read the same: then they are one move.
            right = index == due or (text in found and found[text].right)
            found[text] = Move(text, rest, right)
        return list(found.values())

    def result(self, state: Chain) -> int | None:
        return None if state.operators else state.numbers[0]
