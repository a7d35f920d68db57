"""Which adapters may answer at the same time: as many as the engine has slots, in fair turns.

vLLM skips a waiting request whose adapter does not fit beside those that run, for as long as the
running ones have work: under steady traffic it starves. Here a free slot goes to the adapter that
most requests wait for, since all of them then run in one batch; until one has waited longer than
`patience`, which closes the door on those that run: their next requests queue behind it, the first
to finish gives it its slot. So the longest wait is bounded by patience and the answers ahead.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from serving.metrics import QUEUE_SECONDS


class QueueFullError(RuntimeError):
    """No room to wait."""

    def __init__(self, version: str, status: int, waiting: int) -> None:
        whose = f"adapter '{version}' has" if status == 429 else "the adapters have"
        super().__init__(f"model: {whose} {waiting} requests waiting for a slot; ask again later")
        self.status = status


@dataclass
class _Waiting:
    version: str
    since: float
    turn: asyncio.Future[None]


class Slots:
    """Turns for versions, in one event loop.

    Args:
        count: versions at a time (vLLM's --max-loras).
        queue: requests that may wait; one version may fill half of it.
        patience: seconds an adapter waits before its turn comes first; so many more as there are
            adapters waiting for each slot, or a long queue would be all impatience.
    """

    def __init__(
        self,
        count: int,
        queue: int = 1024,
        patience: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count, self.queue, self.patience = count, queue, patience
        self.busy: Counter[str] = Counter()  # version -> requests being answered
        self.pinned: set[str] = set()  # versions that keep a slot, busy or not
        self.longest_wait = 0.0  # seconds, of those that got their turn
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def waiting_for(self, version: str) -> int:
        """Requests in the queue for one version."""
        return sum(one.version == version for one in self._waiting)

    async def take(self, version: str) -> None:
        """Wait for `version`'s turn; each take needs one give.

        Raises:
            QueueFullError: status 429 where this version's share of the queue is full, else 503.
        """
        now = self._clock()
        if version in self.pinned or (self._fits(version) and not self._impatient()):
            # Nobody in the queue could use the slot, or they would have it already.
            self.busy[version] += 1
            QUEUE_SECONDS.observe(0)
            return
        if self.waiting_for(version) >= max(1, self.queue // 2):
            raise QueueFullError(version, 429, self.waiting_for(version))
        if self.waiting >= self.queue:
            raise QueueFullError(version, 503, self.waiting)
        mine = _Waiting(version, now, asyncio.get_running_loop().create_future())
        self._waiting.append(mine)
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine.turn.cancelled():
                self._admit()  # those behind it may fit where it did not
            else:
                self.give(version)  # the turn came at the moment the client went
            raise

    def give(self, version: str) -> None:
        """One request of `version` is over."""
        self.busy[version] -= 1
        if self.busy[version] <= 0:
            del self.busy[version]
        self._admit()

    def _fits(self, version: str) -> bool:
        return version in self.busy or len(self.pinned | set(self.busy)) < self.count

    def _impatient(self) -> bool:
        """Whether the head of the queue has waited so long that nothing goes before it."""
        if not self._waiting:
            return False
        adapters = len({one.version for one in self._waiting})
        waited = self._clock() - self._waiting[0].since
        return waited > self.patience * (1 + adapters / self.count)

    def _next(self) -> str:
        """The version whose turn is next."""
        if self._impatient():
            return self._waiting[0].version
        wanted = Counter(one.version for one in self._waiting)
        return max(wanted, key=wanted.__getitem__)  # of equals the one that has waited longest

    def _admit(self) -> None:
        """Give turns, each to all that wait for one version."""
        self._waiting = deque(one for one in self._waiting if not one.turn.cancelled())
        while self._waiting and self._fits(version := self._next()):
            now = self._clock()
            enter = [one for one in self._waiting if one.version == version]
            self._waiting = deque(one for one in self._waiting if one.version != version)
            self.longest_wait = max(self.longest_wait, now - enter[0].since)
            self.busy[version] += len(enter)
            for one in enter:
                QUEUE_SECONDS.observe(now - one.since)
                one.turn.set_result(None)
