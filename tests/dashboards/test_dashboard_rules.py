"""The rules: Prometheus' own checks and tests, and that these leave nothing out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from support import ROOT

FOLDER = ROOT / "dashboards"
TESTS = sorted((FOLDER / "rules" / "tests").glob("*.yml"))
NAME = re.compile(r"[a-z_]+:(reasonmaxxer_[a-z_]+):[a-z0-9_]+")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"),
    reason="promtool is not installed",
)


def rules(file: str) -> list[dict[str, Any]]:
    """Of one file."""
    groups = yaml.safe_load((FOLDER / "rules" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases(file: str, kind: str) -> list[dict[str, Any]]:
    """What promtool is to compare."""
    tests = yaml.safe_load((FOLDER / "rules" / "tests" / file).read_text())["tests"]
    return [case for test in tests for case in test.get(kind, [])]


def promtool(*arguments: object) -> None:
    """It prints what is wrong."""
    ended = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_configuration() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_rules_are_rules(file: str) -> None:
    promtool("check", "rules", FOLDER / "rules" / file)


@needs_promtool
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_they_should(file: Any) -> None:
    promtool("test", "rules", file)


def test_every_recording_has_a_hand_worked_value() -> None:
    asked = " ".join(case["expr"] for case in cases("recording.yml", "promql_expr_test"))
    for rule in rules("recording.yml"):
        assert NAME.fullmatch(rule["record"]), rule["record"]
        # Its name and no longer one; of the sums of buckets one stands for the three.
        if not rule["record"].startswith("adapter_mode_le:"):
            assert re.search(rf"{rule['record']}(?!\w)", asked), rule["record"]


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_every_alert_fires_and_clears(rule: dict[str, Any]) -> None:
    states = [
        bool(case.get("exp_alerts"))
        for case in sorted(
            (c for c in cases("alerts.yml", "alert_rule_test") if c["alertname"] == rule["alert"]),
            key=lambda case: int(case["eval_time"].removesuffix("m")),
        )
    ]
    assert states[0] is False
    assert True in states
    assert states[-1] is False


@pytest.mark.parametrize("rule", rules("alerts.yml"), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, heading = rule["annotations"]["runbook"].partition("#")
    assert heading == rule["alert"].lower()
    assert f"### {rule['alert']}\n" in (ROOT / page).read_text()
