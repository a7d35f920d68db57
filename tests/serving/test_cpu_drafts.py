"""Speculative decoding on vLLM's CPU build: four faults as they are, and corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import findings

from vllm_gate.cpu import drafts


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What draft_faults.py has seen."""
    return findings(Path(__file__).with_name("draft_faults.py"), VLLM_LOGGING_LEVEL="ERROR")


WANTED = {
    "temperature": [0.6, 0.6, 1, 1, 1, 1.3],
    "top_k": [5, 5, 9, 9, 9, 7],
    "top_p": [0.5, 0.5, 0.9, 0.9, 0.9, 1],
}


@pytest.mark.engine
def test_temperature_top_k_and_top_p_of_drafted_rows(found: dict[str, Any]) -> None:
    assert found["first engine"] == "ready"
    for name, wanted in WANTED.items():
        assert found["rows"][name] != pytest.approx(wanted), "vLLM is right now"
        assert found["rows of ours"][name] == pytest.approx(wanted)


@pytest.mark.engine
def test_a_second_engine_once_numba_is_loaded(found: dict[str, Any]) -> None:
    assert not found["numba at first"]
    assert found["second engine"] == "AttributeError", "vLLM is right now"
    assert found["second engine with ours"] == "ready"
    assert found["kernel"] == "KernelOverride"


@pytest.mark.engine
def test_drafts_without_threads_and_without_a_compiler(found: dict[str, Any]) -> None:
    assert found["compiled at the start"] == 0, "vLLM compiles at its start now"
    assert found["compiled by the first request"] > 0
    assert found["threads"], "vLLM starts no threads of its own now"
    assert not found["threads with ours"]
    assert found["compiled with ours"] == 0
    assert found["in place"]


@pytest.mark.engine
def test_the_drafts_are_vllms(found: dict[str, Any]) -> None:
    assert found["other drafts"] == []
    assert 100 < found["with drafts"] < found["cases"]


@pytest.mark.parametrize(
    ("tokens", "shortest", "longest", "count", "wanted"),
    [
        ([1, 2, 3, 4, 1, 2], 1, 3, 4, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 1, 3, 1, [3]),
        ([1, 2, 3, 4, 1, 2], 3, 3, 4, []),  # no three tokens stand twice
        ([1, 2, 9, 1, 2, 8, 1, 2], 2, 3, 2, [9, 1]),  # the first of two places
        ([1, 9, 2, 1, 8, 2, 1], 1, 3, 1, [8]),  # the longer match, though it is later
        ([7, 7, 7], 1, 2, 3, [7]),
        ([7], 1, 3, 3, []),
        ([], 1, 3, 3, []),
        ([1, 2, 1], 1, 1, 0, []),
        ([1, 2, 1], 1, 1, -3, []),
    ],
)
def test_what_followed(
    tokens: list[int], shortest: int, longest: int, count: int, wanted: list[int]
) -> None:
    given = np.array(tokens, dtype=np.int32)
    assert drafts.after_longest_match(given, shortest, longest, count) == wanted


def test_values_that_are_to_be_replaced() -> None:
    ends = torch.tensor([1, 1, 3])  # the second request has no drafts
    made = drafts.expand_batch_to_tokens(torch.tensor([0.0, 0.5, 0.0]), ends, 3, 0, 1)
    assert made.tolist() == [1.0, 1.0, 1.0]
    made = drafts.expand_batch_to_tokens(torch.tensor([3, 4, 5], dtype=torch.int32), ends, 3)
    assert (made.tolist(), made.dtype) == ([3, 5, 5], torch.int32)
