"""Turns for adapters: never more than there are slots, nobody starves, the queue is bounded."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.slots import QueueFullError, Slots


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def queued(slots: Slots, *asked: Any) -> asyncio.Task[int]:
    """A request that has had its turn to ask for a slot."""
    task = asyncio.create_task(slots.take(*asked))
    await asyncio.sleep(0)
    return task


async def engine_of(task: asyncio.Task[int]) -> int:
    """Where a request has its slot, if its turn has come."""
    await asyncio.sleep(0)
    return task.result()


async def test_a_fifth_adapter_waits_and_an_impatient_one_closes_the_door() -> None:
    clock = Clock()
    slots = Slots(2, patience=1.0, clock=clock)
    await slots.take("a")
    await slots.take("b")
    third = await queued(slots, "c")
    assert slots.waiting == 1
    await slots.take("a")  # c is still patient
    clock.now = 1.6  # patience, and half as much for one adapter that waits for two slots
    late = await queued(slots, "a")  # no longer
    assert slots.waiting == 2
    slots.give("a")
    await asyncio.sleep(0)
    assert not third.done()  # a still answers its other request
    slots.give("a")
    await third
    assert set(slots.busy) == {"b", "c"}
    assert not late.done()
    slots.give("b")
    await late
    assert (slots.busy, slots.waiting) == ({"c": 1, "a": 1}, 0)
    assert slots.longest_wait == 1.6


async def test_all_that_wait_for_one_version_enter_together() -> None:
    slots = Slots(1)
    await slots.take("a")
    tasks = [asyncio.create_task(slots.take(version)) for version in "bcb"]
    await asyncio.sleep(0)
    slots.give("a")
    await asyncio.gather(tasks[0], tasks[2])
    assert slots.busy == {"b": 2}
    assert not tasks[1].done()
    slots.give("b")
    slots.give("b")
    await tasks[1]


async def test_the_most_wanted_goes_first_until_another_is_impatient() -> None:
    clock = Clock()
    slots = Slots(1, patience=1.0, clock=clock)
    await slots.take("a")
    rare, *wanted = (asyncio.create_task(slots.take(version)) for version in "bcc")
    await asyncio.sleep(0)
    slots.give("a")
    await asyncio.gather(*wanted)
    assert slots.busy == {"c": 2}
    more = [asyncio.create_task(slots.take("d")) for _ in range(3)]
    await asyncio.sleep(0)
    clock.now = 3.5  # two adapters wait for one slot: three times the patience
    slots.give("c")
    slots.give("c")
    await rare
    assert slots.busy == {"b": 1}
    slots.give("b")
    await asyncio.gather(*more)


async def test_pinned_versions_keep_their_slot() -> None:
    slots = Slots(2)
    slots.pinned.add("p")
    await slots.take("a")
    waits = await queued(slots, "b")
    assert slots.waiting == 1
    await slots.take("p")
    slots.give("p")
    await asyncio.sleep(0)
    assert not waits.done()  # the pinned slot is not for others
    slots.give("a")
    await waits


async def test_a_full_queue_refuses_one_version_before_all() -> None:
    slots = Slots(1, queue=4)
    await slots.take("a")
    tasks = [asyncio.create_task(slots.take("b")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="adapter 'b' has 2") as refused:
        await slots.take("b")
    assert refused.value.status == 429
    tasks += [asyncio.create_task(slots.take("c")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="the adapters have 4") as refused:
        await slots.take("d")
    assert refused.value.status == 503
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert slots.waiting == 0


async def test_a_client_that_leaves_at_its_turn_gives_it_on() -> None:
    slots = Slots(1)
    await slots.take("a")
    leaves = asyncio.create_task(slots.take("b"))
    stays = await queued(slots, "c")
    slots.give("a")  # b's turn has come ...
    leaves.cancel()  # ... and its client goes before it notices
    await asyncio.gather(leaves, return_exceptions=True)
    await stays
    assert slots.busy == {"c": 1}


async def test_two_engines_have_twice_the_slots() -> None:
    slots = Slots(2, engines=2)
    assert [await slots.take(version) for version in "abcd"] == [0, 1, 0, 1]
    assert (slots.total, slots.in_use) == (4, 4)
    fifth = await queued(slots, "e")
    assert slots.waiting == 1
    assert await slots.take("a") == 0  # where it has a slot
    slots.give("d", 1)
    assert await fifth == 1
    slots.pinned.add("e")  # on each engine
    assert slots.in_use == 5


async def test_the_less_busy_engine_answers_unless_others_wait() -> None:
    base = [5, 0]  # requests without a slot
    slots = Slots(2, engines=2, load=base.__getitem__)
    assert [await slots.take("a") for _ in range(3)] == [1, 1, 1]
    base[0] = 0
    assert [await slots.take("a") for _ in range(3)] == [0, 0, 0]
    assert slots.in_use == 2  # on both
    for engine in (0, 1):
        assert await slots.take(f"b{engine}", engine) == engine
    waits = await queued(slots, "c")
    for _ in range(3):
        slots.give("a", 0)
    assert await waits == 0
    waits = await queued(slots, "d")
    base[1] = 9
    assert await slots.take("a") == 1  # the other engine's slots are for others
    waits.cancel()


async def test_a_client_may_ask_for_an_engine() -> None:
    slots = Slots(1, engines=2)
    assert [await slots.take("a", wanted) for wanted in (1, 1, 0, 7)] == [1, 1, 0, 0]
    waits = await queued(slots, "b", 0)
    for engine in (1, 1):
        slots.give("a", engine)
    await asyncio.sleep(0)
    assert not waits.done()
    for _ in range(2):
        slots.give("a", 0)
    assert await waits == 0


async def test_who_asks_for_a_busy_engine_holds_no_slot_of_another_up() -> None:
    clock = Clock()
    slots = Slots(1, engines=2, patience=1.0, clock=clock)
    for engine in (0, 1):
        await slots.take(f"busy{engine}", engine)
    asked = [await queued(slots, "x", 0) for _ in range(2)]  # the most wanted, and the first
    other = await queued(slots, "z")
    slots.give("busy1", 1)
    assert await engine_of(other) == 1
    clock.now = 60.0  # x is impatient: it closes its engine, and no other
    slots.give("z", 1)
    assert await engine_of(await queued(slots, "w")) == 1
    more = [await queued(slots, *one) for one in (("busy0", 0), ("v",))]
    clock.now = 120.0  # so is v, which any engine could answer
    late = await queued(slots, "w")
    assert not any(one.done() for one in (*asked, *more, late))
    slots.give("w", 1)
    assert await engine_of(more[1]) == 1
    slots.give("busy0", 0)
    assert [await engine_of(one) for one in asked] == [0, 0]
    slots.give("v", 1)
    assert await engine_of(late) == 1
    for _ in asked:
        slots.give("x", 0)
    assert await engine_of(more[0]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(0, 10_000))
async def test_never_too_many_nobody_forgotten(
    count: int, adapters: int, engines: int, seed: int
) -> None:
    choose = random.Random(seed)
    slots = Slots(count, patience=0.0, engines=engines)

    async def request(version: str) -> None:
        engine = await slots.take(version, choose.choice((None, None, *range(engines))))
        try:
            assert max(map(len, slots.engines)) <= count
            for _ in range(choose.randint(0, 5)):
                await asyncio.sleep(0)
        finally:
            slots.give(version, engine)

    tasks = []
    for _ in range(60):
        task = asyncio.create_task(request(f"v{choose.randrange(adapters)}"))
        tasks.append(task)
        if choose.random() < 0.2:
            choose.choice(tasks).cancel()
        if choose.random() < 0.5:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
    assert (slots.waiting, slots.busy) == (0, {})
