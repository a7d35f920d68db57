"""A short run of `python -m loadtests.chaos` (`make test-routers`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from loadtests import chaos


@pytest.mark.server
@pytest.mark.skipif(
    "REASONMAXXER_CHAOS" not in os.environ,
    reason="takes three minutes; `make test-routers` runs it",
)
def test_replicas_are_killed_while_an_alias_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = chaos.main(["--moves", "20", "--kills", "1", "--results", str(tmp_path)])
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert (code, report["wrong"]) == (0, {}), capsys.readouterr().out
    assert report["moves"] == 20
    assert report["kills"] >= 1
    assert report["answers"] > 100


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--replicas", "1"], "--replicas must be 2"), (["--moves", "0"], "must be positive")],
)
def test_what_makes_no_sense_is_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        chaos.parse(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
