r"""The suite of graded answers: made ones, half of them traps, and a small model's own.

`python -m benchmarks.grading` prints the same counts by class, beside math-verify's.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from training.grading import Verdict, Verifier

SUITE = Path(__file__).parent / "data" / "graded-answers.jsonl"


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SUITE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def verdicts(pairs: list[dict[str, Any]]) -> Iterator[list[Verdict]]:
    with Verifier(deadline=30) as verifier:
        yield verifier.check([one["text"] for one in pairs], [one["answer"] for one in pairs])


def named(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["text"][-80:], one["answer"]) for one in pairs]


def test_the_suite_is_large_and_half_of_it_is_wrong(pairs: list[dict[str, Any]]) -> None:
    right = sum(one["right"] for one in pairs)
    assert len(pairs) >= 1300
    assert 0.4 < right / len(pairs) < 0.6
    assert len(Counter(one["class"] for one in pairs)) >= 20
    assert len({(one["text"], one["answer"]) for one in pairs}) == len(pairs)


def test_no_wrong_answer_is_called_right(
    pairs: list[dict[str, Any]], verdicts: list[Verdict]
) -> None:
    false_right = [
        pair for pair, one in zip(pairs, verdicts, strict=True) if one.correct and not pair["right"]
    ]
    assert named(false_right) == []


def test_hardly_a_right_answer_is_called_wrong(
    pairs: list[dict[str, Any]], verdicts: list[Verdict]
) -> None:
    false_wrong = [
        pair
        for pair, one in zip(pairs, verdicts, strict=True)
        if one.correct is False and pair["right"]
    ]
    assert len(false_wrong) <= 0.02 * sum(one["right"] for one in pairs), named(false_wrong)


def test_hardly_any_answer_cannot_be_told(
    pairs: list[dict[str, Any]], verdicts: list[Verdict]
) -> None:
    open_ones = [pair for pair, one in zip(pairs, verdicts, strict=True) if one.correct is None]
    assert len(open_ones) <= 0.02 * len(pairs), named(open_ones)
    assert all(one.reason for one in verdicts)
    assert not any(one.timed_out for one in verdicts)
