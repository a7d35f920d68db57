"""Two tensor-parallel ranks gate alike: tokens and decision points are the reference's.

Each rank is a process of its own with half of every layer; the scheduler and its counters stand
outside of them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gate_models import ARCHITECTURES
from test_gate_exact import CRAMPED, FULL, World, assert_tidy, bad_cases, job, mixed, next_turns

RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.mark.parametrize("architecture", ARCHITECTURES if FULL else ARCHITECTURES[:1])
def test_two_ranks(world: Callable[[str], World], architecture: str) -> None:
    here = world(architecture)
    first = mixed(40)
    turns = [first, next_turns(here, first, 40)]
    disturbed = {"abort": {"6": [1]}, "pending": {"abort": [4, 5], "reset": 2}}
    (result,) = here.run(job(here, turns, CRAMPED | RANKS, **disturbed))
    bad = bad_cases(here, turns, result)
    print(f"{architecture}: {result['preempted']} preemptions, {len(bad)} bad")
    assert not bad, "\n".join(bad[:5])
    assert_tidy(result)
    assert result["preempted"] > 0
    assert result["ranks"] == 2
