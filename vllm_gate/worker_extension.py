"""What a worker knows of the adapters it holds (--worker-extension-cls).

vLLM says which adapters are registered, not which lie in a slot, and can pin one but not let it go.

Written for vLLM 0.32 (vllm/lora/model_manager.py, LRUCacheLoRAModelManager).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager
    from vllm.v1.worker.gpu_worker import Worker
else:
    Worker = object  # vLLM mixes this class into its own

EXTENSION = "vllm_gate.worker_extension.WorkerExtension"


class WorkerExtension(Worker):
    """Mixed into vLLM's worker class."""

    def adapters_on_device(self) -> list[int]:
        """LoRA ids in the slots."""
        return [int(one) for one in self._adapters()._active_adapters.cache]

    def pin_adapter(self, lora_id: int) -> bool:
        """`pin_lora`, by a name that the scheduler listens to (pins.py)."""
        return bool(self.pin_lora(lora_id))

    def unpin_adapter(self, lora_id: int) -> None:
        """Undo `pin_lora`; nothing where it is not pinned."""
        manager = self._adapters()
        for cache in (manager._registered_adapters, manager._active_adapters):
            if lora_id in cache.pinned_items:
                cache._unpin(lora_id)

    def _adapters(self) -> LRUCacheLoRAModelManager:
        return cast("LRUCacheLoRAModelManager", self.model_runner.lora_manager._adapter_manager)
