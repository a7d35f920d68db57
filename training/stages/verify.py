"""Stage 2, verify: which rollouts reach the reference answer.

The reward of a rollout is 1 if its final answer is right and 0 if it is wrong; nothing else about
it is judged. Each problem's own grader decides. Where it cannot tell, also because it overran its
deadline, the rollout has no reward (NaN): it is counted, named with the reason, and left out of
pass rates, of training and of estimates.
"""

from __future__ import annotations

import logging
from collections import Counter
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

    rewards: npt.NDArray[np.float64]  # [N] 0 or 1; NaN where the grader cannot tell
    boxed: npt.NDArray[np.bool_]  # [N] whether the answer has a complete, non-empty box


def verify(run: Run, sampled: SampledRollouts, *, needed: bool = True) -> VerifiedRollouts:
    """Grade each answer by its problem's own grader.

    Args:
        needed: what comes next rests on them.

    Raises:
        ValueError: they are needed, and none could be graded.
    """
    stage = sampled.stage.then("rewards", {"format": 2})
    with run.clock(f"verify{sampled.note}", stage):
        grades = grade(stage, sampled.table, sampled.problems, run.verifier)
    rewards = grades["correct"].cast(pa.float64()).to_numpy()
    decided = rewards[~np.isnan(rewards)]
    if needed and not decided.size:
        raise ValueError(f"problems: no answer could be graded{_why(grades)}")
    if decided.size:
        logger.info("pass@1 of the rollouts%s: %.3f", sampled.note, decided.mean())
    if decided.size < rewards.size:
        logger.warning(
            "%d of %d rollouts%s could not be graded and are left out%s",
            rewards.size - decided.size, rewards.size, sampled.note, _why(grades),
        )  # fmt: skip
    found = {"stage": stage, "rewards": rewards, "boxed": grades["boxed"].to_numpy()}
    return VerifiedRollouts(**vars(sampled) | found)


def grade(
    stage: Stage, rollouts: pa.Table, problems: list[Problem], verifier: Verifier
) -> pa.Table:
    """The grades of every rollout, in the table's order; a finished stage's are read back.

    Returns:
        Columns correct, boxed and timed_out, [N] bool each, of which `correct` is null where the
        grader cannot tell; and reason, [N] strings.
    """
    path = stage.path(".parquet")
    if not path.exists():
        # Answers can be graded again from these and the rollouts.
        write_problems(stage.path("-problems.jsonl"), problems)
        asked = [problems[index] for index in rollouts["problem"].to_pylist()]
        verdicts = verifier.check(rollouts["text"].to_pylist(), asked)
        columns = {
            "correct": pa.array([v.correct for v in verdicts], pa.bool_()),
            "boxed": [v.boxed for v in verdicts],
            "timed_out": [v.timed_out for v in verdicts],
            "reason": [v.reason for v in verdicts],
        }
        write_table(path, pa.table(columns))
    return pq.read_table(path)


def _why(grades: pa.Table) -> str:
    """The commonest reasons why answers could not be graded, in brackets."""
    undecided = grades.filter(grades["correct"].is_null())
    counts = Counter(undecided["reason"].to_pylist()).most_common(3)
    return f" ({'; '.join(f'{count}: {reason}' for reason, count in counts)})" if counts else ""
