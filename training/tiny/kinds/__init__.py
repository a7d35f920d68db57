"""The kinds of problems, by name, in the order in which problems cycle through them."""

from training.tiny.kinds.base import Kind, Move
from training.tiny.kinds.expression import Expression
from training.tiny.kinds.increasing import Increasing
from training.tiny.kinds.leftward import Leftward
from training.tiny.kinds.undo import Undo

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Expression(), Undo(), Increasing(), Leftward())
}

__all__ = ["KINDS", "Kind", "Move"]
