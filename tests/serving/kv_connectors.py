"""KV connectors for the gate's tests, which run on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class TellingConnector(ExampleConnector):
    """vLLM's example, which keeps prompts in a folder; it also answers with parameters."""

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """What goes into the request's last output."""
        adapter = request.lora_request and request.lora_request.lora_name
        return False, {"blocks": len(block_ids), "adapter": adapter}


class HostWorker(OffloadingWorker):
    """Copies blocks at once. vLLM's own needs a GPU's streams."""

    def __init__(self, kv_caches: Any, blocks: int) -> None:
        self.device = [cache.tensor for cache in kv_caches.tensors]
        self.host = [
            torch.empty(blocks, *cache.shape[1:], dtype=cache.dtype) for cache in self.device
        ]
        self.done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the cache to the host."""
        return self._copy(job_id, (self.device, src_spec), (self.host, dst_spec))

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """From the host to the cache."""
        return self._copy(job_id, (self.host, src_spec), (self.device, dst_spec))

    def _copy(self, job_id: int, source: tuple[Any, Any], target: tuple[Any, Any]) -> bool:
        for old, new in zip(source[0], target[0], strict=True):
            new[target[1].block_ids] = old[source[1].block_ids]
        self.done.append(TransferResult(job_id, True))
        return True

    def get_finished(self) -> list[TransferResult]:
        """The jobs that ended since the last call."""
        done, self.done = self.done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """They have all ended."""


class HostSpec(CPUOffloadingSpec):
    """vLLM's offloading to the host's memory, without a GPU."""

    def get_worker(self, kv_caches: Any) -> HostWorker:
        """The worker of this process."""
        return HostWorker(kv_caches, self.num_chunks)


class FailingConnector(TellingConnector):
    """The same, but the first step that should load finds nothing there and says so."""

    _lost: set[int] | None = None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load, or note the blocks that are not."""
        loads = [one for one in self._get_connector_metadata().requests if not one.is_store]
        if self._lost is None and loads:
            slots = torch.cat([one.slot_mapping for one in loads])
            self._lost = set((slots // self._block_size).tolist())
        else:
            super().start_load_kv(forward_context, **kwargs)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The blocks noted since the last call."""
        lost = self._lost or set()
        if lost:
            self._lost = set()
        return lost
