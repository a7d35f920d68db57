"""What is said before training: figures by hand, and when the advice is to do something else."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from adapters.manifest import Gate
from training.run import Run
from training.run_folder import Stage
from training.stages.outlook import FILE, Outlook, look_ahead
from training.stages.score import Rollouts

GATE = Gate(tau=1.0, rate=0.1, tokens=100, table=[])


def answers(rewards: list[list[float]], entropies: list[list[float]] | None = None) -> Rollouts:
    """One answer of two tokens for each reward; by default the second token is uncertain."""
    flat = [one for row in rewards for one in row]
    h = entropies or [[0.5, 1.5]] * len(flat)
    places = [place for place, row in enumerate(rewards) for _ in row]
    return Rollouts(
        Stage(Path(), "rollouts", ""),
        cast(Any, [None] * len(rewards)),
        pa.table({"problem": places}),
        "",
        np.array(flat),
        np.ones(len(flat), dtype=bool),
        [np.array(one, dtype=np.float32) for one in h],
    )


def outlook(tmp_path: Path, rollouts: Rollouts, heldout: Rollouts, greedy: Rollouts) -> Outlook:
    run = cast(Run, SimpleNamespace(config=SimpleNamespace(run_dir=tmp_path)))
    return look_ahead(run, rollouts, heldout, greedy, GATE)


def test_figures_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rollouts = answers([[1, 0], [1, 1], [0, float("nan")]], [[0.5, 1.5], [1.5, 1.5], *[[9, 9]] * 4])
    heldout = answers([[1, 0], [0, 0], [1, 1], [0, 1]])
    found = outlook(tmp_path, rollouts, heldout, answers([[1], [0], [1], [0]]))
    assert (found.sampled.value, found.greedy.value, found.best.value) == (0.5, 0.5, 0.75)
    assert (found.k, found.mixed, found.asked) == (2, 1, 3)  # not graded is neither
    assert found.uncertainty == pytest.approx(4.5 / 5)  # of the mixed problem alone
    written = json.loads((tmp_path / FILE).read_text())
    assert written["pass@2"] == 0.75
    assert written["advice"] == found.advice
    assert "only 1 of 3 problems" in caplog.text


MIXED = answers([[1, 0]] * 30)


def test_a_base_with_room_is_worth_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heldout = answers([[1, 0]] * 40)
    found = outlook(tmp_path, MIXED, heldout, answers([[1.0 * (n % 2)] for n in range(40)]))
    assert found.advice == []
    assert "Worth training." in caplog.text


def test_where_the_best_of_several_is_no_better_there_is_nothing_to_choose(tmp_path: Path) -> None:
    heldout = answers([[1, 1]] * 10 + [[0, 0]] * 10)
    (said,) = outlook(tmp_path, MIXED, heldout, answers([[1]] * 10 + [[0]] * 10)).advice
    assert "best of 2 answers is right on 0.500" in said


def test_where_temperature_0_closes_the_room_it_is_named_first(tmp_path: Path) -> None:
    heldout = answers([[1, 0]] * 40)
    (said,) = outlook(tmp_path, MIXED, heldout, answers([[1]] * 40)).advice
    assert "temperature 0 alone gains +0.500" in said


def test_a_gain_of_temperature_0_within_its_error_says_nothing(tmp_path: Path) -> None:
    # 4 problems: +.5 and -.5 in turn, but for one; its standard error is large.
    heldout = answers([[1, 0]] * 4)
    greedy = answers([[1], [1], [1], [0]])
    assert outlook(tmp_path, MIXED, heldout, greedy).advice == []
