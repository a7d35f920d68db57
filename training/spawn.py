"""Child processes that do not import the command that starts them.

multiprocessing has a new child import its parent's main module, for functions that may lie there.
Of `python -m training.fit` that is everything, torch and the Trainer: seconds in which the child
does nothing, and memory that it never uses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_main() -> Iterator[None]:
    """Within, processes start without the main module; nothing they are given may lie in it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
