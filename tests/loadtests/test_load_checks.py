"""What has to hold, and what does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from loadtests import chaos, checks, fleet
from loadtests.answers import HOSTILE, Answer, MemorySample, Move
from loadtests.figures import Saturation
from loadtests.plan import Plan
from loadtests.replicas import Replica

PLAN = Plan("steady", "http://x", 4, 10, 0, {"m": 1.0, "n": 1.0}, "p.jsonl")
GOOD = Answer(0, "m", status=200, ttft=1.0, served="a@1")
BAD = Answer(0, "n", status=503, error="busy")


def test_one_failure_fails() -> None:
    assert checks.answered([GOOD, GOOD]).ok
    check = checks.answered([GOOD, BAD, BAD])
    assert check.ok is False
    assert "2 of 3" in check.said and "HTTP 503: busy" in check.said
    assert checks.answered([]).ok is False  # nobody was asked: that proves nothing


def test_every_model_answers() -> None:
    assert checks.every_model([GOOD], PLAN).ok
    check = checks.every_model([GOOD, BAD], PLAN)
    assert check.ok is False and check.said == "no answer from n"


def test_hostile_requests_are_judged_apart() -> None:
    refused, let_in = (replace(GOOD, kind=HOSTILE, error=error) for error in ("", "status 200"))
    assert checks.refused([refused]).ok
    assert checks.refused([refused, let_in]).ok is False
    assert checks.answered([GOOD, let_in]).ok


def test_versions_and_moves() -> None:
    plan = replace(PLAN, scenario="swap-storm", alias="a", versions=("a@1", "a@2"))
    moves = [Move("a@1", 0, 0), Move("a@2", 2, 3)]
    mine = [replace(GOOD, model="a"), replace(GOOD, model="a:gated", at=4.0, served="a@2")]
    assert all(check.ok for check in checks.right_version(mine, plan, moves))
    stale = replace(mine[0], at=4.0)
    judged = checks.right_version([*mine, stale], plan, moves)
    assert [check.ok for check in judged] == [True, False, True]
    refused = [moves[0], replace(moves[1], error="HTTP 409")]
    assert [check.ok for check in checks.right_version(mine, plan, refused)][:2] == [False, False]
    assert checks.right_version(mine[:1], plan, moves)[2].ok is False  # only one version seen


def phase(name: str, ms: float, requests: int = 100) -> dict[str, Any]:
    row = {"p50": ms, "p95": ms, "p99": ms}
    return {"phase": name, "requests": requests, "ttft_ms": row, "inter_token_ms": row}


def test_latency_may_grow_so_much() -> None:
    def ok(before: float, after: float, seconds: float = 60, requests: int = 100) -> Any:
        phases = [phase("x", before, requests), phase("y", after, requests)]
        limits = (("ttft_ms", "p50", 0.5),)
        (check,) = checks.not_slower(phases, ("x", "y"), limits, seconds)
        return check.ok

    assert ok(10, 15) and ok(10, 2)
    assert ok(10, 15.1) is False
    assert ok(10, 99, seconds=59) is None  # too short
    assert ok(10, 99, requests=49) is None  # too few
    (check,) = checks.not_slower([phase("x", 1)], ("x", "y"), (("ttft_ms", "p50", 0.5),), 60)
    assert check.ok is None


def test_what_the_noise_hides_is_not_judged() -> None:
    def ok(after: float, error: float) -> Any:
        errors = {"ttft_ms": {"p50": error}}
        phases = [phase("x", 10) | {"errors": errors}, phase("y", after) | {"errors": errors}]
        return checks.not_slower(phases, ("x", "y"), (("ttft_ms", "p50", 0.5),), 60)[0].ok

    assert ok(14, error=10)  # within the limit
    assert ok(16, error=0.3) is False  # beyond it by 1, two errors of the difference are 0.85
    assert ok(16, error=0.5) is None


def test_saturation_has_to_be_reached() -> None:
    assert checks.saturates(Saturation(8, 100.0, 2.0, True)).ok
    assert checks.saturates(Saturation(8, 100.0, 2.0, False)).ok is False
    assert checks.saturates(None).ok is False


def test_memory_and_pace_of_a_soak() -> None:
    flat = [MemorySample(60.0 * n, 1000.0) for n in range(12)]
    growing = [one._replace(mib=1000 + one.seconds / 6) for one in flat]
    assert checks.flat_memory(flat)[0].ok
    assert checks.flat_memory(growing)[0].ok is False
    assert checks.flat_memory(flat[:7])[0].ok is None  # below ten minutes
    assert checks.flat_memory(flat[:3]) == []
    plan = replace(PLAN, scenario="soak", rate=2.0)
    assert checks.kept_pace([GOOD] * 20, plan, 10).ok
    assert checks.kept_pace([GOOD] * 18, plan, 10).ok is False


def test_each_scenario_has_its_checks() -> None:
    phases = [phase("middle third", 1) | {"end": 60}, phase("last third", 9) | {"end": 60}]
    soak = checks.run_checks(
        replace(PLAN, scenario="soak", rate=0.1), [GOOD] * 9, phases, [], [], None
    )
    wrong = [check.what for check in soak if check.ok is False]
    assert len(wrong) == 4 and all("last third" in what for what in wrong)
    steady = checks.run_checks(PLAN, [GOOD], phases, [], [], None)
    assert len(steady) == 2
    ramp = checks.run_checks(replace(PLAN, scenario="ramp"), [GOOD], phases, [], [], None)
    assert [check.ok for check in ramp] == [True, True, False]


# ------------------------------------------------------------------- an alias that moves


MOVES = [Move("v@1", 0, 0), Move("v@2", 10, 11), Move("v@1", 20, 21), Move("v@3", 30, 31)]


def of_alias(at: float, served: str, ttft: float = 100.0) -> Answer:
    return Answer(at, "v", status=200, ttft=ttft, served=served)


def test_an_answer_is_as_old_as_the_move_away_from_its_version() -> None:
    cases = [
        (5.0, "v@1", 0.0),
        (10.5, "v@1", 0.0),  # the move may not have happened yet
        (10.5, "v@2", 0.0),  # or it may
        (13.0, "v@1", 2.0),
        (19.95, "v@1", 0.0),  # admitted after the move back had begun
        (24.0, "v@2", 3.0),
        (40.0, "v@1", 9.0),
        (29.0, "v@3", float("inf")),  # nobody had moved it there
        (40.0, "", float("inf")),
    ]
    for at, served, seconds in cases:
        assert checks.staleness(of_alias(at, served), MOVES) == pytest.approx(seconds)
    failed = Move("v@9", 5, 6, error="no such version")
    assert checks.staleness(of_alias(8.0, "v@1"), [MOVES[0], failed]) == 0


async def test_an_alias_moves_without_a_pause() -> None:
    options = SimpleNamespace(moves=2, every=0.0)
    store: Any = SimpleNamespace(alias=lambda *_: None)
    run = chaos.Run(options, store, ["v@1", "v@2"], [], Random(0))
    await run.move()
    assert [move.version for move in run.moves] == ["v@2", "v@1", "v@2"]


def test_two_replicas_are_compared_round_by_round() -> None:
    tallies = {"one replica": (10, 40), "two replicas": (20, 60), "nginx": (15, 30)}
    rounds = {
        name: [fleet.Tally(1, Counter(lost=1), 1.0, tokens) for tokens in each]
        for name, each in tallies.items()
    }
    found = fleet.figures(rounds, {"one replica": 0.01, "nginx": 0.02})
    assert found["nginx"]["of two replicas"] == "0.62 (0.50-0.75)"
    assert (found["nginx"]["of one replica"], found["two replicas"]["first token, ms"]) == (2, None)
    assert found["nginx"]["failed"] == {"lost": 2}


def test_what_replicas_that_are_killed_must_not_do() -> None:
    """Each fault of a run alone is found; a run without one passes."""

    def judged(history: Sequence[str] = ("v@2", "v@1", "v@3"), **faults: Any) -> dict[str, Any]:
        options = SimpleNamespace(clients=1)
        none: Any = None
        replicas = [Replica((), Path(), none) for _ in range(2)]
        run = chaos.Run(options, none, [], replicas, Random(0))
        run.moves = list(MOVES)
        run.answers = [of_alias(5.0, "v@1"), of_alias(12.5, "v@1"), *faults.get("answers", [])]
        run.wrong_texts = faults.get("texts", [])
        last = faults.get("last", ["v@3", "v@3"])
        figures, wrong = chaos.judge(run, last, faults.get("audit", []), history)
        assert figures["moves"] == 3
        return wrong

    assert judged() == {}
    assert judged(answers=[of_alias(14.0, "v@1")]) == {"wrong version after 2 s": 1}
    lost = Answer(6.0, "v", status=500, error="broken")
    assert list(judged(answers=[lost])) == ["requests lost"]
    assert list(judged(texts=["v@1 said 'x', alone 'y'"])) == ["text of another version"]
    assert judged(last=["v@3", "v@1"]) == {"last version not served": ["v@1"]}
    assert list(judged(history=["v@2", "v@3"])) == ["moves not in the history"]
    assert judged(audit=["v: gone"]) == {"store audit": ["v: gone"]}
