"""Evaluate 9-11*7+12+9. Right: products first, then from left to right."""

from research.miniature.kinds.chain import ChainKind


class Expression(ChainKind):
    name = "expression"
    operators = "+-*"
    lengths = (3, 4)
    wordings = ("Calculate {}.", "What is {}?")

    def due(self, operators: str) -> int:
        return max(operators.find("*"), 0)
