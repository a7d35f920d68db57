"""Load tests against the real server for a few seconds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ADMIN_KEY, Server, run_command

from adapters.store import Store
from loadtests.answers import Move, read_answers, read_lines

ADAPTERS = {"alpha", "alpha:gated", "plain"}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short ones."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1"}) + "\n" for i in range(9)))
    return path


def run(server: Server, out: Path, problems: Path, scenario: str, *flags: str) -> dict[str, Any]:
    """The summary of a scenario with answers of at most 16 tokens; all its checks have passed."""
    ended = ended_run(server, out, problems, scenario, *flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads((out / "summary.json").read_text())


def ended_run(
    server: Server, out: Path, problems: Path, scenario: str, *flags: str
) -> subprocess.CompletedProcess[str]:
    """The command, whatever its exit code."""
    command = [sys.executable, "-m", "loadtests", scenario, "--host", server.url]
    command += ["--problems", str(problems), "--results", str(out), "--max-tokens", "16", *flags]
    keys = {"REASONMAXXER_API_KEY": server.key, "REASONMAXXER_ADMIN_KEY": ADMIN_KEY}
    return run_command(*command, env=os.environ | keys, timeout=90)


def test_steady(gated: Server, problems: Path, tmp_path: Path) -> None:
    # By seed 4 the first requests of the four users ask all three, however few follow.
    mix = ("--mix", "base=1,alpha=1,alpha:gated=1", "--seed", "4")
    flags = ("--users", "4", "--seconds", "4", *mix)
    pid = ("--pid", str(gated.process.pid))
    summary = run(gated, tmp_path, problems, "steady", *flags, *pid)
    assert set(summary["models"]) == {gated.base.name, "alpha", "alpha:gated"}
    for name, model in summary["models"].items():
        assert model["requests"] > 0 and model["failures"] == 0
        assert model["tokens_per_second"] > 0
        assert 0 < model["ttft_ms"]["p50"] < model["request_ms"]["p50"]
        # A client that gets no processor for a while reads several tokens at once: no gap.
        assert 0 <= model["inter_token_ms"]["p50"] <= model["inter_token_ms"]["p99"]
        assert (model["gate_rate"] is not None) == name.endswith(":gated")
    for answer in read_answers(tmp_path):
        assert answer.tokens <= 16 and len(answer.gaps) < answer.tokens
        if answer.model != gated.base.name:
            assert answer.served.partition("@")[0] == answer.model.partition(":")[0]
    with (tmp_path / "seconds.csv").open() as file:
        seconds = list(csv.DictReader(file))
    assert len(seconds) >= 4
    assert sum(float(row["tokens"]) for row in seconds) > 0
    assert any(float(row["memory_mib"] or 0) > 100 for row in seconds)
    table = (tmp_path / "locust_stats.csv").read_text()
    kinds = ("POST", "ttft", "inter-token", "tokens/s", "gate rate")
    assert all(f"\n{kind}," in table for kind in kinds)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 7 and "Memory of the server" in page

    wrong = ended_run(gated, tmp_path / "w", problems, "steady", "--api-key", "wrong")
    assert wrong.returncode == 2
    assert "401" in wrong.stderr


def test_burst(gated: Server, problems: Path, tmp_path: Path) -> None:
    summary = run(gated, tmp_path, problems, "burst", "--users", "16", "--seconds", "15")
    assert [phase["users"] for phase in summary["phases"]] == [2, 16, 2, 16, 2]
    assert summary["all"]["requests"] >= 16


def test_hostile(gated: Server, problems: Path, tmp_path: Path) -> None:
    summary = run(gated, tmp_path, problems, "hostile", "--users", "6", "--seconds", "5")
    assert summary["all"]["failures"] == 0
    assert len(summary["refused"]) > 3
    assert all(kind["requests"] and not kind["wrong"] for kind in summary["refused"].values())


def test_many_adapters(gated: Server, problems: Path, tmp_path: Path) -> None:
    flags = ("--users", "4", "--seconds", "3")
    summary = run(gated, tmp_path, problems, "many-adapters", *flags)
    assert len(summary["models"]) >= 2 and set(summary["models"]) <= ADAPTERS


def test_swap_storm(gated: Server, problems: Path, folders: list[Path], tmp_path: Path) -> None:
    store = Store(gated.store)
    out, flags = tmp_path / "out", ("--users", "6", "--seconds", "5")
    try:
        versions = {store.publish(folder, "storm").id for folder in folders[:3]}
        summary = run(gated, out, problems, "swap-storm", *flags)
    finally:
        shutil.rmtree(gated.store / "storm")
    assert set(summary["models"]) == {"storm", "storm:gated"}
    assert summary["moves_ms"]["moves"] > 3
    assert {move.version for move in read_lines(out / "moves.jsonl", Move)} == versions
    assert {one.served for one in read_answers(out)} <= versions
