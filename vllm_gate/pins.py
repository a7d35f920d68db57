"""Which adapters are pinned, for the scheduler: they keep their slot in steps that run others.

vLLM pins in its workers, and nobody tells the scheduler, whose process (EngineCore) passes on what
the front end asks for.

Written for vLLM 0.32 (v1/engine/core.py).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

PINNED: set[int] = set()  # LoRA ids


def install() -> None:
    """Listen to what this process passes on; again is harmless."""
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore.pin_lora, "__wrapped__"):  # not the stock one
        return
    pin, remove, call = EngineCore.pin_lora, EngineCore.remove_lora, EngineCore.collective_rpc

    @wraps(pin)
    def pin_lora(self: Any, lora_id: int) -> bool:
        done = bool(pin(self, lora_id))
        PINNED.add(lora_id)
        return done

    @wraps(remove)
    def remove_lora(self: Any, lora_id: int) -> bool:
        PINNED.discard(lora_id)
        return bool(remove(self, lora_id))

    @wraps(call)
    def collective_rpc(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        result = call(self, method, *args, **kwargs)
        if method == "unpin_adapter":
            PINNED.difference_update(kwargs.get("args") or args[1])
        return result

    EngineCore.pin_lora = pin_lora
    EngineCore.remove_lora = remove_lora
    EngineCore.collective_rpc = collective_rpc
