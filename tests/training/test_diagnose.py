"""Each known failure is named, and a healthy run says nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support import made_up_result

from adapters.manifest import Gate
from training.evaluation import Result
from training.stages.diagnose import decoded_scores, known_failures, ungraded

GATE = Gate(tau=1.0, rate=0.06, tokens=1000, table=[])
LOG = [{"loss": 0.1}, {"loss": -0.2}, {"grad_norm": 1.0}, {"loss": 0.3}]


def result(right: int = 5, boxed: int = 10, tokens: int = 100, gated: int = 6) -> Result:
    """`right` and `boxed` of ten problems, one answer each."""
    column = np.arange(10)[:, None]
    counts = {"tokens": np.full_like(column, tokens), "gated": np.full_like(column, gated)}
    return made_up_result(column < right, boxed=column < boxed, **counts)


def warnings(**changes: object) -> list[str]:
    given = {"mixed": 50, "asked": 100, "log": LOG, "gate": GATE, "base": result(), **changes}
    return known_failures(**{"kept": result(right=8), **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "log",
    [
        LOG,
        [{"loss": 0.01}, {"loss": 0.01}, {"loss": 4.9}],  # small beside the clip
        [{"loss": 3.0}, {"loss": 4.0}, {"loss": 20.0}],  # a large scale, no spike
        [],
    ],
)
def test_a_healthy_run_is_left_in_peace(log: list[dict[str, float]]) -> None:
    assert warnings(log=log) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed": 3}, "3 of 100 problems"),
        ({"log": [*LOG, {"loss": -446.0}]}, "the loss reached 446"),
        ({"log": [*LOG, {"loss": math.nan}]}, "the loss reached nan"),
        ({"kept": result(right=8, gated=13)}, "opened at 13.0% of held-out tokens"),
        ({"kept": result(right=8, gated=2)}, "opened at 2.0%"),
        ({"kept": result(right=8, boxed=9)}, "90.0% of the answers have a \\boxed{}"),
        ({"kept": result(right=8, tokens=70, gated=4)}, "have 70 tokens, the base's 100"),
        ({"kept": result(right=8, tokens=130, gated=8)}, "have 130 tokens"),
        ({"kept": result(right=4)}, "no gain on the held-out problems (-0.100"),
    ],
)
def test_a_known_failure_is_named(changes: dict[str, object], words: str) -> None:
    (sentence,) = warnings(**changes)
    assert words in sentence


def test_many_rollouts_that_could_not_be_graded() -> None:
    assert ungraded(2, 100) == []
    assert "3 of 100 rollouts could not be graded" in ungraded(3, 100)[0]


def test_the_scores_that_trackers_get() -> None:
    scores = decoded_scores(replace(result(), mode="base"), result(right=8))
    assert scores["eval_decoded_base_pass_at_1"] == 0.5
    assert scores["eval_decoded_gated_pass_at_1"] == 0.8
    assert scores["eval_decoded_gain"] == pytest.approx(0.3)
    assert scores["eval_decoded_gated_gate_rate"] == pytest.approx(0.06)
    assert "eval_decoded_base_gate_rate" not in scores
    assert scores["eval_decoded_gain_stderr"] > 0
