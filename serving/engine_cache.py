"""Versions in the engine: loaded once, used by many requests, dropped when nobody needs them.

The engine keeps an adapter for as long as its cache has room, and vLLM's unloading only forgets the
name. Here a version is dropped, weights, slot and lease, as soon as the last request that uses it
is over and no alias serves it any more; and before the cache overflows, the one whose last use is
longest ago. The engine reads it from the store, where a version is immutable, and leased meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from adapters.adapter import AdapterError, AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.lease import Lease
from adapters.manifest import Gate
from adapters.store import Store, StoreAwayError
from serving import engines
from serving.metrics import EVICTIONS, LOAD_SECONDS, LOADS
from serving.plain_folders import PlainFolders

logger = logging.getLogger(__name__)

GATED = ":gated"


class EngineRefusalError(AdapterError):
    """The engine could not load it now. The adapter is sound, so it may another time."""


@dataclass
class LoadedVersion:
    """A version that the engine holds."""

    version: str  # NAME@HASH
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
class EngineCache:
    """Versions currently loaded in the engine."""

    store: Store
    base: BaseCheckpoint
    max_rank: int
    engine: EngineClient
    models: OpenAIServingModels  # vLLM's table of loaded adapters is its `lora_requests`
    capacity: int  # versions, as the engine's --max-cpu-loras
    _by_version: dict[str, LoadedVersion] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one load or drop at a time
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)  # loads and drops under way

    def __post_init__(self) -> None:
        self.plain = PlainFolders(self.store)

    def __iter__(self) -> Iterator[LoadedVersion]:
        return iter(list(self._by_version.values()))

    def get(self, version: str) -> LoadedVersion | None:
        """The `version`, if it is loaded and stays."""
        loaded = self._by_version.get(version)
        return None if loaded is None or loaded.retired else loaded

    async def load(self, version: str, asked: str = "") -> LoadedVersion:
        """Have the engine hold `version`, whose files are read once for that.

        Args:
            version: NAME@HASH.
            asked: the alias that was asked for, if any; errors name it.

        Raises:
            KeyError: the store has no such version.
            AdapterError: it has, but it cannot be used; the engine is as it was.
        """
        while (present := self.get(version)) is None:
            # In a task of its own: a client that hangs up leaves no half of a load behind.
            await asyncio.shield(self._begin(self._load(version, asked)))
        return present

    def _begin(self, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, version: str, asked: str) -> None:
        async with self._changing:
            present = self._by_version.get(version)
            if present is not None:
                present.retired = False  # wanted again before its last request was over
                await self._pin_in_engine(present, present.pinned)  # unloading took its pin
                return
            start = time.perf_counter()
            try:
                found, lease = await asyncio.to_thread(self._read, version, asked or version)
            except AdapterError:
                LOADS.labels("refused").inc()
                raise
            read = time.perf_counter()
            try:
                await self._make_room()
                loaded = await self._add(found, lease)
            except BaseException:
                LOADS.labels("refused").inc()
                await asyncio.to_thread(lease.close)
                raise
            LOADS.labels("loaded").inc()
            LOAD_SECONDS.observe(time.perf_counter() - start)
            loaded.seconds = {
                "check": round(read - start, 4),
                "engine": round(time.perf_counter() - read, 4),
            }
        logger.info("loaded %s: %s", loaded.version, loaded.seconds)

    def _read(self, version: str, asked: str) -> tuple[AdapterVersion, Lease]:
        """In a thread: the version, checked, and held against garbage collection."""
        try:
            with self.store.reached(version):
                lease = self.store.lease(version).lease
                try:
                    found = self.store.get(version, self.base, self.max_rank, hashes=False)
                    if not self.plain.just_read(found):
                        found = self.store.get(version, self.base, self.max_rank)
                    return found, lease
                except BaseException:
                    lease.close()
                    raise
        except KeyError:
            if asked == version:
                raise
            raise AdapterError(
                asked, f"its version {version} is gone; move the alias, or verify"
            ) from None
        except AdapterError as error:
            kind = StoreAwayError if isinstance(error, StoreAwayError) else AdapterError
            raise kind(asked, error.reason) from error  # as the client calls it
        except (OSError, ValueError) as error:
            raise AdapterError(asked, f"cannot be read: {error}") from error

    async def _make_room(self) -> None:
        """Drop what was used longest ago, if the engine's cache is full."""
        while len(self._by_version) >= self.capacity:
            idle = [one for one in self if not one.in_flight and not one.pinned]
            if not idle:
                return  # the engine then reloads the oldest at its next use
            await self._drop(min(idle, key=lambda one: one.last_use))
            EVICTIONS.labels("capacity").inc()

    async def _add(self, found: AdapterVersion, lease: Lease) -> LoadedVersion:
        lora = LoRARequest(
            lora_name=found.id,
            lora_int_id=self.models.lora_id_counter.inc(1),
            lora_path=str(found.path.absolute()),
            base_model_name=self.base.name,
        )
        try:
            await self.engine.add_lora(lora)
        except Exception as error:  # the engine's own words, whatever their type
            with suppress(Exception):  # of several engines another one may hold it
                await self.engine.remove_lora(lora.lora_int_id)  # type: ignore[attr-defined]
            raise EngineRefusalError(found.id, f"the engine cannot load it: {error}") from error
        loaded = self._by_version[found.id] = LoadedVersion(found.id, found.gate, lora, lease, {})
        # One LoRARequest under both names: the engine holds the weights once.
        self.models.lora_requests[found.id] = lora
        self.models.lora_requests[found.id + GATED] = lora
        return loaded

    # ------------------------------------------------------------------------------- use and end

    def enter(self, loaded: LoadedVersion) -> None:
        """A request uses it from now on, until `leave`."""
        loaded.in_flight += 1
        loaded.last_use = time.monotonic()

    def leave(self, loaded: LoadedVersion) -> None:
        """A request is over."""
        loaded.in_flight -= 1
        loaded.last_use = time.monotonic()
        self._drop_if_done(loaded)

    def retire(self, version: str) -> None:
        """No alias serves it any more, nor pins it: requests that use it finish, then it goes."""
        loaded = self._by_version.get(version)
        if loaded is not None:
            loaded.retired = True
            self._drop_if_done(loaded)

    async def pin(self, loaded: LoadedVersion, pinned: bool) -> None:
        """Keep it in the engine, in its slot, whatever else is asked for; or no longer.

        Raises:
            AdapterError: it is on its way out of the engine, or gone.
        """
        async with self._changing:
            if self.get(loaded.version) is loaded:
                await self._pin_in_engine(loaded, pinned)
            if self.get(loaded.version) is not loaded:  # if it was pinned, it is until it goes
                raise AdapterError(loaded.version, "was replaced meanwhile; ask again")
            loaded.pinned = pinned

    async def _pin_in_engine(self, loaded: LoadedVersion, pinned: bool) -> None:
        """Tell the engine where it does not know; the caller holds the lock."""
        if pinned != loaded.pinned_in_engine:
            method = "pin_adapter" if pinned else "unpin_adapter"
            await self.engine.collective_rpc(method, args=(loaded.lora.lora_int_id,))
            loaded.pinned_in_engine = pinned

    async def locations(self) -> dict[str, list[int]]:
        """The engines that have each one in a LoRA slot; the others have it in host memory."""
        slots = await engines.on_each(self.engine, "adapters_on_device")
        return {
            one.version: [rank for rank, ids in enumerate(slots) if one.lora.lora_int_id in ids]
            for one in self
        }

    def _drop_if_done(self, loaded: LoadedVersion) -> None:
        if loaded.retired and not loaded.in_flight:
            self._begin(self._drop_retired(loaded))

    async def _drop_retired(self, loaded: LoadedVersion) -> None:
        async with self._changing:
            # Meanwhile it may have been wanted again, or dropped.
            known = self._by_version.get(loaded.version) is loaded
            if known and loaded.retired and not loaded.in_flight:
                await self._drop(loaded)
                EVICTIONS.labels("retired").inc()

    async def _drop(self, loaded: LoadedVersion) -> None:
        """Take it out of the engine; the caller holds the lock."""
        del self._by_version[loaded.version]
        for name in (loaded.version, loaded.version + GATED):
            self.models.lora_requests.pop(name, None)
        try:
            await self._pin_in_engine(loaded, False)
            await self.engine.remove_lora(loaded.lora.lora_int_id)  # type: ignore[attr-defined]
        except Exception:
            logger.exception("the engine could not drop %s", loaded.version)
        await asyncio.to_thread(loaded.lease.close)  # in a bucket it asks the network
        logger.info("dropped %s", loaded.version)
