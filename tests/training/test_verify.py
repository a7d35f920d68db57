"""The stage that gives rollouts their rewards: also where the grader cannot tell."""

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from training.grading import Verifier
from training.problems import Problem
from training.run import Run
from training.run_folder import Stage
from training.stages.sample import SampledRollouts
from training.stages.verify import verify

TEXTS = [r"\boxed{1/3}", r"\boxed{0.33333}", r"\boxed{2}", "The answer is"]


def verified(folder: Path, texts: list[str], **options: bool) -> Any:
    problems = [Problem(id="a", problem="one third", answer=r"\frac13")]
    table = pa.table({"problem": [0] * len(texts), "text": texts})
    sampled = SampledRollouts(Stage.first(folder, "rollouts", {}), problems, table, "")
    with Verifier() as verifier:
        run = SimpleNamespace(clock=lambda *_: nullcontext(), verifier=verifier)
        return verify(cast(Run, run), sampled, **options)


def test_rewards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):  # the second time they are read back
        found = verified(tmp_path, TEXTS)
        assert np.isnan(found.rewards).tolist() == [False, True, False, False]
        assert found.rewards[[0, 2, 3]].tolist() == [1, 0, 0]
        assert found.boxed.tolist() == [True, True, True, False]
    assert "pass@1 of the rollouts: 0.333" in caplog.text
    assert "1 of 4 rollouts could not be graded and are left out (1: equal up to" in caplog.text


def test_no_rollout_can_be_graded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"problems: no answer could be graded \(2: equal up to"):
        verified(tmp_path, [r"\boxed{0.3333}"] * 2)
    # The answers at temperature 0 are for the outlook alone.
    found = verified(tmp_path, [r"\boxed{0.3333}"] * 2, needed=False)
    assert np.isnan(found.rewards).all()
