"""Stage 2, verify: which rollouts reach the reference answer.

The reward of a rollout is 1 if its final answer is right and 0 otherwise; nothing else about it is
judged. Each problem's own grader decides, and an answer that overruns the deadline is wrong.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.grading import Verifier
from training.problems import Problem, write_problems
from training.run import Run
from training.run_folder import Stage, write_table
from training.stages.sample import SampledRollouts

logger = logging.getLogger("training.fit")


@dataclass(frozen=True)
class VerifiedRollouts(SampledRollouts):
    """Rollouts with their rewards."""

    rewards: npt.NDArray[np.float64]  # [N] of 0 and 1
    boxed: npt.NDArray[np.bool_]  # [N] whether the answer has a complete, non-empty box


def verify(run: Run, sampled: SampledRollouts) -> VerifiedRollouts:
    """Grade each answer by its problem's own grader."""
    stage = sampled.stage.then("rewards", {})
    with run.clock(f"verify{sampled.note}", stage):
        grades = grade(stage, sampled.table, sampled.problems, run.verifier)
    rewards = grades["correct"].to_numpy().astype(np.float64)
    logger.info("pass@1 of the rollouts%s: %.3f", sampled.note, rewards.mean())
    return VerifiedRollouts(
        stage, sampled.problems, sampled.table, sampled.note, rewards, grades["boxed"].to_numpy()
    )


def grade(
    stage: Stage, rollouts: pa.Table, problems: list[Problem], verifier: Verifier
) -> pa.Table:
    """The grades of every rollout, in the table's order; a finished stage's are read back.

    Returns:
        Columns correct, boxed and timed_out, [N] bool each.
    """
    path = stage.path(".parquet")
    if not path.exists():
        # Answers can be graded again from these and the rollouts.
        write_problems(stage.path("-problems.jsonl"), problems)
        asked = [problems[index] for index in rollouts["problem"].to_pylist()]
        verdicts = verifier.check(rollouts["text"].to_pylist(), asked)
        columns = {
            "correct": [v.correct for v in verdicts],
            "boxed": [v.boxed for v in verdicts],
            "timed_out": [v.timed_out for v in verdicts],
        }
        write_table(path, pa.table(columns))
    return pq.read_table(path)
