"""The figures of a run, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests import figures
from loadtests.answers import (
    HOSTILE,
    LONG,
    Answer,
    MemorySample,
    Move,
    Phase,
    append,
    read_answers,
    read_lines,
    write_lines,
)
from loadtests.checks import not_the_alias


def answer(at: float, **more: object) -> Answer:
    """Four tokens, 100 ms to the first, then 10, 20 and 30 ms."""
    values = {"model": "m", "status": 200, "ttft": 100.0, "gaps": [10.0, 20.0, 30.0], "tokens": 4}
    return Answer(at, **values | {"ms": 165.0} | more)


def test_every_gap_counts_not_every_answer() -> None:
    one = answer(0, gaps=[1.0] * 99, tokens=100)
    other = answer(0, gaps=[101.0], tokens=2)
    row = figures.describe([one, other], 0, 10)
    assert row["inter_token_ms"]["p50"] == 1.0
    assert row["inter_token_ms"]["mean"] == 2.0  # the mean of answers' means would be 51
    assert row["inter_token_ms"]["max"] == 101.0


def test_percentiles_are_interpolated() -> None:
    assert figures.percentiles([0.5, 1.0, 1.5, 2.0, 2.5]) == {
        **{"mean": 1.5, "p50": 1.5, "p95": 2.4, "p99": 2.48, "max": 2.5}
    }
    assert figures.percentiles([]) is None


def test_the_error_of_a_phase_is_that_of_its_parts() -> None:
    calm = [answer(at) for at in range(10)]
    assert figures.standard_errors(calm, 0, 10)["ttft_ms"] == {"p50": 0, "p95": 0, "p99": 0}
    waves = [answer(at, ttft=100.0 + at // 2) for at in range(10)]  # 100 to 104, by parts
    error = figures.standard_errors(waves, 0, 10)["ttft_ms"]["p50"]
    assert error == pytest.approx(np.std([0, 1, 2, 3, 4], ddof=1) / 5**0.5, abs=1e-3)
    assert figures.standard_errors(waves[:5], 0, 10) == {}  # parts without an answer


def test_the_rates_of_one_answer() -> None:
    assert answer(0).rate == pytest.approx(3 / 0.06)
    assert answer(0, tokens=1, gaps=[]).rate is None
    assert answer(0).gate_rate is None
    assert answer(0, gated=1).gate_rate == 0.25


def test_the_gate_rate_is_of_gated_answers_by_tokens() -> None:
    answers = [answer(0, gated=2, tokens=10), answer(0, gated=0, tokens=90), answer(0, tokens=900)]
    assert figures.gate_rate(answers) == 0.02
    assert figures.gate_rate(answers[2:]) is None


def test_tokens_count_when_they_come() -> None:
    answers = [answer(0.0), answer(0.95)]  # at .1, .11, .13, .16 and 1.05, 1.06, 1.08, 1.11
    assert figures.tokens_between(answers, 0, 0.12) == 2
    assert figures.tokens_between(answers, 0.13, 1.06) == 3
    assert figures.tokens_between(answers, 0, 9) == 8
    doubled = answer(0.0, tokens=8)  # each piece holds two
    assert figures.tokens_between([doubled], 0, 0.12) == 4


def test_what_was_sent_late_has_waited() -> None:
    """A stall that keeps users from sending what is due shows in the latencies."""
    answers = [answer(0.2), answer(1.0, late=900.0)]
    row = figures.describe(answers, 0, 2)
    assert (row["ttft_ms"]["max"], row["request_ms"]["max"]) == (1000.0, 1065.0)
    assert row["inter_token_ms"]["max"] == 30.0
    assert figures.tokens_between(answers, 1.1, 2) == 4  # when they came
    assert figures.by_second(answers, [Phase("all", 1, 0, 2)])[1].ttft_p50_ms == 1000.0


def test_failures_are_counted_but_not_measured() -> None:
    bad = Answer(1.0, "m", status=500, error="HTTP 500", ms=3.0)
    row = figures.describe([answer(0.0), bad], 0, 2)
    assert (row["requests"], row["failures"], row["tokens"]) == (2, 1, 4)
    assert row["requests_per_second"] == 1.0
    assert row["ttft_ms"]["max"] == 100.0
    assert row["request_ms"]["max"] == 165.0


def test_by_model_leaves_the_hostile_out() -> None:
    answers = [answer(0, model="a"), answer(0, model="a", kind=LONG), answer(0, kind=HOSTILE)]
    assert list(figures.by_model(answers, 0, 1)) == ["a", "a [long]"]
    wrong = answer(0, kind=HOSTILE, model="body", error="status 200, not a refusal", ms=7.0)
    refused = answer(0, kind=HOSTILE, model="body", ms=5.0)
    assert figures.refusals([wrong, refused, answer(0)]) == {
        "body": {"requests": 2, "wrong": 1, "most_ms": 7.0}
    }


def test_second_by_second() -> None:
    answers = [
        answer(0.2, gated=1),
        answer(0.95),  # its tokens come in second 1
        Answer(1.5, "m", status=0, error="nobody there"),
        answer(1.5, kind=HOSTILE),
        answer(2.5),  # after the end
    ]
    phases = [Phase("few", 2, 0, 1), Phase("many", 9, 1, 2)]
    samples = [MemorySample(1.2, 100.0)]
    first, second = figures.by_second(answers, phases, samples)
    assert first == (0, 2, 2, 0, 4.0, 100.0, 100.0, 20.0, 29.0, 0.25, 0, None)
    assert second[:5] == (1, 9, 1, 1, 4.0)
    assert second.refused == 1
    assert second.memory_mib == 100.0
    assert second.ttft_p50_ms is None
    assert second.inter_token_p50_ms == 20.0


def rows(*throughput: float) -> list[dict[str, float]]:
    return [
        {"users": 2**step, "tokens_per_second": rate, "requests": 10, "failures": 2, "tokens": 400}
        for step, rate in enumerate(throughput)
    ]


def test_saturation_is_the_first_step_near_the_highest() -> None:
    found = figures.saturation(rows(100, 190, 300, 308, 290), 16)
    assert found is not None
    assert (found.users, found.tokens_per_second, found.reached) == (4, 308, True)
    assert found.requests_per_second == pytest.approx(308 / 50, abs=1e-3)  # 50 tokens an answer
    rising = figures.saturation(rows(100, 190, 300), 4)
    assert rising is not None and not rising.reached and rising.users == 4
    assert figures.saturation(rows(100, 190, 300), 8).reached  # type: ignore[union-attr]
    assert figures.saturation([], 8) is None
    assert figures.no_gain(104, 100) and not figures.no_gain(106, 100)


def test_a_step_settles_before_it_counts() -> None:
    slow = [answer(at, gaps=[1.0] * 3) for at in np.arange(0, 1, 0.5)]
    fast = [answer(at, gaps=[1.0] * 3) for at in np.arange(1, 3, 0.1)]
    phase = Phase("1 user", 1, 0, 3)
    (row,) = figures.by_phase([*slow, *fast], [phase], figures.SETTLING)
    assert row["start"] == 1.0
    assert row["requests"] == 20


def test_an_answer_must_be_of_an_aliased_version() -> None:
    moves = [
        Move("a@1", 0, 0),
        Move("a@2", 5.0, 6.0),  # takes effect somewhere between
        Move("a@3", 7.0, 7.1, error="HTTP 409"),  # does not happen
        Move("a@1", 9.0, 9.2),
    ]

    def wrong(at: float, served: str, ttft: float = 100) -> int:
        return len(not_the_alias([answer(at, served=served, ttft=ttft)], moves))

    assert not wrong(1, "a@1") and wrong(1, "a@2")
    assert not wrong(5.5, "a@1") and not wrong(5.5, "a@2")  # either, while it moves
    assert wrong(6.5, "a@1") and not wrong(6.5, "a@2")
    assert wrong(7.5, "a@3") and not wrong(7.5, "a@2")
    assert not wrong(4.95, "a@2") and wrong(4.8, "a@2")  # admitted between 4.8 and 4.9
    assert not wrong(9.5, "a@1") and wrong(9.5, "a@2")
    assert wrong(1, "")


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    answers = [answer(2.0, gaps=[1.23456], gated=3), Answer(1.0, "n", error="broken off")]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for one in answers:
            append(file, one)
    read = read_answers(tmp_path)
    assert [one.at for one in read] == [1.0, 2.0]
    assert read[0] == answers[1]
    assert read[1].gaps == [1.23]
    write_lines(tmp_path / "phases.jsonl", [Phase("x", 1, 0, 1.5)])
    assert (tmp_path / "phases.jsonl").read_text().count("\n") == 1
    assert read_lines(tmp_path / "phases.jsonl", Phase) == [Phase("x", 1, 0, 1.5)]
    assert read_lines(tmp_path / "moves.jsonl", Move) == []
