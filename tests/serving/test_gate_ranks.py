"""Two tensor-parallel ranks gate alike: tokens and decision points are the reference's.

Each rank is a process of its own with half of every layer; the scheduler and its counters stand
outside of them. The engine drafts, and some requests want the logprobs of their prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gate_models import ARCHITECTURES
from gate_reference import Asked
from test_gate_drafts import ORACLE, sequences, with_drafts
from test_gate_exact import (
    CRAMPED,
    FULL,
    World,
    assert_exact,
    job,
    mixed,
    next_turns,
    same_logprobs,
)

RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def wants_prompt_logprobs(asked: Asked) -> bool:
    """Some requests whose prompt the base reads."""
    base = asked.adapter is None or asked.tau is not None
    return base and len(asked.prompt) > 1 and len(asked.prompt) % 3 == 0


@pytest.mark.parametrize("drafts", [ORACLE, None] if FULL else [ORACLE])
@pytest.mark.parametrize("architecture", ARCHITECTURES if FULL else ARCHITECTURES[:1])
def test_two_ranks(
    world: Callable[[str], World], architecture: str, drafts: dict[str, Any] | None
) -> None:
    here = world(architecture)
    first = mixed(40)
    turns = [first, next_turns(here, first, 40)]
    disturbed = {"abort": {"6": [1]}, "pending": {"abort": [4, 5], "reset": 2}}
    given = job(here, turns, CRAMPED | RANKS, **disturbed)
    cases = [asked for wave in turns for asked in wave]
    requests = [request for wave in given["waves"] for request in wave]
    for asked, request in zip(cases, requests, strict=True):
        if wants_prompt_logprobs(asked):
            request["prompt_logprobs"] = 1
    if drafts:
        given = with_drafts(given, drafts)
    (result,) = here.run(given, known={"sequences": sequences(here, turns)})
    print(f"{architecture}: {result['drafts']}, {result['preempted']} preemptions")
    assert_exact(here, turns, result)
    assert result["preempted"] > 0
    assert result["ranks"] == 2
    assert not drafts or min(result["drafts"].values()) > 30
    told = 0
    for asked, got in zip(cases, result["results"], strict=True):
        if wants_prompt_logprobs(asked) and not got.get("aborted"):
            assert same_logprobs(
                got["prompt_logprobs"], here.reference.prompt_logprobs(asked.prompt)
            )
            told += asked.tau is not None
    assert told > 5
