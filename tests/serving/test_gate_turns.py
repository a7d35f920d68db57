"""The scheduler's turns: no step runs more adapters than there are slots, and none starves."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_gate import pins
from vllm_gate.turns import Turns

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
