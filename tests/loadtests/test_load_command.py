"""Scenarios, plans and command lines."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from adapters.files import write_json
from loadtests import __main__ as command
from loadtests import plan as plans
from loadtests.plan import Plan, PlanError, Server, make_plan, read_problems, shares, zipf
from loadtests.scenarios import SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_every_curve_ends_with_its_time(scenario: Any) -> None:
    if not scenario.stages:
        return
    ends = [stage.until for stage in scenario.stages]
    assert ends == sorted(ends) and ends[-1] == 1.0
    assert all(0 < stage.users <= 1 for stage in scenario.stages)
    assert scenario.stage(0.0) == scenario.stages[0]
    assert scenario.stage(0.999) == scenario.stages[-1]
    assert scenario.stage(1.0) is None
    if scenario.compares:
        assert set(scenario.compares) <= {stage.phase for stage in scenario.stages}


def test_a_burst_comes_and_goes() -> None:
    burst = SCENARIOS["burst"]
    users = [burst.stage(at / 10).users for at in range(10)]  # type: ignore[union-attr]
    assert users == [1 / 8, 1 / 8, 1, 1, 1 / 8, 1 / 8, 1, 1, 1 / 8, 1 / 8]


def test_shares_of_traffic() -> None:
    models = ["tiny", "a", "a:gated"]
    assert shares("", models) == {"tiny": 1, "a": 1, "a:gated": 1}
    assert shares("base=1,a:gated=2.5", models) == {"tiny": 1, "a:gated": 2.5}
    for bad, word in (
        ("b=1", "'b' is not served; there are: base, tiny, a"),
        ("a", "NAME=NUMBER"),
        ("a=0", "above 0"),
        ("a=nan", "above 0"),
        ("a=inf", "above 0"),
        ("a=x", "NAME=NUMBER"),
    ):
        with pytest.raises(PlanError, match=word):
            shares(bad, models)


def test_zipf_is_drawn_by_its_seed() -> None:
    names = [f"m{n}" for n in range(8)]
    assert zipf(names, 1) == zipf(names, 1) != zipf(names, 2)
    assert sorted(zipf(names, 1).values(), reverse=True) == [1 / n for n in range(1, 9)]


def test_problems_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1 + 1"}\n\n{"problem": "2"}\n')
    assert read_problems(str(path)) == ("1 + 1", "2")
    path.write_text('{"problem": "1 +\u2028 1"}\n{"problem": "2"}\n')  # no end of a line in JSON
    assert read_problems(str(path)) == ("1 +\u2028 1", "2")
    for content in ("", "{", "[1]", '{"question": "1"}'):
        path.write_text(content)
        with pytest.raises(PlanError, match="--problems"):
            read_problems(str(path))
    with pytest.raises(PlanError, match="--problems"):
        read_problems(str(tmp_path / "nowhere"))


def test_a_plan_is_read_as_written_and_holds_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plans.API_KEY, "a secret")
    plan = Plan("swap-storm", "http://x", 3, 9.0, 1, {"a": 1.0}, "p", versions=("a@1", "a@2"))
    write_json(tmp_path / "plan.json", asdict(plan))
    assert Plan.read(tmp_path / "plan.json") == plan
    assert "a secret" not in (tmp_path / "plan.json").read_text()


class Fake(Server):
    """A server that answers from a table."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("http://x", "", "an admin key")
        self.answers = answers

    def request(self, method: str, path: str, key: str = "", **more: Any) -> Any:
        return self.answers[path.rpartition("/")[2]]


CARDS = {"data": [{"id": name, "max_model_len": 500} for name in ("tiny", "a", "a:gated", "b")]}


def planned(tmp_path: Path, scenario: str, server: Server, *argv: str) -> Plan:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"problem": "What is 1 + 1?"}))
    options = command.parse([scenario, *argv])
    return make_plan(SCENARIOS[scenario], server, options, str(path))


def test_a_storm_needs_versions(tmp_path: Path) -> None:
    one = {"name": "b", "alias": "b@1", "versions": ["b@1"]}
    two = {"name": "a", "alias": "a@2", "versions": ["a@1", "a@2"]}
    plan = planned(tmp_path, "swap-storm", Fake(models=CARDS, adapters={"data": [one, two]}))
    assert (plan.alias, plan.versions) == ("a", ("a@2", "a@1"))
    assert set(plan.mix) == {"a", "a:gated"}
    for few in ([one], [], [two | {"alias": None}]):
        with pytest.raises(PlanError, match="two versions"):
            planned(tmp_path, "swap-storm", Fake(models=CARDS, adapters={"data": few}))


def test_long_prompts_fill_most_of_the_context(tmp_path: Path) -> None:
    server = Fake(models=CARDS, tokenize={"count": 7})  # 14 characters: two a token
    assert planned(tmp_path, "long-prompts", server).long_characters == 0.8 * 500 * 2


def test_many_adapters_needs_some(tmp_path: Path) -> None:
    assert set(planned(tmp_path, "many-adapters", Fake(models=CARDS)).mix) == {"a", "a:gated", "b"}
    for few in (2, 3):  # the third is the gated name of the second
        with pytest.raises(PlanError, match="two adapters"):
            planned(tmp_path, "many-adapters", Fake(models={"data": CARDS["data"][:few]}))


def test_without_a_scenario_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in SCENARIOS)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["steadily"], "no scenario 'steadily'"),
        (["steady", "--users", "0"], "--users must be above 0"),
        (["steady", "--users", "x"], "--users"),
        (["steady", "--seconds", "-1"], "--seconds"),
        (["steady", "--seconds", "nan"], "--seconds"),
        (["steady", "--seconds", "1", "--minutes", "1"], "not allowed with"),
        (["soak", "--share", "0"], "--share"),
        (["soak", "--saturation", "0"], "--saturation"),
        (["hostile", "--users", "1"], "2 or more"),
        (["steady", "--rate", "-1"], "--rate"),
        *((["--rate", "2", one], f"--rate: {one} has not") for one in ("ramp", "burst", "hostile")),
        (["long-prompts", "--rate", "2"], "--rate: long-prompts has not"),
        (["steady", "--share", "0.5"], "--share is for a soak"),
        (["soak", "--saturation", "9", "--rate", "2"], "--saturation is for a soak without --rate"),
        (["steady", "--start", "--pid", "1"], "--pid"),
        (["steady", "--pid", "999999999"], "no such process"),
        (["steady", "--host", "localhost:8000"], "must begin with http"),
        (["steady", "--start", "--host", "http://x"], "not allowed with"),
        (["steady", "--", "--max-loras", "2"], "--start"),
        (["steady", "--colour", "red"], "--colour"),
    ],
)
def test_bad_arguments(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert word in said and "python -m loadtests: error: " in said


def test_flags_of_the_server_come_last() -> None:
    options = command.parse(["soak", "--start", "--minutes", "2", "--", "--max-loras", "2"])
    assert options.flags == ["--max-loras", "2"]
    assert (options.seconds, options.users) == (120, SCENARIOS["soak"].users)


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1"}')
    argv = ["steady", "--host", "http://127.0.0.1:9", "--problems", str(path)]
    assert command.main([*argv, "--results", str(tmp_path / "out")]) == 2
    assert "--host http://127.0.0.1:9" in capsys.readouterr().err
    assert command.main(["steady", "--results", str(path / "out")]) == 2
    assert "--results: " in capsys.readouterr().err


def test_a_soak_asks_at_a_share_of_saturation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Plan] = []

    def perform(plan: Plan, folder: Path, pid: Any, more: Any = None) -> dict[str, Any]:
        ran.append(plan)
        found = {"users": 32, "tokens_per_second": 900.0, "requests_per_second": 20.0}
        return {"passed": True, "saturation": found | {"reached": True}, "more": more}

    monkeypatch.setattr(command, "perform", perform)
    plan = Plan("soak", "http://x", 64, 1800, 0, {"m": 1.0}, "p")
    options = argparse.Namespace(saturation=None, share=0.75)
    summary = command.soak(plan, tmp_path, options, None)
    assert [(one.scenario, one.rate) for one in ran] == [("ramp", 0.0), ("soak", 15.0)]
    assert summary["more"]["of_saturation"]["share"] == 0.75
    command.soak(plan, tmp_path, argparse.Namespace(saturation=10.0, share=0.5), None)
    assert (len(ran), ran[-1].rate) == (3, 5.0)
