"""Fit an adapter to a base model and problems with known answers.

    python -m training.fit --model models/tiny-qwen2 --problems problems.jsonl --publish my-adapter
    python -m training.fit --model Qwen/Qwen2.5-1.5B --problems gsm8k_train --output my-adapter

`--publish NAME` makes it a version in the store and points the alias NAME at it. `--output` writes
a plain folder.

`fit` below reads as the method; each stage is a file in `training/stages/`. The adapter is fitted
as it is served: at decision points, reading the base's cache. `--mode always` is the paper's own
fit, at every position, for an adapter that is served at every step.

`accelerate launch -m training.fit ...` trains with several processes (training/processes.py).

Each stage leaves its result in the run folder; the same command after a kill goes on from there.
Every setting of the family's recipe can be set by `--config FILE` or by flags (`--help`).
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from training import processes
from training.fit_config import FitConfig
from training.run import Run
from training.stages.checkpoint_estimates import CheckpointEstimates
from training.stages.diagnose import diagnose
from training.stages.outlook import look_ahead
from training.stages.publish import publish
from training.stages.sample import sample_adapter, sample_base
from training.stages.score import score
from training.stages.select_checkpoint import select_checkpoint
from training.stages.select_rollouts import calibrate_gates, select_rollouts
from training.stages.train import checkpoints_of, train
from training.stages.verify import verify


def fit(config: FitConfig, command: str = "") -> Path:
    """Run every stage that is not done yet.

    Args:
        command: what the adapter's card says that it was made with.

    Returns:
        The adapter's folder: the version's in the store, or a plain one.

    Raises:
        FileNotFoundError: there is no such base model.
        ValueError: a setting or the problems cannot be used; the message names the field.
    """
    with Run.open(config) as run:
        first, *later = run.shares
        base = sample_base(run, first)
        rollouts, heldout = (score(run, verify(run, one)) for one in (base.rollouts, base.heldout))
        gate, *others = calibrate_gates(rollouts.entropies, run.config.gate)
        greedy = verify(run, base.greedy, needed=False)
        outlook = look_ahead(run, rollouts, heldout, greedy, gate)
        estimates = CheckpointEstimates(run, heldout, [gate, *others])
        rounds = [train(run, select_rollouts(run, rollouts, gate), estimates)]
        for number, problems in enumerate(later, start=2):
            best = estimates.best(checkpoints_of(rounds))
            sampled = sample_adapter(run, rounds[-1].stage, number, problems, best, gate)
            rollouts = score(run, verify(run, sampled))
            rounds.append(train(run, select_rollouts(run, rollouts, gate), estimates, best))
        choice = select_checkpoint(run, rounds, estimates)
    folder = publish(run, choice, command)
    diagnose(run, rounds, heldout, choice, outlook)
    return folder


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = FitConfig.begin(argv)
    processes.join()
    if processes.rank() > 0:
        processes.help_the_first()
        processes.leave()
        return
    given = sys.argv[1:] if argv is None else argv
    with config.usage_errors():
        fit(config, shlex.join(["python", "-m", "training.fit", *given]))
    processes.leave()


if __name__ == "__main__":
    main()
