"""Engines side by side: who gets which prompts and GPUs, and how their answers come back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any, ClassVar

import pytest

from training.generation import generator, vllm_engine
from training.generation.interface import Completion, Event, Sampled, SamplingOptions, VllmArguments
from training.generation.vllm_engine import VllmEngines, engine_args, shares_of_devices

ARGUMENTS = VllmArguments(None, False, None, 0)
OPTIONS = SamplingOptions(n=1, max_tokens=3)


class Engine:
    """Answers each prompt with itself and its seed, the last prompt first, from a thread."""

    made: ClassVar[list[Engine]] = []
    fails = False

    def __init__(self, model: str, arguments: VllmArguments, devices: str | None) -> None:
        self.devices, self.closed = devices, False
        self.pipe, self._theirs = Pipe()
        self._theirs.send("ready")
        Engine.made.append(self)

    def ask(
        self, prompts: Sequence[list[int]], options: Any, applied: Any, seeds: Sequence[int]
    ) -> None:
        def answer() -> None:
            for count, index in enumerate(reversed(range(len(prompts))), 1):
                text = f"{prompts[index]} {seeds[index]}"
                self._theirs.send(Sampled(3 * count))
                self._theirs.send((index, [Completion(prompts[index], text, "stop")]))
            self._theirs.send(RuntimeError("out of memory") if self.fails else None)

        threading.Thread(target=answer).start()

    def receive(self) -> Event | None:
        reply: Any = self.pipe.recv()
        if isinstance(reply, Exception):
            raise reply
        event: Event | None = reply
        return event

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "VllmEngine", Engine)
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "fails", False)


@pytest.mark.parametrize(("engines", "prompts"), [(1, 5), (2, 5), (3, 7), (4, 2), (2, 0)])
def test_every_prompt_is_answered_once_with_its_own_seed(engines: int, prompts: int) -> None:
    asked = [[number] for number in range(prompts)]
    seeds = [100 + number for number in range(prompts)]
    several = VllmEngines("base", ARGUMENTS, engines)
    events = list(several.stream(asked, OPTIONS, None, seeds))
    answers = {one[0]: one[1][0].text for one in events if not isinstance(one, Sampled)}
    assert answers == {number: f"[{number}] {100 + number}" for number in range(prompts)}
    told = [one.tokens for one in events if isinstance(one, Sampled)]
    assert told == sorted(told)  # of all engines together
    assert told[-1:] == ([3 * prompts] if prompts else [])
    several.close()
    assert all(engine.closed for engine in Engine.made)


def test_a_failure_of_one_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "fails", True)
    several = VllmEngines("base", ARGUMENTS, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(several.stream([[1], [2]], OPTIONS, None, [1, 2]))


def test_gpus_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert shares_of_devices(1, 4) == [None]
    assert shares_of_devices(2, 2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert shares_of_devices(4, 1) == ["4", "5", "6", "7"]


def test_tensor_parallel_reaches_vllm() -> None:
    assert "tensor_parallel_size" not in engine_args(ARGUMENTS)
    several = ARGUMENTS._replace(tensor_parallel_size=4)
    assert engine_args(several)["tensor_parallel_size"] == 4


def test_what_was_trained_in_this_process_leaves_the_gpu_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(generator, "free_memory", lambda: done.append("freed"))
    monkeypatch.setattr(vllm_engine, "VllmEngines", lambda *_: done.append("started"))
    generator.Generator("base", "vllm", ARGUMENTS)._start()
    assert done == ["freed", "started"]
