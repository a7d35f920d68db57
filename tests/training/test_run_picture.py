"""The picture of a run: it shows what the report holds, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Refused

from training.run_picture import PICTURE, draw_checkpoints, draw_if_possible, main
from training.stages.diagnose import entropy_histogram


class Some:
    """Rollouts, as far as the histogram looks."""

    def __init__(self, *entropies: list[float]) -> None:
        self.entropies = [np.array(one, np.float32) for one in entropies]


def score(value: float, stderr: float | None = 0.02, mode: str = "gated") -> dict[str, Any]:
    return {"mode": mode, "pass@1": value, "stderr": stderr}


def report(rounds: int = 1) -> dict[str, Any]:
    """A small report, as `training.stages.diagnose.report` makes it."""
    rollouts: Any = [Some([0.0, 0.1, 2.0], [4.0]), Some([0.5])]
    return {
        "problems": {"asked": 4, "mixed": 2},
        "pass_rates": [0.0, 0.25, 0.5, 1.0],
        "entropies": entropy_histogram(rollouts),
        "losses": [[[1, 0.5], [2, 0.25]]] * rounds,
        "training": "run/training-2",
        "checkpoint": "checkpoint-2",
        "gate": {"tau": 0.46, "rate": 0.06, "temperature": 0.5},
        "heldout": {
            "base": score(0.5),
            "checkpoint-2 at 0.460, temperature 0.5": score(0.7),
            "checkpoint-4 always": score(0.6, None, "always"),
        },
        "estimates": {
            f"checkpoint-{step} at {tau}, round {number}": {
                "round": f"training-{number}", "step": step, "tau": tau, "temperature": 1.0,
                **score(0.5 + step / 20),
            }
            for step in (2, 4) for tau in (0.46, 0.9) for number in (1, 2)
        },
    }  # fmt: skip


def test_entropies_are_counted_in_bins() -> None:
    rollouts: Any = [Some([0.0, 0.1], [4.0]), Some([4.0])]
    found = entropy_histogram(rollouts)
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert (found["edges"][0], found["edges"][-1]) == (0.0, 4.0)
    assert sum(found["counts"]) == 4
    assert found["counts"][-1] == 2
    same: Any = [Some([0.0])]
    assert sum(entropy_histogram(same)["counts"]) == 1


def test_it_lies_in_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    main([str(tmp_path)])
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(tmp_path / PICTURE)


@pytest.mark.parametrize("rounds", [1, 2])
def test_it_shows_what_the_report_holds(rounds: int, tmp_path: Path) -> None:
    import matplotlib

    run = tmp_path / "my-run"
    run.mkdir()
    (run / "report.json").write_text(json.dumps(report(rounds)))
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        main([str(run), "--output", str(tmp_path / "a.svg")])
    text = (tmp_path / "a.svg").read_text()
    for shown in (
        "my-run",
        "kept: checkpoint-2, tau 0.460, temperature 0.5",
        "2 of 4 problems teach something",
        "tau 0.460: gate rate 6.0%",
        "estimated, tau 0.460",
        "estimated, tau 0.900",
        "decoded, gated",
        "decoded, always",
        "pass@1",
        *(["round 1", "round 2"] if rounds == 2 else []),
    ):
        assert shown in text


def test_decoded_checkpoints_of_an_earlier_round_are_on_no_axis() -> None:
    """Steps begin anew in each round, and the axis is that of the last one."""
    from matplotlib.figure import Figure

    made = report(2)
    labels = [f"checkpoint-4 at 0.46, round {number}" for number in (1, 2)]
    made["heldout"] = {"base": score(0.5)} | {label: score(0.7) for label in labels}
    axes = Figure().subplots()
    draw_checkpoints(axes, made)
    shown = [one for one in axes.containers if str(one.get_label()).startswith("decoded")]
    assert [len(one[0].get_xdata()) for one in shown] == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no report.json"),
        ("{", "cannot be read"),
        ('{"problems": {}}', "earlier release"),
        ("[]", "earlier release"),
    ],
)
def test_a_run_without_a_report_ends_with_2(
    content: str | None, words: str, tmp_path: Path, refused: Refused
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert words in refused(main, [str(tmp_path)])
    assert not (tmp_path / PICTURE).exists()


def test_an_unknown_format_ends_with_2(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert "a.bmp" in refused(main, [str(tmp_path), "--output", "a.bmp"])


def test_without_matplotlib_the_fit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    (tmp_path / "report.json").write_text(json.dumps(report()))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw_if_possible(tmp_path)
    assert "no picture of the run" in caplog.text
    assert not (tmp_path / PICTURE).exists()
