"""The server follows its store: an alias that is moved anywhere is served here within two seconds.

It looks at the store each second, which costs a bucket one conditional read: a few bytes while
nothing has moved. What moved is loaded, and serves then (serving/aliases.py). While the store
cannot be reached, what is served goes on; /health and the metrics say how old the last good look
is, and the next one catches up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from adapters.moves import DamagedHistoryError
from serving.aliases import Aliases
from serving.metrics import POLLS

logger = logging.getLogger(__name__)


@dataclass
class Follower:
    """Looks at the store of `aliases` every `seconds`.

    Args:
        reached: False where the store could not be reached when it was opened.
    """

    aliases: Aliases
    seconds: float
    reached: bool = True
    looked: float = field(default_factory=time.monotonic)  # the last good look
    _behind: dict[str, float] = field(default_factory=dict)  # name -> since when
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on, in the running loop."""
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            start = time.monotonic()
            try:
                await self.look()
            except Exception:  # of a fault in here; the next look may do better
                logger.exception("the store could not be followed")
            await asyncio.sleep(max(0.0, self.seconds - (time.monotonic() - start)))

    async def look(self) -> None:
        """Look once, and begin to load what has moved."""
        start, store = time.monotonic(), self.aliases.store
        try:
            await asyncio.to_thread(store.refresh)
        except (OSError, DamagedHistoryError) as error:
            POLLS.labels("failed").inc()
            if self.reached:
                logger.warning("the store is out of reach; serving what is here: %s", error)
            self.reached = False
            return
        POLLS.labels("ok").inc()
        if not self.reached:
            logger.info("the store is within reach again, after %.0f s", start - self.looked)
        self.reached, self.looked = True, start
        late = await self.aliases.follow()
        self._behind = {name: self._behind.get(name, start) for name in late}

    @property
    def age(self) -> float:
        """Seconds since the last good look."""
        return time.monotonic() - self.looked

    def behind(self) -> dict[str, float]:
        """Names whose alias points at another version than is served, and for how many seconds."""
        now = time.monotonic()
        return {name: now - since for name, since in self._behind.items()}

    def facts(self) -> dict[str, Any]:
        """What /health says; it asks for no key, so nothing of it names a place or an adapter."""
        return {
            "reached": self.reached,
            "age_seconds": round(self.age, 1),
            "behind": len(self._behind),
        }
