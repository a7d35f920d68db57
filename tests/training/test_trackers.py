"""--report-to: which trackers there are; a missing one is named before anything is done."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import transformers
from support import Refused

from adapters.recipe import Checkpoints
from training.fit_config import FitConfig
from training.stages.train import training_arguments
from training.trackers import PACKAGES, Tracking, check_installed, report_scores


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages of trackers that are found: those that the test puts in here."""
    there: set[str] = set()
    stock = importlib.util.find_spec
    known = {package for packages in PACKAGES.values() for package in packages}

    def find_spec(name: str, *rest: Any) -> Any:
        if name in known:
            return stock("json") if name in there else None
        return stock(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return there


def load(*flags: str) -> FitConfig:
    return FitConfig.load(["--model", "m", "--problems", "p", "--publish", "mine", *flags])


@pytest.mark.parametrize("tracker", PACKAGES)
def test_a_missing_package_is_named_with_exit_code_2(
    tracker: str, installed: set[str], refused: Refused
) -> None:
    error = refused(load, "--report-to", tracker)
    assert "--report-to" in error
    assert f"'{tracker}' needs the package {tracker}" in error
    assert f"pip install {tracker}" in error
    installed.add(tracker)
    assert load("--report-to", tracker).report_to == [tracker]


def test_one_of_two_packages_is_enough_for_tensorboard(installed: set[str]) -> None:
    installed.add("tensorboardX")
    assert load("--report-to", "tensorboard").report_to == ["tensorboard"]


def test_several_none_and_unknown_ones(installed: set[str], refused: Refused) -> None:
    installed |= {"wandb", "mlflow"}
    assert load("--report-to", "wandb,mlflow").report_to == ["wandb", "mlflow"]
    assert load().report_to == load("--report-to", "none").report_to == []
    for flags, words in (("none,wandb", "goes with no other"), ("wandbb", "'wandb'")):
        assert words in refused(load, "--report-to", flags)
    with pytest.raises(ValueError, match="trackio"):
        check_installed(["wandb", "trackio"])


def test_trackers_are_the_trainers_own(tmp_path: Path) -> None:
    optimizer = load().optimizer
    quiet = training_arguments(tmp_path, 8, optimizer, Checkpoints(), 0)
    assert quiet.report_to == []
    told = training_arguments(
        tmp_path, 8, optimizer, Checkpoints(), 0, Tracking(["wandb", "mlflow"], "mine")
    )
    assert told.report_to == ["wandb", "mlflow"]
    assert (told.run_name, told.project) == ("mine", "reasonmaxxer")
    known = transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK
    assert set(PACKAGES) <= set(known)


def test_trackers_are_named_in_yaml_too(installed: set[str], tmp_path: Path) -> None:
    installed |= {"wandb", "mlflow"}
    file = tmp_path / "fit.yaml"
    for written, read in (
        ("wandb", ["wandb"]),
        ("wandb, mlflow", ["wandb", "mlflow"]),
        ("[mlflow]", ["mlflow"]),
        ("none", []),
        ("", []),
    ):
        file.write_text(f"report_to: {written}\n")
        found = load("--config", str(file))
        assert found.report_to == read
        file.write_text(found.to_yaml())  # as it lies in the run folder
        assert load("--config", str(file)).report_to == read
    assert load("--config", str(file), "--report-to", "wandb").report_to == ["wandb"]


def test_final_scores_reach_tensorboard_where_training_was_reported(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = training_arguments(
        tmp_path, 8, load().optimizer, Checkpoints(), 0, Tracking(["tensorboard"], "mine")
    )
    events = tmp_path / "runs" / "Nov29"
    events.mkdir(parents=True)
    report_scores(arguments, 7, {"eval_decoded_gain": 0.25, "eval_x": float("nan")})
    assert list(tmp_path.glob("runs/*")) == [events]
    read = EventAccumulator(str(events))
    read.Reload()
    assert read.Tags()["scalars"] == ["eval/decoded_gain"]
    [scalar] = read.Scalars("eval/decoded_gain")
    assert (scalar.step, scalar.value) == (7, 0.25)


def test_a_tracker_that_fails_takes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ConnectionError("no network\nat all")

    known = transformers.integrations.integration_utils.INTEGRATION_TO_CALLBACK
    monkeypatch.setitem(known, "wandb", Broken)
    arguments = training_arguments(tmp_path, 8, load().optimizer, Checkpoints(), 0)
    arguments.report_to = ["wandb"]
    report_scores(arguments, 7, {"eval_decoded_gain": 0.25})
    assert "wandb has not been told the final scores: no network" in caplog.text
