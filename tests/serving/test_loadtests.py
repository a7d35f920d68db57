"""The load test against the real server for a few seconds, and its Prometheus configuration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Server


@pytest.mark.engine
def test_a_few_seconds_of_load(server: Server, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{i} + 1"}) + "\n" for i in range(9)))
    command = [sys.executable, "-m", "loadtests", "--host", server.url, "--users", "4"]
    command += ["--seconds", "4", "--problems", str(problems), "--results", str(tmp_path / "out")]
    command += ["--mix", "base=1,alpha=1", "--max-tokens", "16"]
    environment = os.environ | {"REASONMAXXER_API_KEY": server.key}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["models"]) == {server.base.name, "alpha"}
    for model in summary["models"].values():
        assert model["requests"] > 0
        assert model["failures"] == 0
        assert model["tokens_per_second"] > 0
        assert 0 < model["ttft_ms"]["mean"] < model["request_ms"]["mean"]
        assert model["inter_token_ms"]["mean"] > 0
        assert model["request_tokens_per_second"]["mean"] > 0
    table = (tmp_path / "out" / "locust_stats.csv").read_text()
    assert all(f"\n{kind}," in table for kind in ("POST", "ttft", "inter-token", "tokens/s"))

    wrong = subprocess.run(
        [*command, "--api-key", "wrong"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wrong.returncode != 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_configuration() -> None:
    subprocess.run(
        ["promtool", "check", "config", str(ROOT / "dashboards" / "prometheus.yml")], check=True
    )
