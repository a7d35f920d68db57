"""Versions in the engine: loaded once, used by many requests, dropped when nobody needs them.

The engine keeps an adapter for as long as its cache has room, and vLLM's unloading only forgets the
name. Here a version is dropped, weights, slot and lease, as soon as the last request that uses it
is over and no alias serves it any more; and before the cache overflows, the one whose last use is
longest ago.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from adapters.adapter import AdapterError
from adapters.base_checkpoint import BaseCheckpoint
from adapters.lease import Lease
from adapters.manifest import Gate
from adapters.store import Store
from serving.metrics import EVICTIONS, LOAD_SECONDS, LOADS
from serving.snapshot import Snapshot, Snapshots

logger = logging.getLogger(__name__)

GATED = ":gated"


@dataclass
class Resident:
    """A version the engine holds."""

    version: str  # NAME@HASH
    path: Path  # its frozen copy
    gate: Gate | None
    lora: LoRARequest
    lease: Lease  # keeps it from being collected from the store
    seconds: dict[str, float]  # what loading took, by part
    in_flight: int = 0
    last_use: float = field(default_factory=time.monotonic)
    retired: bool = False  # goes with its last request
    pinned: bool = False
    pinned_in_engine: bool = False  # stays until it is unpinned or dropped


@dataclass
class Residents:
    """All of them."""

    store: Store
    base: BaseCheckpoint
    max_rank: int
    snapshots: Snapshots
    engine: EngineClient
    models: OpenAIServingModels  # vLLM's table of loaded adapters is its `lora_requests`
    capacity: int  # versions, as the engine's --max-cpu-loras
    _by_version: dict[str, Resident] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one load or drop at a time
    _dropping: set[asyncio.Task[None]] = field(default_factory=set)

    def __iter__(self) -> Iterator[Resident]:
        return iter(list(self._by_version.values()))

    def get(self, version: str) -> Resident | None:
        """The resident `version`, if it is one and stays."""
        resident = self._by_version.get(version)
        return None if resident is None or resident.retired else resident

    async def load(self, reference: str) -> Resident:
        """Have the engine hold what `reference` means.

        Raises:
            KeyError: the store has nothing of that name.
            AdapterError: it has, but it cannot be used; the engine is as it was.
        """
        present = self.get(reference)
        if present is not None:
            return present
        async with self._changing:
            start = time.perf_counter()
            try:
                frozen, gate, lease = await asyncio.to_thread(self._freeze, reference)
            except AdapterError:
                LOADS.labels("refused").inc()
                raise
            present = self._by_version.get(frozen.version)
            if present is not None:
                lease.close()
                present.retired = False  # wanted again before its last request was over
                return present
            checked = time.perf_counter()
            try:
                await self._make_room()
                resident = await self._add(frozen, gate, lease)
            except BaseException:
                LOADS.labels("refused").inc()
                lease.close()
                raise
            LOADS.labels("loaded").inc()
            LOAD_SECONDS.observe(time.perf_counter() - start)
            resident.seconds = {
                "check": round(checked - start, 4),
                "engine": round(time.perf_counter() - checked, 4),
            }
        logger.info("loaded %s: %s", resident.version, resident.seconds)
        return resident

    def _freeze(self, reference: str) -> tuple[Snapshot, Gate | None, Lease]:
        """In a thread: the version's bytes, checked."""
        try:
            held = self.store.lease(reference)
            try:
                snapshot = self.snapshots.take(
                    self.store, str(held.reference), self.base, self.max_rank
                )
                return snapshot, snapshot.gate, held.lease
            except BaseException:
                held.lease.close()
                raise
        except AdapterError as error:
            raise AdapterError(reference, error.reason) from error  # as the client calls it
        except (OSError, ValueError) as error:
            raise AdapterError(reference, f"cannot be read: {error}") from error

    async def _make_room(self) -> None:
        """Drop what was used longest ago, if the engine's cache is full."""
        while len(self._by_version) >= self.capacity:
            idle = [one for one in self if not one.in_flight and not one.pinned]
            if not idle:
                return  # the engine then reloads the oldest at its next use
            await self._drop(min(idle, key=lambda one: one.last_use))
            EVICTIONS.labels("capacity").inc()

    async def _add(self, frozen: Snapshot, gate: Gate | None, lease: Lease) -> Resident:
        lora = LoRARequest(
            lora_name=frozen.version,
            lora_int_id=self.models.lora_id_counter.inc(1),
            lora_path=str(frozen.path),
            base_model_name=self.base.name,
        )
        try:
            await self.engine.add_lora(lora)
        except Exception as error:  # the engine's own words, whatever their type
            raise AdapterError(frozen.version, f"the engine cannot load it: {error}") from error
        resident = Resident(frozen.version, frozen.path, gate, lora, lease, {})
        self._by_version[frozen.version] = resident
        # One LoRARequest under both names: the engine holds the weights once.
        self.models.lora_requests[frozen.version] = lora
        self.models.lora_requests[frozen.version + GATED] = lora
        return resident

    # ------------------------------------------------------------------------------- use and end

    def enter(self, resident: Resident) -> None:
        """A request uses it from now on, until `leave`."""
        resident.in_flight += 1
        resident.last_use = time.monotonic()

    def leave(self, resident: Resident) -> None:
        """A request is over."""
        resident.in_flight -= 1
        resident.last_use = time.monotonic()
        self._drop_if_done(resident)

    def retire(self, version: str) -> None:
        """No alias serves it any more: requests that use it finish, then it goes."""
        resident = self._by_version.get(version)
        if resident is not None and not resident.pinned:
            resident.retired = True
            self._drop_if_done(resident)

    async def pin(self, resident: Resident, pinned: bool) -> None:
        """Keep it in the engine, in its slot, whatever else is asked for; or no longer."""
        if pinned != resident.pinned_in_engine:
            method = "pin_adapter" if pinned else "unpin_adapter"
            await self.engine.collective_rpc(method, args=(resident.lora.lora_int_id,))
            resident.pinned_in_engine = pinned
        resident.pinned = pinned

    async def places(self) -> dict[str, Literal["device", "host"]]:
        """Where each resident's weights are: in a slot of the device, or in host memory alone."""
        slots = set((await self.engine.collective_rpc("adapters_on_device"))[0])
        return {one.version: "device" if one.lora.lora_int_id in slots else "host" for one in self}

    def _drop_if_done(self, resident: Resident) -> None:
        if resident.retired and not resident.in_flight:
            task = asyncio.ensure_future(self._drop_retired(resident))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)

    async def _drop_retired(self, resident: Resident) -> None:
        async with self._changing:
            # Meanwhile it may have been wanted again, or dropped.
            known = self._by_version.get(resident.version) is resident
            if known and resident.retired and not resident.in_flight:
                await self._drop(resident)
                EVICTIONS.labels("retired").inc()

    async def _drop(self, resident: Resident) -> None:
        """Take it out of the engine; the caller holds the lock."""
        del self._by_version[resident.version]
        for name in (resident.version, resident.version + GATED):
            self.models.lora_requests.pop(name, None)
        try:
            if resident.pinned_in_engine:
                await self.pin(resident, False)
            await self.engine.remove_lora(resident.lora.lora_int_id)  # type: ignore[attr-defined]
        except Exception:
            logger.exception("the engine could not drop %s", resident.version)
        resident.lease.close()
        await asyncio.to_thread(shutil.rmtree, resident.path, ignore_errors=True)
        logger.info("dropped %s", resident.version)
