"""The store's adapters as the engine knows them: looked at afresh at every request.

An adapter is loaded when it is first asked for. Its engine name is NAME@HASH of its content, so new
content under an old name is another adapter to vLLM (which tells adapters apart by name, and cached
prefixes by name and path): nothing of the old one is ever used for the new.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict
from dataclasses import dataclass, field

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from adapters.base import BaseModel
from adapters.manifest import is_name
from adapters.store import Listing, Store
from adapters.version import AdapterError, AdapterVersion
from serving.snapshot import Signature, Snapshot, Snapshots, signature

logger = logging.getLogger(__name__)


@dataclass
class Registry:
    """What of `store` can be served on `base`, and what of it is loaded."""

    store: Store
    base: BaseModel
    max_rank: int
    snapshots: Snapshots
    engine: EngineClient
    models: OpenAIServingModels  # vLLM's table of loaded adapters is its `lora_requests`
    _loaded: dict[str, Signature] = field(default_factory=dict)
    _refused: dict[str, tuple[Signature, str]] = field(default_factory=dict)  # and the reason
    _checked: dict[str, tuple[Signature, AdapterVersion | AdapterError]] = field(
        default_factory=dict
    )
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def ensure(self, name: str) -> None:
        """Have vLLM's table hold the adapter `name` as the store has it now.

        Raises:
            KeyError: the store has none of that name; the table has none either, then.
            AdapterError: it has one that cannot be used; nor is it in the table.
        """
        # First of all, so that a name out of nowhere leaves no lock behind.
        if not is_name(name) or not os.path.isdir(self.store.root / name):
            self._forget(name)
            raise KeyError(name)
        async with self._locks[name]:
            now = signature(self.store.root / name)
            if self._loaded.get(name) == now:
                return
            seen = self._refused.get(name)
            if seen is not None and seen[0] == now:
                raise AdapterError(name, seen[1])
            try:
                snapshot = await self._freeze(name)
                await self._load(name, snapshot)
            except KeyError:
                self._forget(name)
                raise
            except AdapterError as error:
                self._forget(name)
                self._refused[name] = now, error.reason
                logger.warning("refused: %s", error)
                raise
            self._loaded[name] = now

    async def _freeze(self, name: str) -> Snapshot:
        try:
            return await asyncio.to_thread(
                self.snapshots.take, self.store, name, self.base, self.max_rank
            )
        except (OSError, ValueError) as error:
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(name, f"cannot be read: {error}") from error

    async def _load(self, name: str, snapshot: Snapshot) -> None:
        request = LoRARequest(
            lora_name=snapshot.version,
            lora_int_id=self.models.lora_id_counter.inc(1),
            lora_path=str(snapshot.path),
            base_model_name=self.base.name,
        )
        try:
            await self.engine.add_lora(request)
        except Exception as error:  # the engine's own words, whatever their type
            raise AdapterError(name, f"the engine cannot load it: {error}") from error
        self.models.lora_requests[name] = request
        logger.info("loaded %s", snapshot.version)

    def _forget(self, name: str) -> None:
        self._loaded.pop(name, None)
        if self.models.lora_requests.pop(name, None) is not None:
            logger.info("forgot %s: it is no longer in the store as it was", name)

    def listing(self) -> Listing:
        """Every adapter of the store, checked against the base; unchanged ones only once."""
        listing = Listing({}, {})
        for name in self.store.names():
            now = signature(self.store.root / name)
            seen = self._checked.get(name)
            if seen is None or seen[0] != now:
                try:
                    seen = now, self._check(name)
                except KeyError:
                    continue  # removed between the two looks
                self._checked[name] = seen
            if isinstance(seen[1], AdapterError):
                listing.refused[name] = seen[1]
            else:
                listing.offered[name] = seen[1]
        return listing

    def _check(self, name: str) -> AdapterVersion | AdapterError:
        if self.models.is_base_model(name):
            return AdapterError(name, "has the base's own name; rename its folder")
        try:
            return self.store.get(name, self.base, self.max_rank)
        except AdapterError as error:
            return error
        except (OSError, ValueError) as error:
            return AdapterError(name, f"cannot be checked: {error}")
