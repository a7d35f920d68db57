"""Plain PEFT folders of the store become versions when they are found.

A folder may be found while somebody still copies files into it. So it is left alone until nothing
in it has changed for a second. Requests for it wait for that, and listings do not. No thread waits,
since every request for an adapter needs one. A folder that cannot be used stays as it is, refused
with the reason, and is looked at again once it has changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from adapters.adapter import WEIGHTS, AdapterError, AdapterVersion
from adapters.files import stamp
from adapters.store import Plain, Store, StoreAwayError, StoreError

logger = logging.getLogger(__name__)

QUIET = 1.0  # seconds without a change
PATIENCE = 30.0  # seconds to wait for that
BUSY = 0.1  # seconds until a folder is looked at again that another thread makes a version of
RETRY = 30.0  # seconds until a store that could not be written is tried again
BY = "the server, which found a plain folder"


class UnfinishedError(AdapterError):
    """A plain folder that is not complete yet, or not a version yet."""

    def __init__(self, name: str, left: float) -> None:
        super().__init__(name, "is being written; ask again when it is complete")
        self.left = left  # seconds until it is worth another look


class Refused(NamedTuple):
    """A plain folder that has not become a version."""

    found: Plain  # as it was then
    error: AdapterError
    until: float = math.inf  # by the monotonic clock, if it does not change


@dataclass
class PlainFolders:
    """Those of one store, for one process. Call from threads."""

    store: Store
    _refused: dict[str, Refused] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))
    _adopted: dict[str, tuple[int, ...]] = field(default_factory=dict)  # version -> its weights

    async def adopt_when_quiet(self, name: str) -> None:
        """`adopt`, once the folder is complete; the event loop waits for that, and no thread."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await asyncio.to_thread(self.adopt, name)
            except UnfinishedError as error:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(error.left)

    def adopt(self, name: str) -> None:
        """Make a version of the plain folder `name`, where there is one. It never waits.

        Raises:
            UnfinishedError: somebody still writes it, or another thread adopts it.
            AdapterError: it cannot become one.
            StoreAwayError: nobody knows now whether it can.
        """
        with self.store.reached(name):
            self._adopt(name)

    def _adopt(self, name: str) -> None:
        if self.store.plain(name) is None:
            self._refused.pop(name, None)
            return
        lock = self._locks[name]
        if not lock.acquire(blocking=False):
            raise UnfinishedError(name, BUSY)
        try:
            self._adopt_alone(name)
        finally:
            lock.release()

    def _adopt_alone(self, name: str) -> None:
        while (found := self._complete(name)) is not None:
            seen = self._refused.get(name)
            if seen and seen.found == found and time.monotonic() < seen.until:
                raise seen.error
            try:
                with self.store.reached(name):
                    version = self.store.adopt(name, by=BY)
            except StoreAwayError:
                raise  # says nothing of the folder
            except (AdapterError, OSError, ValueError) as error:
                if self.store.plain(name) != found:
                    continue  # adopted by another server, or written again
                self._refused[name] = refused = _refusal(name, found, error)
                logger.warning("refused: %s", refused.error)
                raise refused.error from error
            self._refused.pop(name, None)
            if version is not None:
                self._adopted[version.id] = stamp(version.path / WEIGHTS)
                logger.info("the plain folder '%s' became %s", name, version.id)
            return

    def just_read(self, version: AdapterVersion) -> bool:
        """Whether its weights were read when it was adopted, and are as they were; asked once."""
        return self._adopted.pop(version.id, None) == stamp(version.path / WEIGHTS)

    def refusal(self, name: str) -> str | None:
        """Why the plain folder `name` has not become a version."""
        seen = self._refused.get(name)
        return seen.error.reason if seen else None

    def refused(self) -> list[str]:
        """Names of plain folders that cannot be used."""
        return list(self._refused)

    def forget(self, name: str) -> None:
        """Look at `name` again, changed or not."""
        self._refused.pop(name, None)

    def _complete(self, name: str) -> Plain | None:
        """The folder, whose last change must be a while ago; None where it is gone."""
        found = self.store.plain(name)
        if found is not None:
            left = found.changed / 1e9 + QUIET - time.time()
            if 0 < left <= QUIET:  # beyond that its clock is ahead of ours
                raise UnfinishedError(name, left)
        return found


def _refusal(name: str, found: Plain, error: Exception) -> Refused:
    if isinstance(error, StoreError):
        way_out = "make it writable for the server, or publish the folder as a version"
        reason = f"is a plain folder, and {error.reason}; {way_out}"
        return Refused(found, AdapterError(name, reason), time.monotonic() + RETRY)
    reason = error.reason if isinstance(error, AdapterError) else f"cannot be read: {error}"
    return Refused(found, AdapterError(name, reason))
