"""How often the host waits for the device, and which lines of code make it.

On a GPU torch's own debug mode warns at each operation that waits. On a CPU, where nothing waits,
the operations that would are counted as they are called.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "local_scalar_dense",  # item(), int(), bool(), and an `if` on a tensor
    "nonzero",
    "masked_select",
    "unique",
    "equal",
    "bincount",
)
COPIES = ("tolist", "cpu")  # no operation of torch's on CPU tensors


def waits(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation of torch's makes the host wait for a device."""
    name = operation.overloadpacket.__name__.lstrip("_")
    if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple):
        # By a mask: how many there are is not known beforehand.
        return any(isinstance(at, torch.Tensor) and at.dtype == torch.bool for at in args[1])
    if name == "repeat_interleave":
        return not kwargs.get("output_size")
    return name.startswith(WAITING)


ROOT = Path(__file__).parents[1]


class Line(NamedTuple):
    """A line of code."""

    file: str
    number: int

    @property
    def ours(self) -> bool:
        """Whether it is the gate's."""
        return "vllm_gate" in self.file

    def __str__(self) -> str:
        shown = self.file.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
        return f"{shown}:{self.number}"


class Waits:
    """How often each line has made the host wait."""

    def __init__(self) -> None:
        self.lines: Counter[Line] = Counter()

    def figures(self, steps: int) -> dict[str, Any]:
        """Waits of a step: all, the gate's own, and by line."""
        ours = sum(count for line, count in self.lines.items() if line.ours)
        return {
            "steps": steps,
            "waits_per_step": self.lines.total() / max(1, steps),
            "waits_per_step_in_the_gate": ours / max(1, steps),
            "lines": {str(line): count for line, count in self.lines.most_common(12)},
        }


@contextmanager
def counted() -> Iterator[Waits]:
    """Count what waits within."""
    found = Waits()
    with _on_gpu(found) if torch.cuda.is_available() else _on_cpu(found):
        yield found


@contextmanager
def _on_gpu(found: Waits) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for one in warned:
        if "synchronizing CUDA operation" in str(one.message):
            found.lines[Line(one.filename, one.lineno)] += 1


@contextmanager
def _on_cpu(found: Waits) -> Iterator[None]:
    class Count(TorchDispatchMode):
        """Looks at each operation."""

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if waits(function, args, kwargs or {}):
                frames = traceback.extract_stack(limit=12)[:-1]
                inside = [one for one in frames if "/torch/" not in one.filename]
                last = inside[-1] if inside else frames[-1]
                found.lines[Line(last.filename, last.lineno or 0)] += 1
            return function(*args, **(kwargs or {}))

    def counting(stock: Any) -> Any:
        @wraps(stock)
        def copy(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = traceback.extract_stack(limit=2)[0]
            found.lines[Line(caller.filename, caller.lineno or 0)] += 1
            return stock(self, *args, **kwargs)

        return copy

    copies = {name: getattr(torch.Tensor, name) for name in COPIES}
    with Count(), ExitStack() as patched:
        for name, stock in copies.items():
            patched.callback(setattr, torch.Tensor, name, stock)
            setattr(torch.Tensor, name, counting(stock))
        yield
