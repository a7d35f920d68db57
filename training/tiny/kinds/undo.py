"""I think of a number, divide by 3, add 6 and get 21. Right: undo the last operation first.

Every operation can be undone at every moment (there is no "multiply by", whose undoing could leave
a fraction), so that nothing but the rule tells in which order to do it.
"""

from random import Random
from typing import NamedTuple

from training.tiny.kinds.base import Kind, Move
from training.tiny.kinds.numbers import apply


class Step(NamedTuple):
    """What was done to the number: a verb and its operand."""

    verb: str
    operand: int

    def __str__(self) -> str:
        return f"{self.verb} {self.operand}"


class Chest(NamedTuple):
    """Operations not yet undone, in the order in which they were done; what they led to."""

    steps: tuple[Step, ...]
    value: int


def _done(step: Step, value: int) -> int:
    """`step` done to `value`."""
    match step.verb:
        case "add":
            return apply(value, "+", step.operand)
        case "subtract":
            return apply(value, "-", step.operand)
        case "divide by":
            return apply(value, "/", step.operand)
        case _:  # subtract from
            return apply(step.operand, "-", value)


def _undone(step: Step, value: int) -> tuple[str, int]:
    """The equation that undoes `step` on `value`, and its result."""
    n = step.operand
    match step.verb:
        case "add":
            return f"{value}-{n}", apply(value, "-", n)
        case "subtract":
            return f"{value}+{n}", apply(value, "+", n)
        case "divide by":
            return f"{value}*{n}", apply(value, "*", n)
        case _:  # n - x = value; a negative value could not follow the minus sign
            result = apply(n, "-", value)
            return (f"{n}-{value}" if value >= 0 else f"{-value}+{n}"), result


class Undo(Kind):
    name = "undo"
    lengths = (3, 4)
    operands = {  # noqa: RUF012  (verb -> operands, never changed)
        "add": range(1, 21),
        "subtract": range(1, 21),
        "divide by": range(2, 5),
        "subtract from": range(20, 61),
    }

    def draw(self, rng: Random) -> Chest:
        """Choose a number and work forwards."""
        value = rng.randint(1, 60)
        steps: list[Step] = []
        for _ in range(rng.choice(self.lengths)):
            verb = rng.choice(list(self.operands))
            step = Step(verb, rng.choice(self.operands[verb]))
            value = _done(step, value)
            if step not in steps:
                steps.append(step)
            else:
                value = _undone(step, value)[1]
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
            equation, value = _undone(step, state.value)
            rest = tuple(other for other in state.steps if other != step)
            text = f"undo {step}: {equation}={value}"
            moves.append(Move(text, Chest(rest, value), step == state.steps[-1]))
        return moves

    def result(self, state: Chest) -> int | None:
        return None if state.steps else state.value
