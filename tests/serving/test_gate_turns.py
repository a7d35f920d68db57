"""The scheduler's turns: no step runs more adapters than there are slots, and none starves."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_gate import pins
from vllm_gate.scheduler import GateMixin

SLOTS = 2


def request(lora: int | None) -> Any:
    """A request that runs, with an adapter or as the base."""
    named = None if lora is None else SimpleNamespace(lora_int_id=lora)
    return SimpleNamespace(lora_request=named, next_decode_eligible_step=0)


def scheduler(running: list[Any], shares_slots: bool) -> Any:
    """As much of one as takes turns."""
    one: Any = object.__new__(GateMixin)
    one.running, one.waiting, one.current_step = running, [], 0
    one.lora_config, one._slots = SimpleNamespace(max_loras=SLOTS), SLOTS
    one._turned_away, one._shares_slots = {}, shares_slots
    return one


def step(one: Any) -> set[int]:
    """The adapters that a step of vLLM's may run."""
    one._take_turns()
    one.current_step += 1
    return {
        request.lora_request.lora_int_id
        for request in one.running
        if request.lora_request and one.current_step >= request.next_decode_eligible_step
    }


@pytest.mark.parametrize("shares_slots", [True, False])
def test_a_replay_that_brings_a_third_adapter_back_makes_one_wait(
    monkeypatch: pytest.MonkeyPatch, shares_slots: bool
) -> None:
    monkeypatch.setattr(pins, "PINNED", set())
    running = [request(lora) for lora in (1, 1, 2, 3, None)]
    one = scheduler(running, shares_slots)
    turns: Counter[int] = Counter()
    for _ in range(9):
        ran = step(one)
        assert len(ran) == SLOTS
        turns.update(ran)
    assert set(turns) == {1, 2, 3} and min(turns.values()) >= 4  # nobody waits two steps long
    base = running[-1]
    assert base.next_decode_eligible_step == 0


def test_those_that_fit_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "PINNED", set())
    one = scheduler([request(1), request(2)], shares_slots=False)
    assert all(step(one) == {1, 2} for _ in range(4))
