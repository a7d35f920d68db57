"""The scheduler's turns: no step runs more adapters than there are slots, and none starves."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_gate import pins
from vllm_gate.turns import Turns
from vllm_gate.two_rows import TwoRows

SLOTS = 2


def request(lora: int | None) -> Any:
    """A request that runs, with an adapter or as the base."""
    named = None if lora is None else SimpleNamespace(lora_int_id=lora)
    return SimpleNamespace(lora_request=named, next_decode_eligible_step=0)


def step(turns: Turns, running: list[Any], number: int) -> set[int]:
    """The adapters that step `number` of vLLM may run."""
    turns.take(running, [], number - 1)
    return {
        request.lora_request.lora_int_id
        for request in running
        if request.lora_request and number >= request.next_decode_eligible_step
    }


@pytest.mark.parametrize("shares_slots", [True, False])
def test_a_replay_that_brings_a_third_adapter_back_makes_one_wait(
    monkeypatch: pytest.MonkeyPatch, shares_slots: bool
) -> None:
    monkeypatch.setattr(pins, "PINNED", set())
    running = [request(lora) for lora in (1, 1, 2, 3, None)]
    turns = Turns(SLOTS, shares_slots)
    steps: Counter[int] = Counter()
    for number in range(1, 10):
        ran = step(turns, running, number)
        assert len(ran) == SLOTS
        steps.update(ran)
    assert set(steps) == {1, 2, 3} and min(steps.values()) >= 4  # nobody waits two steps long
    base = running[-1]
    assert base.next_decode_eligible_step == 0


def test_those_that_fit_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "PINNED", set())
    turns, running = Turns(SLOTS, shared=False), [request(1), request(2)]
    assert all(step(turns, running, number) == {1, 2} for number in range(1, 5))


def test_always_on_requests_alone_take_turns_beside_a_pinned_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's worker would evict one that the step runs, and end the engine at its rows."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from vllm_gate.scheduler import GateMixin

    monkeypatch.setattr(pins, "PINNED", {9})
    scheduler: Any = object.__new__(GateMixin)
    vars(scheduler).update(
        _gates={},
        _turns=Turns(SLOTS, shared=True),
        _two_rows=TwoRows(),
        lora_config=SimpleNamespace(max_loras=SLOTS),
        running=[request(1), request(2)],
        waiting=[],
        requests={},
        current_step=0,
    )
    seen: list[tuple[int, list[int]]] = []

    def schedule(self: Any, _: bool) -> Any:
        eligible = [one.next_decode_eligible_step for one in self.running]
        seen.append((self.lora_config.max_loras, eligible))
        return SimpleNamespace(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
            num_scheduled_tokens={},
            total_num_scheduled_tokens=0,
        )

    monkeypatch.setattr(Scheduler, "schedule", schedule)
    scheduler.schedule()
    assert seen == [(SLOTS - 1, [0, 2])]  # the second one waits for the step after the next
    assert scheduler.lora_config.max_loras == SLOTS
