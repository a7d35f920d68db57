"""Which version answers for a name, and how that changes while the server serves.

A request is bound to one version when it is admitted and stays with it to its end. When an alias
moves, by our admin API or by any process that writes the store, requests go on being answered by
the version that served so far until the new one is in the engine; then all new ones get the new.
Nobody waits, and a version that cannot be loaded changes nothing. A plain PEFT folder becomes a
version when it is found (serving/plain_folders.py). The store is read in threads alone, never on
the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adapters.adapter import AdapterError, AdapterVersion
from adapters.manifest import Gate
from adapters.reference import Reference
from adapters.store import Listing, Plain, Store, StoreAwayError
from serving.default_gate import DefaultGate, Threshold, threshold
from serving.engine_cache import EngineCache, EngineRefusalError, LoadedVersion
from serving.metrics import MOVE_SECONDS, MOVES, QUEUE_SECONDS
from serving.plain_folders import PlainFolders, UnfinishedError
from serving.prompts import ServedPrompt
from serving.request import RequestContext
from serving.slots import QueueFullError, Slots

logger = logging.getLogger(__name__)

RETRY = 30.0  # seconds until a version that the engine could not load is tried again


class Look(NamedTuple):
    """What the store means by a name, as seen once."""

    plain: Plain | None  # its plain folder, where it has one
    version: str | None  # NAME@HASH; None: the plain folder is all there is
    folder: int | None  # the store's identity of the version, where it has one


class Serving(NamedTuple):
    """What answers for a name."""

    seen: Look  # the store, when it was loaded
    version: str  # NAME@HASH


class Refusal(NamedTuple):
    """What could not be loaded."""

    seen: Look  # the store, when that was tried
    reason: str
    until: float  # by the monotonic clock, if the store does not change


@dataclass
class Aliases:
    """The names of a store, as they are served."""

    store: Store
    cache: EngineCache
    slots: Slots  # of the device
    shares_slots: bool = False  # gated requests take none (vllm_gate/compat.py)
    prompt: ServedPrompt | None = None  # None: the user's own --chat-template
    default_gate: DefaultGate | None = None  # of adapters that bring none; None: they have none
    taus: dict[str, float] = field(default_factory=dict)  # thresholds set by hand, nats
    withdrawn: set[str] = field(default_factory=set)  # names that this server does not serve
    _serving: dict[str, Serving] = field(default_factory=dict)
    _refused: dict[str, Refusal] = field(default_factory=dict)
    _checked: dict[str, tuple[Look, AdapterVersion | AdapterError]] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    _names: list[str] = field(default_factory=list)  # of the store, when it was last within reach
    _switching: dict[str, asyncio.Task[str]] = field(default_factory=dict)
    _pinning: set[str] = field(default_factory=set)  # versions that wait for the slot they keep
    _pinning_again: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        # Versions in use never fill the engine's cache: the next one is loaded before one goes.
        self.host_slots = Slots(max(1, self.cache.capacity - 1), self.slots.queue)
        self.plain: PlainFolders = self.cache.plain

    # -------------------------------------------------------------------------------- a request

    async def admit(self, name: str, gated: bool = False) -> LoadedVersion:
        """The version that answers this request for `name`, in the engine and with a slot.

        It is held until the request is over. A gated request may need no slot of its own.

        Raises:
            KeyError: the store has nothing of that name.
            AdapterError: it has, but it cannot be used.
            QueueFullError: too many wait for a slot.
        """
        mine = RequestContext.current()
        waited = 0.0  # seconds
        while True:
            version = await self.version(name)
            loaded = self.cache.get(version)
            if mine is not None and mine.version == version and loaded is not None:
                return loaded  # vLLM asks twice on some ways
            with ExitStack() as taken:
                # Whoever waits for a place has its slot already, so nobody waits in a circle.
                engine, start = None, time.perf_counter()
                if not (gated and self.shares_slots):
                    engine = await self.slots.take(version, mine.asked_engine if mine else None)
                    taken.callback(self.slots.give, version, engine)
                await self.host_slots.take(version)
                taken.callback(self.host_slots.give, version)
                waited += time.perf_counter() - start
                loaded = await self._load(version, name)
                if loaded is None:  # replaced while this waited
                    continue
                QUEUE_SECONDS.observe(waited)
                self.cache.enter(loaded)
                taken.callback(self.cache.leave, loaded)
                if "@" not in name and self.serving(name) != version:
                    self._retire(version)  # the alias has moved meanwhile: it goes after this
                if mine is not None:  # else nothing says when the request is over
                    mine.version, mine.engine = version, engine
                    mine.held.enter_context(taken.pop_all())
                return loaded

    async def _load(self, version: str, name: str) -> LoadedVersion | None:
        """`version` in the engine; None where the store has it no longer, and `name` has moved."""
        try:
            return self.cache.get(version) or await self.cache.load(version)
        except KeyError:
            await self.switch(name)
            return None

    # ------------------------------------------------------------------------------------- names

    def _look(self, name: str) -> Look:
        """In a thread: what the store means by `name` now."""
        with self.store.reached(name):
            plain = self.store.plain(name)
            found = self.store.resolve(name)
            if found.hash is None:
                return Look(plain, None, None)
            return Look(plain, str(found), self.store.identity(found))

    def resolve(self, name: str) -> Reference:
        """The store's `resolve`, which raises StoreAwayError where the store is away.

        Call from a thread.
        """
        with self.store.reached(name):
            return self.store.resolve(name)

    def names(self) -> list[str]:
        """Names of the store; while it is away, those that it had. Call from a thread."""
        with suppress(OSError):
            names = self.store.names()
            if self.store.reachable():
                self._names = names
        return self._names

    async def version(self, name: str) -> str:
        """The version that serves `name`; the first time it is loaded for that.

        Raises:
            KeyError, AdapterError: as `admit`.
        """
        if name in self.withdrawn:
            raise KeyError(name)
        try:
            now = await asyncio.to_thread(self._look, name)
        except KeyError:
            self._forget(name)
            raise
        except AdapterError:
            if name not in self._serving:
                raise
            return self._serving[name].version  # damaged history or store away: as before
        serving = self._serving.get(name)
        if serving is None:
            return await self.switch(name)
        if serving.seen != now and not self._is_refused(name, now):
            self._begin_switch(name)
        return serving.version

    async def follow(self) -> list[str]:
        """Begin to load what has moved in the store since it was loaded.

        Returns:
            Names that are served by another version than their alias points at.
        """
        names = [name for name in self._serving if "@" not in name]
        late = []
        for name, now in (await asyncio.to_thread(self._looks, names)).items():
            serving = self._serving.get(name)
            if serving is None or isinstance(now, AdapterError):
                continue
            if now is None:
                self._forget(name)
                continue
            if now.version != serving.version:
                late.append(name)
            if serving.seen != now and not self._is_refused(name, now):
                self._begin_switch(name)
        return late

    def _looks(self, names: list[str]) -> dict[str, Look | AdapterError | None]:
        """In a thread: what the store means by each name now; None: nothing."""
        looks: dict[str, Look | AdapterError | None] = {}
        for name in names:
            try:
                looks[name] = self._look(name)
            except KeyError:
                looks[name] = None
            except AdapterError as error:
                looks[name] = error
        return looks

    def _is_refused(self, name: str, now: Look) -> bool:
        refused = self._refused.get(name)
        return refused is not None and refused.seen == now and time.monotonic() < refused.until

    def _begin_switch(self, name: str) -> None:
        if name not in self._switching:
            task = asyncio.ensure_future(self.switch(name))
            self._switching[name] = task
            task.add_done_callback(lambda done: self._switched(name, done))

    def _switched(self, name: str, task: asyncio.Task[str]) -> None:
        del self._switching[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.WARNING if isinstance(error, KeyError | AdapterError) else logging.ERROR
            level = logging.DEBUG if isinstance(error, StoreAwayError) else level  # the follower
            logger.log(level, "'%s' stays as it was: %s", name, error)

    async def switch(self, name: str) -> str:
        """Load what `name` means now; from then on it serves. Returns the version.

        Raises:
            KeyError, AdapterError: as `admit`; what served before serves on.
        """
        async with self._locks[name]:
            try:
                await self.plain.adopt_when_quiet(name)
                broken = None
            except StoreAwayError:
                raise  # says nothing of the folder
            except AdapterError as error:
                broken = error
            now = await asyncio.to_thread(self._look, name)
            if now.version is None:
                raise broken or AdapterError(name, "is being written; ask again")
            serving = self._serving.get(name)
            if serving is not None and serving.seen[1:] == now[1:]:
                if not isinstance(broken, UnfinishedError):  # else the next request looks again
                    self._serving[name] = serving._replace(seen=now)  # with a broken plain folder
                return serving.version
            if self._is_refused(name, now):
                raise AdapterError(name, self._refused[name].reason)
            start = time.perf_counter()
            try:
                loaded = await self.cache.load(now.version, name)
            except StoreAwayError:
                raise  # says nothing of the version
            except AdapterError as error:
                passes = isinstance(error, EngineRefusalError)
                until = time.monotonic() + RETRY if passes else math.inf
                self._refused[name] = Refusal(now, error.reason, until)
                logger.warning("refused: %s", error)
                raise
            if name in self.withdrawn:  # while it was loaded
                self._retire(loaded.version)
                raise KeyError(name)
            self._serving[name] = Serving(now, loaded.version)
            self._refused.pop(name, None)
            if serving is not None and serving.version != loaded.version:
                MOVES.inc()
                MOVE_SECONDS.observe(time.perf_counter() - start)
                logger.info("'%s' moved from %s to %s", name, serving.version, loaded.version)
                await self._hand_over(name, serving.version, loaded)
            return loaded.version

    async def _hand_over(self, name: str, old: str, new: LoadedVersion) -> None:
        """`new` serves `name` in place of `old`, and has its pin."""
        pinned = old in self.slots.pinned and old not in self.names_by_version()
        if pinned:
            await self._unpin(old)
            task = asyncio.ensure_future(self._pin_again(name, new))
            self._pinning_again.add(task)
            task.add_done_callback(self._pinning_again.discard)
        self._retire(old)

    async def _pin_again(self, name: str, loaded: LoadedVersion) -> None:
        try:
            await self._pin(name, loaded)
        except (AdapterError, QueueFullError) as error:
            logger.warning("'%s' is no longer pinned: %s", name, error)

    def _forget(self, name: str) -> None:
        """The store has nothing of that name any more."""
        self._locks.pop(name, None)
        self._refused.pop(name, None)
        self.plain.forget(name)
        serving = self._serving.pop(name, None)
        if serving is not None:
            logger.info("forgot '%s': it is no longer in the store", name)
            self._retire(serving.version)

    def _retire(self, version: str) -> None:
        """`version` goes, and its pin with it, unless another alias serves it."""
        others = {one.version for alias, one in self._serving.items() if "@" not in alias}
        if version not in others:
            self._serving.pop(version, None)  # where it was asked for by its own name
            loaded = self.cache.get(version)
            if loaded is not None:
                self._let_go(loaded)
            self.cache.retire(version)

    def threshold(self, name: str, own: Gate | None) -> Threshold:
        """What NAME:gated opens at where a request does not say; `own`: its calibration."""
        return threshold(own, self.taus.get(name), self.default_gate)

    def served(self) -> list[str]:
        """Names of aliases that something serves."""
        return [name for name in list(self._serving) if "@" not in name]

    def serving(self, name: str) -> str | None:
        """The version that serves `name` now."""
        one = self._serving.get(name)
        return one.version if one else None

    def names_by_version(self) -> dict[str, list[str]]:
        """Version -> the aliases that it answers for now, of those that were asked for."""
        names: dict[str, list[str]] = defaultdict(list)
        for name, one in sorted(self._serving.items()):
            if "@" not in name and name not in self.withdrawn:
                names[one.version].append(name)
        return dict(names)

    def refusal(self, name: str) -> str | None:
        """Why the store's present content of `name` could not be loaded."""
        refused = self._refused.get(name)
        return refused.reason if refused else self.plain.refusal(name)

    def waiting_for(self, version: str) -> int:
        """Requests that wait for a slot or a place of `version`."""
        return self.slots.waiting_for(version) + self.host_slots.waiting_for(version)

    def live(self) -> set[str]:
        """Versions that an alias serves, or that are in the engine."""
        for name, one in list(self._serving.items()):
            if "@" in name and self.cache.get(one.version) is None:
                del self._serving[name]  # asked for by its own name, some time ago
        return {one.version for one in self.cache} | {one.version for one in self._serving.values()}

    def loading(self) -> list[str]:
        """Names that another version is on its way in for."""
        return list(self._switching)

    def refused(self) -> list[str]:
        """Names whose present content in the store could not be loaded."""
        return list(dict.fromkeys([*self._refused, *self.plain.refused()]))

    # ------------------------------------------------------------------------------------ by hand

    async def preload(self, reference: str) -> LoadedVersion:
        """Have what `reference` means in the engine before anybody asks for it.

        What was refused before is tried again.
        """
        for name in (reference, reference.partition("@")[0]):
            self._refused.pop(name, None)
            self.plain.forget(name)
        self.withdrawn.discard(reference)
        version = await self.version(reference)
        loaded = await self._load(version, reference)
        if loaded is None:
            raise AdapterError(reference, "was replaced meanwhile; ask again")
        return loaded

    async def move(self, name: str, version: str, act: Callable[[], Any]) -> None:
        """Load `version`, have `act` move the alias to it in the store, and serve it.

        Args:
            act: runs in a thread; it may trust that the version has been read.

        Raises:
            KeyError, AdapterError: it cannot be loaded or the store refuses; nothing has moved.
        """

        def act_within_reach() -> None:
            with self.store.reached(name):
                act()

        await self.preload(version)
        await asyncio.to_thread(act_within_reach)
        self.withdrawn.discard(name)
        await self.switch(name)

    async def pin(self, name: str, pinned: bool) -> None:
        """Keep what serves `name` in its slot; at least one slot stays for the others.

        Waits until that slot is free: the engine ends where those that run have one too few.

        Raises:
            KeyError, AdapterError: as `admit`, or no further one can be pinned.
            QueueFullError: too many wait for a slot.
        """
        loaded = await self.preload(name)
        if pinned:
            await self._pin(name, loaded)
        else:
            await self._unpin(loaded.version)

    async def _pin(self, name: str, loaded: LoadedVersion) -> None:
        version, slots = loaded.version, self.slots
        if len(slots.pinned | self._pinning | {version}) >= slots.count:
            raise AdapterError(
                name, f"of {slots.count} slots an engine (--max-loras) one must stay unpinned"
            )
        with ExitStack() as taken:
            self._pinning.add(version)
            taken.callback(self._pinning.discard, version)
            self.cache.enter(loaded)
            taken.callback(self.cache.leave, loaded)
            for engine in range(len(slots.engines)):
                await slots.take(version, engine)
                taken.callback(slots.give, version, engine)
            await self.host_slots.take(version)
            taken.callback(self.host_slots.give, version)
            await self.cache.pin(loaded, True)
            for turns in (slots, self.host_slots):
                turns.pin(version)

    async def _unpin(self, version: str) -> None:
        loaded = self.cache.get(version)
        if loaded is not None:
            with suppress(AdapterError):  # it goes, and its pin with it
                await self.cache.pin(loaded, False)
        for turns in (self.slots, self.host_slots):
            turns.unpin(version)

    def of_name(self, name: str) -> list[LoadedVersion]:
        """What of `name` is in the engine: its versions, and what serves it."""
        return [
            one
            for one in self.cache
            if one.version in (name, self.serving(name)) or one.version.partition("@")[0] == name
        ]

    def unload(self, name: str) -> None:
        """Take what `name` has in the engine out of it, once the requests are over."""
        for loaded in self.of_name(name):
            self._let_go(loaded)
            self.cache.retire(loaded.version)

    def _let_go(self, loaded: LoadedVersion) -> None:
        """Take its pin away; the engine hears of it when it is dropped, or used again."""
        loaded.pinned = False
        for turns in (self.slots, self.host_slots):
            turns.unpin(loaded.version)

    def withdraw(self, name: str) -> None:
        """Serve `name` no longer, until it is loaded by hand; the store keeps it.

        Requests that it answers finish. Its version leaves the engine unless another name needs it.
        """
        self.withdrawn.add(name)
        serving = self._serving.pop(name, None)
        if serving is not None:
            self._retire(serving.version)

    # ----------------------------------------------------------------------------------- listing

    def listing(self) -> Listing:
        """Every adapter of the store, checked against the base; unchanged ones only once."""
        listing = Listing({}, {})
        names = [name for name in self.names() if name not in self.withdrawn]
        self.store.bring_records(names)
        for name in names:
            try:
                seen = self.checked(name)
            except KeyError:
                continue  # removed between the two looks
            if isinstance(seen, AdapterError):
                listing.refused[name] = seen
            else:
                listing.offered[name] = seen
        return listing

    def checked(self, name: str) -> AdapterVersion | AdapterError:
        """The store's present content of `name`, or what is wrong with it. Call from a thread.

        Raises:
            KeyError: there is none.
        """
        broken: AdapterError | None = None
        try:
            self.plain.adopt(name)
        except AdapterError as error:
            broken = error
        try:
            now = self._look(name)
        except StoreAwayError as error:
            return self._checked[name][1] if name in self._checked else error
        except AdapterError as error:
            return error
        if now.version is None:
            return broken or AdapterError(name, "is being written; ask again")
        seen = self._checked.get(name)
        if seen is None or seen[0] != now:
            seen = now, self._check(name)
            if not isinstance(seen[1], StoreAwayError):
                self._checked[name] = seen
        return seen[1]

    def described(self, name: str) -> tuple[str, Gate | None]:
        """The version that would answer for `name` now, and its gate. Call from a thread.

        Raises:
            KeyError, AdapterError: as `admit`.
        """
        if name in self.withdrawn:
            raise KeyError(name)
        serving = self._serving.get(name)
        if serving is not None:
            with suppress(AdapterError):
                self.resolve(name)
            loaded = self.cache.get(serving.version)
            if loaded is not None:
                return loaded.version, loaded.gate
        found = self.checked(serving.version if serving else name)
        if isinstance(found, AdapterError):
            raise found
        return found.id, found.gate

    def _check(self, name: str) -> AdapterVersion | AdapterError:
        if self.cache.models.is_base_model(name):
            return AdapterError(name, "has the base's own name; rename its folder")
        try:
            with self.store.reached(name):
                found = self.store.get(name, self.cache.base, self.cache.max_rank, hashes=False)
            self._compare_prompts(found)
            return found
        except AdapterError as error:
            return error
        except (OSError, ValueError) as error:
            return AdapterError(name, f"cannot be checked: {error}")

    def _compare_prompts(self, version: AdapterVersion) -> None:
        """Warn of an adapter that was fitted on another prompt than its chats will have."""
        complaint = (
            self.prompt.complaint(version.manifest) if self.prompt and version.manifest else None
        )
        if complaint:
            logger.warning("adapter %s %s", version.id, complaint)
