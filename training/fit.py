"""Fit an adapter: sample, verify, score, select, train, choose, publish.

    python -m training.fit --model models/tiny-qwen2 --problems problems.jsonl --publish my-adapter
    python -m training.fit --model Qwen/Qwen2.5-1.5B --problems gsm8k --output my-adapter

`--publish NAME` makes it a version in the store and points the alias NAME at it, `--output` writes
a plain folder.

The adapter is fitted as it is served: at decision points, reading the base's cache. `--mode always`
is the paper's own fit, at every position, for an adapter that is served at every step.

Each stage leaves its result in the run folder; the same command after a kill goes on from there.
Every setting of the family's recipe can be set by `--config FILE` or by flags (`--help`).
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.base import BaseModel
from adapters.files import write_json
from adapters.places import default_store
from adapters.recipe import look_up
from adapters.reference import Reference
from adapters.store import Store
from training.choose import Choice
from training.diagnose import diagnose
from training.fit_config import FitConfig
from training.fit_run import FitRun, Rollouts
from training.publish import publish
from training.run import Stage
from training.select import choose_gates
from training.train import LOG

logger = logging.getLogger("training.fit")


def fit(config: FitConfig) -> Path:
    """Run every stage that is not done yet; return the adapter's folder."""
    with FitRun.open(config) as run:
        first, *later = run.shares
        drawn, heldout = run.sample_base(first)
        rollouts, answers = run.grade(drawn), run.grade(heldout, " held-out")
        gates = choose_gates(rollouts.entropies, config.gate)
        gate = gates[0]
        logger.info("tau %.4f nats: gate rate %.3f on %d tokens", gate.tau, gate.rate, gate.tokens)
        estimates = run.estimates(answers, gates)

        asked = [rollouts]
        stage, checkpoints = run.train(rollouts, run.select(rollouts, gate), gate, estimates)
        for number, problems in enumerate(later, start=2):
            best = estimates.best(checkpoints)
            drawn = run.sample_adapter(stage, number, problems, best, gate)
            rollouts = run.grade(drawn, f", round {number}")
            asked.append(rollouts)
            examples = run.select(rollouts, gate)
            stage, more = run.train(rollouts, examples, gate, estimates, start=best)
            checkpoints += more
        choice = run.choose(stage, answers, checkpoints, gate, estimates)
    folder = deliver(run, choice)
    write_json(config.run_dir / "seconds.json", run.clock.seconds)
    for sentence in report(config.run_dir, stage, asked, answers, checkpoints, choice):
        logger.warning("%s", sentence)
    kept, base = choice.kept, choice.base
    gain = kept.against(base).signed
    logger.info("held out: base %s, %s %s (%s)", base.pass_at_1, kept.mode, kept.pass_at_1, gain)
    logger.info("gate: %s", choice.gate)
    logger.info("seconds: %s", run.clock.summary())
    return folder


# ------------------------------------------------------------------------------- the small print


def deliver(run: FitRun, choice: Choice) -> Path:
    """Write the adapter to --output or the run folder, and into the store with --publish."""
    config = run.config
    folder = config.output or config.run_dir / "adapter"
    publish(
        folder,
        config.name,
        choice.checkpoint,
        run.base,
        base_reference(config.model, run.base),
        look_up(run.base, config.family).recipe.family,
        choice.gate,
        [score for result in (choice.base, choice.kept) for score in result.to_scores()],
        config.seed,
        config.to_yaml(),
        shlex.join(["python", "-m", "training.fit", *sys.argv[1:]]),
        run.renderer.digest,
    )
    if config.publish is None:
        logger.info("adapter: %s", folder)
        return folder
    store = Store(config.store or default_store())
    version = store.publish(folder, config.publish, base=run.base)
    logger.info("adapter: %s in %s", version.id, store.root)
    return store.path(Reference(config.publish, version.hash))


def report(
    folder: Path,
    trained: Stage,
    asked: Sequence[Rollouts],
    heldout: Rollouts,
    checkpoints: Sequence[Path],
    choice: Choice,
) -> list[str]:
    """Write report.json, what the run cost and found; return its warnings."""
    rates = np.concatenate([pass_rates(one) for one in asked])
    mixed = int(((rates > 0) & (rates < 1)).sum())
    log = json.loads((trained.path() / LOG).read_text())
    warnings = diagnose(mixed, len(rates), log, choice.gate, choice.base, choice.kept)
    values = {
        "warnings": warnings,
        "problems": {"asked": len(rates), "mixed": mixed},
        "pass@1 of the rollouts": float(np.concatenate([one.rewards for one in asked]).mean()),
        "tokens": {
            "rollouts": sum(map(generated, asked)),
            "heldout": generated(heldout) + choice.tokens,
        },
        "training": str(trained.path()),
        "steps": int(checkpoints[-1].name.split("-")[1]),
        "checkpoint": choice.checkpoint.name,
        "gate": choice.gate.model_dump(include={"tau", "rate", "temperature"}),
        "heldout": {one.label: one.report() for one in (choice.base, *choice.decoded)},
        "estimates": {
            one.label: {
                "pass@1": one.estimate.score.value,
                "stderr": one.estimate.score.stderr,
                "gain": one.estimate.gain.value,
                "gain_stderr": one.estimate.gain.stderr,
                "mean_weight": one.estimate.mean_weight,
                "effective": one.estimate.effective,
                "trusted": one.estimate.trusted,
            }
            for one in choice.candidates
        },
    }
    write_json(folder / "report.json", values)
    return warnings


def pass_rates(rollouts: Rollouts) -> np.ndarray:
    """The mean reward of each problem."""
    table = pa.table({"problem": rollouts.table["problem"], "reward": rollouts.rewards})
    grouped = table.group_by("problem").aggregate([("reward", "mean")])
    rates: np.ndarray = grouped["reward_mean"].to_numpy()
    return rates


def generated(rollouts: Rollouts) -> int:
    """Tokens."""
    return int(pc.sum(pc.list_value_length(rollouts.table["token_ids"])).as_py())


def base_reference(model: str, base: BaseModel) -> str:
    """What names the base in adapter_config.json: never a path of this machine's."""
    return base.name if Path(model).is_absolute() else model


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    config = FitConfig.load(argv)
    with config.usage_errors():
        fit(config)


if __name__ == "__main__":
    main()
