"""Which adapters are pinned, for the scheduler: they keep their slot in steps that run others.

vLLM pins in its workers, and nobody tells the scheduler. Our server pins by calls to the workers
(worker_extension.py), which pass through the scheduler's process.

Written for vLLM 0.32 (v1/engine/core.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore

R = TypeVar("R")

PINNED: set[int] = set()  # LoRA ids


def listening(stock: Callable[..., list[R]]) -> Callable[..., list[R]]:
    """EngineCore.collective_rpc, noting what is pinned."""

    @wraps(stock)
    def collective_rpc(
        self: EngineCore,
        method: str | Callable[..., R],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[R]:
        result = stock(self, method, timeout, args, kwargs)
        if method in ("pin_adapter", "unpin_adapter"):
            change = PINNED.update if method == "pin_adapter" else PINNED.difference_update
            change(args)
        return result

    return collective_rpc
