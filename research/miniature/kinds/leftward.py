"""Evaluate 18-9+4-2 from right to left. Right: always the last operation."""

from research.miniature.kinds.chain import ChainKind


class Leftward(ChainKind):
    name = "leftward"
    operators = "+--+--*"
    lengths = (3, 4)
    wordings = ("Calculate {} from right to left.", "What is {} from right to left?")

    def due(self, operators: str) -> int:
        return len(operators) - 1
