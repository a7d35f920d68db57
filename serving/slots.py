"""Which adapters may answer at the same time: as many as the engine has slots, in fair turns.

vLLM skips a waiting request whose adapter does not fit beside those that run, for as long as the
running ones have work: under steady traffic it starves. Here a free slot goes to the adapter that
most requests wait for, since all of them then run in one batch; until one has waited longer than
`patience`, which closes the door on those that run: their next requests queue behind it, the first
to finish gives it its slot. So the longest wait is bounded by patience and the answers ahead. An
adapter whose requests name an engine closes that one alone, and leaves the others' slots to others.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass


class QueueFullError(RuntimeError):
    """No room to wait."""

    def __init__(self, version: str, status: int, waiting: int) -> None:
        whose = f"adapter '{version}' has" if status == 429 else "the adapters have"
        super().__init__(f"model: {whose} {waiting} requests waiting for a slot; ask again later")
        self.status = status


@dataclass(eq=False)
class _Waiting:
    version: str
    since: float
    turn: asyncio.Future[int]  # the engine
    wanted: int | None  # the engine that the client asks for


class Slots:
    """Turns for versions, in one event loop.

    Args:
        count: versions at a time on an engine (vLLM's --max-loras).
        queue: requests that may wait; one version may fill half of it.
        patience: seconds an adapter waits before its turn comes first; so many more as there are
            adapters waiting for each slot, or a long queue would be all impatience.
        engines: how many there are.
        load: requests in flight on an engine, those without a slot included.
    """

    def __init__(
        self,
        count: int,
        queue: int = 1024,
        patience: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        *,
        engines: int = 1,
        load: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self.count, self.queue, self.patience = count, queue, patience
        # Of each engine: version -> requests being answered.
        self.engines: list[Counter[str]] = [Counter() for _ in range(engines)]
        self.pinned: set[str] = set()  # versions that keep a slot on every engine, busy or not
        self.longest_wait = 0.0  # seconds, of those that got their turn
        self._clock, self._load = clock, load
        self._waiting: deque[_Waiting] = deque()

    @property
    def busy(self) -> Counter[str]:
        """Version -> requests being answered, on all engines."""
        return sum(self.engines, Counter())

    @property
    def total(self) -> int:
        """Slots of all engines."""
        return self.count * len(self.engines)

    @property
    def in_use(self) -> int:
        """Slots whose version answers or is pinned, of all engines."""
        return sum(len(self.pinned | set(busy)) for busy in self.engines)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def waiting_for(self, version: str) -> int:
        """Requests in the queue for one version."""
        # A copy: /metrics counts in a thread, while others join and leave.
        return sum(one.version == version for one in list(self._waiting))

    async def take(self, version: str, wanted: int | None = None) -> int:
        """Wait for `version`'s turn; each take needs one give.

        Args:
            version: NAME@HASH.
            wanted: the engine that the client asks for; one that there is not counts as None.

        Returns:
            The engine that has the slot.

        Raises:
            QueueFullError: status 429 where this version's share of the queue is full, else 503.
        """
        now = self._clock()
        if wanted is not None and not 0 <= wanted < len(self.engines):
            wanted = None  # vLLM refuses the request
        engine = self._engine(version, wanted, self._closed())
        if engine is not None:
            # Nobody in the queue could use the slot, or they would have it already.
            self.engines[engine][version] += 1
            return engine
        if self.waiting_for(version) >= max(1, self.queue // 2):
            raise QueueFullError(version, 429, self.waiting_for(version))
        if self.waiting >= self.queue:
            raise QueueFullError(version, 503, self.waiting)
        mine = _Waiting(version, now, asyncio.get_running_loop().create_future(), wanted)
        self._waiting.append(mine)
        try:
            return await mine.turn
        except asyncio.CancelledError:
            if mine.turn.cancelled():
                self._admit()  # those behind it may fit where it did not
            else:
                self.give(version, mine.turn.result())  # the client went as its turn came
            raise

    def give(self, version: str, engine: int = 0) -> None:
        """One request of `version` is over, which had its slot on `engine`."""
        busy = self.engines[engine]
        busy[version] -= 1
        if busy[version] <= 0:
            del busy[version]
        self._admit()

    def pin(self, version: str) -> None:
        """Have `version` keep a slot on every engine; the caller has taken one on each."""
        self.pinned.add(version)

    def unpin(self, version: str) -> None:
        """Its slots are for others again, where no request of its own is being answered."""
        self.pinned.discard(version)
        self._admit()

    def _engine(self, version: str, wanted: int | None, closed: dict[int, str]) -> int | None:
        """The least busy engine with a slot for `version`; None where there is none."""
        engines = [
            one
            for one in (range(len(self.engines)) if wanted is None else (wanted,))
            if version in self.pinned or closed.get(one, version) == version
        ]
        here = [one for one in engines if version in self.pinned or version in self.engines[one]]
        crowded = any(one.version != version for one in self._waiting)
        if not (here and crowded):
            here += [
                one
                for one in engines
                if one not in here and len(self.pinned | set(self.engines[one])) < self.count
            ]
        return min(here, key=self._requests, default=None)

    def _requests(self, engine: int) -> int:
        """Requests in flight on an engine; those that just got a slot have not reached it yet."""
        return max(sum(self.engines[engine].values()), self._load(engine))

    def _impatient_since(self) -> float:
        """Nothing goes before those that have waited since before this time."""
        adapters = len({one.version for one in self._waiting})
        return self._clock() - self.patience * (1 + adapters / self.total)

    def _closed(self) -> dict[int, str]:
        """Engine -> the version to which an impatient request keeps it."""
        since, closed = self._impatient_since(), dict[int, str]()
        for engine in range(len(self.engines)):
            first = next((one for one in self._waiting if one.wanted in (None, engine)), None)
            if first is not None and first.since < since:
                closed[engine] = first.version
        return closed

    def _turns(self) -> list[str]:
        """The versions that are waited for, in the order of their turns."""
        since = self._impatient_since()
        impatient = [one.version for one in self._waiting if one.since < since]
        wanted = Counter(one.version for one in self._waiting)
        # Of equals that first which has waited longest.
        most = sorted(wanted, key=wanted.__getitem__, reverse=True)
        return list(dict.fromkeys([*impatient, *most]))

    def _admit(self) -> None:
        """Give turns, each to all that wait for one version, until nobody fits any more."""
        self._waiting = deque(one for one in self._waiting if not one.turn.cancelled())
        while self._waiting and self._enter_next():
            pass

    def _enter_next(self) -> bool:
        """Give slots to those that wait for the first version that fits; whether one does.

        Those before it keep the engines that they could use.
        """
        waiting: dict[str, list[_Waiting]] = {}
        for one in self._waiting:
            waiting.setdefault(one.version, []).append(one)
        closed: dict[int, str] = {}
        for version in self._turns():
            if self._enter(waiting[version], closed):
                return True
            for wanted in {one.wanted for one in waiting[version]}:
                for engine in range(len(self.engines)) if wanted is None else (wanted,):
                    closed.setdefault(engine, version)
            if len(closed) == len(self.engines):
                break
        return False

    def _enter(self, waiting: list[_Waiting], closed: dict[int, str]) -> bool:
        """Give slots to those that wait for one version; whether any got one."""
        now = self._clock()
        entered = False
        for one in waiting:
            engine = self._engine(one.version, one.wanted, closed)
            if engine is None:
                continue  # the engine that the client asks for is full, or kept for others
            self.longest_wait = max(self.longest_wait, now - one.since)
            self.engines[engine][one.version] += 1
            one.turn.set_result(engine)
            entered = True
        self._waiting = deque(one for one in self._waiting if not one.turn.done())
        return entered
