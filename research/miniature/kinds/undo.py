"""I think of a number, multiply by 3, add 6 and get 21. Right: undo the last operation first."""

from random import Random
from typing import NamedTuple

from research.miniature.kinds.base import Kind, Move
from research.miniature.kinds.numbers import apply

_WORDS = {"+": "add", "-": "subtract", "*": "multiply by", "/": "divide by"}
_INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}


class Step(NamedTuple):
    operator: str
    operand: int

    def __str__(self) -> str:
        return f"{_WORDS[self.operator]} {self.operand}"


class Chest(NamedTuple):
    """Operations not yet undone, in the order in which they were done; what they led to."""

    steps: tuple[Step, ...]
    value: int


class Undo(Kind):
    name = "undo"
    lengths = (3, 4)

    def draw(self, rng: Random) -> Chest:
        """Choose a number and work forwards, so that working backwards is exact."""
        value = rng.randint(1, 40)
        steps: list[Step] = []
        length = rng.choice(self.lengths)
        while len(steps) < length:
            operator = rng.choice("+-*/")
            step = Step(operator, rng.randint(1, 20) if operator in "+-" else rng.randint(2, 5))
            after = apply(value, *step)
            if after is not None and step not in steps:
                steps.append(step)
                value = after
        return Chest(tuple(steps), value)

    def statement(self, state: Chest, rng: Random) -> str:
        steps = ", ".join(map(str, state.steps))
        wording = rng.choice(
            (
                "I think of a number, {} and get {}. What is the number?",
                "What is the number? I {} and get {}.",
            )
        )
        return wording.format(steps, state.value)

    def canonical(self, state: Chest) -> str:
        return f"{', '.join(map(str, state.steps))} = {state.value}"

    def moves(self, state: Chest) -> list[Move]:
        moves = []
        for step in state.steps:
            operator = _INVERSE[step.operator]
            value = apply(state.value, operator, step.operand)
            if value is None:
                continue
            text = f"undo {step}: {state.value}{operator}{step.operand}={value}"
            rest = tuple(other for other in state.steps if other != step)
            moves.append(Move(text, Chest(rest, value), step == state.steps[-1]))
        return moves

    def result(self, state: Chest) -> int | None:
        return None if state.steps else state.value
