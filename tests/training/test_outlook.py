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


def answers(
    rewards: list[list[float]], entropies: list[list[float]] | None = None, cut: int = 0
) -> Rollouts:
    """One answer of two tokens for each reward; by default the second token is uncertain.

    The first `cut` are cut off.
    """
    flat = [one for row in rewards for one in row]
    h = entropies or [[0.5, 1.5]] * len(flat)
    places = [place for place, row in enumerate(rewards) for _ in row]
    reasons = ["length" if place < cut else "stop" for place in range(len(flat))]
    return Rollouts(
        Stage(Path(), "rollouts", ""),
        cast(Any, [None] * len(rewards)),
        pa.table({"problem": places, "finish_reason": reasons}),
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
    found = outlook(tmp_path, rollouts, heldout, answers([[1], [0], [1], [1]]))
    assert (found.one.value, found.best.value) == (0.5, 1)  # of both of a problem, two are known
    assert (found.greedy.value, found.greedy_gain.value) == (0.75, 0.25)
    assert (found.k, found.mixed, found.asked) == (2, 1, 3)  # not graded is neither
    assert found.uncertainty == pytest.approx(4.5 / 5)  # of the mixed problem alone
    written = json.loads((tmp_path / FILE).read_text())
    assert (written["pass@1"], written["pass@2"]) == (0.5, 1)
    assert written["advice"] == found.advice
    assert "only 1 of 3 problems" in caplog.text


MIXED = answers([[1, 0]] * 30)


def test_a_base_with_room_is_worth_training_whatever_few_held_out_problems_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = outlook(tmp_path, MIXED, answers([[0, 0]] * 8), answers([[0.0]] * 8))
    assert found.advice == []
    assert "Worth training." in caplog.text


def test_where_the_best_of_several_is_no_better_there_is_nothing_to_choose(tmp_path: Path) -> None:
    sure = answers([[1, 1]] * 190 + [[0, 0]] * 190 + [[1, 0]] * 20)
    (said,) = outlook(tmp_path, sure, answers([[1, 0]]), answers([[1]])).advice
    assert "best of 2 answers is right on 0.525" in said


def test_of_one_held_out_problem_no_error_is_known(tmp_path: Path) -> None:
    outlook(tmp_path, MIXED, answers([[1, 0]]), answers([[1]]))
    written = json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)
    assert (written["gain of temperature 0"], written["gain_stderr"]) == (0.5, None)


def test_where_temperature_0_closes_the_room_it_is_named_first(tmp_path: Path) -> None:
    heldout = answers([[1, 0]] * 40)
    (said,) = outlook(tmp_path, MIXED, heldout, answers([[1]] * 40)).advice
    assert "temperature 0 alone gains +0.500" in said


def test_a_gain_of_temperature_0_within_its_error_says_nothing(tmp_path: Path) -> None:
    # 4 problems: +.5 and -.5 in turn, but for one; its standard error is large.
    heldout = answers([[1, 0]] * 4)
    greedy = answers([[1], [1], [1], [0]])
    assert outlook(tmp_path, MIXED, heldout, greedy).advice == []


def test_where_many_rollouts_are_cut_off_longer_ones_are_advised(tmp_path: Path) -> None:
    heldout, greedy = answers([[1, 0]] * 40), answers([[1.0 * (n % 2)] for n in range(40)])
    assert outlook(tmp_path, answers([[1, 0]] * 30, cut=15), heldout, greedy).advice == []
    (said,) = outlook(tmp_path, answers([[1, 0]] * 30, cut=16), heldout, greedy).advice
    assert said.startswith("27% of the rollouts were cut off")
    assert "--sampling.max-tokens" in said
