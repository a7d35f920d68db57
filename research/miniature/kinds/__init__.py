"""The kinds of problems, by name, in the order in which problems cycle through them."""

import re

from research.miniature.kinds.base import Kind, Move
from research.miniature.kinds.expression import Expression
from research.miniature.kinds.increasing import Increasing
from research.miniature.kinds.leftward import Leftward
from research.miniature.kinds.undo import Undo

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Expression(), Undo(), Increasing(), Leftward())
}


def find_kind(name: str) -> Kind:
    """The kind NAME, or NAME:LENGTH for problems of that length alone.

    Raises:
        ValueError: there is none, or the length is not between 2 and 9.
    """
    found = re.fullmatch(r"(\w+)(?::([2-9]))?", name)
    if found is None or found[1] not in KINDS:
        raise ValueError(
            f"--kind: '{name}' is unknown; known: {', '.join(KINDS)}, or NAME:LENGTH (2 to 9)"
        )
    kind = KINDS[found[1]]
    return kind.of_length(int(found[2])) if found[2] else kind


__all__ = ["KINDS", "Kind", "Move", "find_kind"]
