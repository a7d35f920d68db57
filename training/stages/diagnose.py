"""Stage 8, diagnose: what the run found and cost, and signs that it failed in a known way.

Each sign is a sentence with the figures and the way out. None stops the run: figures on held-out
problems decide what an adapter is worth. All of it goes into report.json in the run folder.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adapters.files import write_json
from adapters.manifest import Gate
from training.evaluation import Result
from training.evaluation.statistics import without_nan
from training.run import Run
from training.run_picture import REPORT, draw_if_possible
from training.stages.checkpoint_estimates import Candidate
from training.stages.outlook import FEWEST_MIXED, Outlook
from training.stages.score import Rollouts
from training.stages.select_checkpoint import Choice
from training.stages.train import LOG, Trained, training_arguments
from training.trackers import Tracking, report_scores

logger = logging.getLogger("training.fit")

SPIKE = 10.0  # times the run's median |loss|, and no less than SPIKE_FLOOR
SPIKE_FLOOR = 5.0  # the clipped loss of a healthy run stays below 1
BINS = 80  # of the histogram of entropies
GATE_RATE_FACTOR = 2.0
BOXED_FALL = 0.05
UNGRADED = 0.02  # of the rollouts
LENGTH_DRIFT = 0.25


def diagnose(
    run: Run, rounds: Sequence[Trained], heldout: Rollouts, choice: Choice, outlook: Outlook
) -> None:
    """Write report.json and seconds.json, and log the warnings and what was found.

    Args:
        heldout: the base's answers to the held-out problems.
        outlook: what they said before training.
    """
    folder, kept, base = run.config.run_dir, choice.kept, choice.base
    write_json(folder / "seconds.json", run.clock.seconds)
    values = report(rounds, heldout, choice) | {"outlook": outlook.report()}
    write_json(folder / REPORT, without_nan(values))
    draw_if_possible(folder)
    track(run, rounds[-1], choice)
    for sentence in values["warnings"]:
        logger.warning("%s", sentence)
    gain = kept.against(base).signed
    logger.info(
        "held out: base %s, at temperature 0 %s, %s %s (%s to the base)",
        base.pass_at_1, outlook.greedy, kept.mode, kept.pass_at_1, gain,
    )  # fmt: skip
    logger.info("gate: %s", choice.gate)
    logger.info("seconds: %s", run.clock.summary())


def track(run: Run, trained: Trained, choice: Choice) -> None:
    """Send the decoded scores to the trackers that training was reported to."""
    config = run.config
    if not config.report_to:
        return
    arguments = training_arguments(
        *(trained.stage.path(), trained.rows, config.optimizer, config.checkpoints),
        seed=run.training_seed,
        tracking=Tracking(config.report_to, config.name),
    )
    report_scores(arguments, trained.last_step, decoded_scores(choice.base, choice.kept))


def decoded_scores(base: Result, kept: Result) -> dict[str, float]:
    """Scores of the base and of the adapter on the held-out problems, as trackers name them."""
    found = {}
    for one in (base, kept):
        figures = {"pass_at_1": one.pass_at_1, "boxed_rate": one.boxed_rate}
        figures |= {"mean_tokens": one.mean_tokens}
        figures |= {"gate_rate": one.gate_rate} if one.mode == "gated" else {}
        for name, figure in figures.items():
            found[f"eval_decoded_{one.mode}_{name}"] = figure.value
            found[f"eval_decoded_{one.mode}_{name}_stderr"] = figure.stderr
    gain = kept.against(base)
    return found | {"eval_decoded_gain": gain.value, "eval_decoded_gain_stderr": gain.stderr}


def report(rounds: Sequence[Trained], heldout: Rollouts, choice: Choice) -> dict[str, Any]:
    """What the run cost and found, as JSON."""
    rollouts, trained = [one.rollouts for one in rounds], rounds[-1]
    rates = np.concatenate([_pass_rates(one) for one in rollouts])
    rewards = np.concatenate([one.rewards for one in rollouts])
    mixed = int(((rates > 0) & (rates < 1)).sum())
    log = _history(trained)
    warnings = known_failures(mixed, len(rates), log, choice.gate, choice.base, choice.kept)
    not_graded = int(np.isnan(rewards).sum())
    return {
        "warnings": [*warnings, *ungraded(not_graded, rewards.size)],
        "problems": {"asked": len(rates), "mixed": mixed},
        "pass_rates": [round(float(rate), 4) for rate in rates if not np.isnan(rate)],
        "entropies": entropy_histogram(rollouts),
        "losses": [_losses(one) for one in rounds],
        "pass@1 of the rollouts": float(np.nanmean(rewards)),
        "rollouts not graded": not_graded,
        "tokens": {
            "rollouts": sum(map(_generated, rollouts)),
            "heldout": _generated(heldout) + choice.tokens,
        },
        "training": str(trained.stage.path()),
        "steps": trained.last_step,
        "checkpoint": choice.checkpoint.name,
        "gate": choice.gate.model_dump(include={"tau", "rate", "temperature"}),
        "heldout": {one.label: one.report() for one in (choice.base, *choice.decoded)},
        "estimates": {one.label: _estimate(one) for one in choice.candidates},
    }


def entropy_histogram(rollouts: Sequence[Rollouts]) -> dict[str, list[float]]:
    """How many tokens have which entropy: `edges` in nats, one more than `counts`."""
    h = np.concatenate([one for each in rollouts for one in each.entropies])
    counts, edges = np.histogram(h, bins=BINS, range=(0.0, max(float(h.max()), 1e-6)))
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts.tolist()}


def _history(trained: Trained) -> list[dict[str, Any]]:
    """The Trainer's history of one round."""
    history: list[dict[str, Any]] = json.loads((trained.stage.path() / LOG).read_text())
    return history


def _losses(trained: Trained) -> list[tuple[int, float]]:
    """(step, loss) of one round."""
    return [(entry["step"], entry["loss"]) for entry in _history(trained) if "loss" in entry]


def _estimate(candidate: Candidate) -> dict[str, Any]:
    """The estimate of `candidate`, as JSON."""
    estimate = candidate.estimate
    return {
        "round": candidate.checkpoint.parent.name,
        "step": int(candidate.checkpoint.name.split("-")[1]),
        "tau": candidate.gate.tau,
        "temperature": candidate.gate.temperature,
        "pass@1": estimate.score.value,
        "stderr": estimate.score.stderr,
        "gain": estimate.gain.value,
        "gain_stderr": estimate.gain.stderr,
        "mean_weight": estimate.mean_weight,
        "effective": estimate.effective,
        "trusted": estimate.trusted,
    }


def _pass_rates(rollouts: Rollouts) -> npt.NDArray[np.float64]:
    """The mean reward of each problem, [problems]; NaN where no rollout could be graded."""
    rewards = pa.array(rollouts.rewards, from_pandas=True)  # NaN is null, which no mean counts
    table = pa.table({"problem": rollouts.table["problem"], "reward": rewards})
    grouped = table.group_by("problem").aggregate([("reward", "mean")])
    rates: npt.NDArray[np.float64] = grouped["reward_mean"].to_numpy()
    return rates


def _generated(rollouts: Rollouts) -> int:
    """How many tokens all answers have."""
    return int(pc.sum(pc.list_value_length(rollouts.table["token_ids"])).as_py())


def known_failures(
    mixed: int, asked: int, log: Sequence[dict[str, Any]], gate: Gate, base: Result, kept: Result
) -> list[str]:
    """Sentences about what looks like a known failure, in the order of the stages.

    Args:
        mixed, asked: problems with right and wrong rollouts, of all.
        log: the Trainer's history, entries with a "loss" among them.
        gate: as calibrated.
        base, kept: answers to the held-out problems, of the base and of the adapter.
    """
    found = [few_mixed(mixed, asked), loss_spike(log), gate_rate_off(gate, kept)]
    found += [boxes_lost(base, kept), length_drift(base, kept), no_gain(base, kept)]
    return [sentence for sentence in found if sentence]


def few_mixed(mixed: int, asked: int) -> str | None:
    """A warning where there is little to learn from."""
    if mixed >= FEWEST_MIXED:
        return None
    return (
        f"only {mixed} of {asked} problems have both right and wrong rollouts: give more problems, "
        "ones nearer to what the base can do, or raise --sampling.rollouts"
    )


def ungraded(count: int, rollouts: int) -> list[str]:
    """A warning where many rollouts could not be graded: the pass rates are of the others."""
    if count <= UNGRADED * rollouts:
        return []
    return [
        f"{count} of {rollouts} rollouts could not be graded (rewards-*.parquet has the reasons): "
        "look at the reference answers, or name another --grader"
    ]


def loss_spike(log: Sequence[dict[str, Any]]) -> str | None:
    """A warning where the loss ran away: the paper's signed loss has no lower bound."""
    losses = [abs(float(entry["loss"])) for entry in log if "loss" in entry]
    if not losses:
        return None
    worst = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
    if worst <= max(SPIKE_FLOOR, SPIKE * median(losses)):
        return None
    return (
        f"the loss reached {worst:.3g} (median {median(losses):.3g}): take --objective.name "
        "clipped, or lower --optimizer.learning-rate"
    )


def gate_rate_off(gate: Gate, gated: Result) -> str | None:
    """A warning where the gate opens otherwise than on the base's own rollouts."""
    if gated.mode != "gated":
        return None
    rate = gated.gate_rate.value
    if gate.rate / GATE_RATE_FACTOR <= rate <= gate.rate * GATE_RATE_FACTOR:
        return None
    return (
        f"the gate opened at {rate:.1%} of held-out tokens, calibrated to {gate.rate:.1%}: the "
        "adapter leads to texts unlike the base's; train less or raise --objective.anchor-weight"
    )


def boxes_lost(base: Result, kept: Result) -> str | None:
    """A warning where fewer answers than before say a final answer."""
    before, after = base.boxed_rate.value, kept.boxed_rate.value
    if after >= before - BOXED_FALL:
        return None
    return (
        f"{after:.1%} of the answers have a \\boxed{{}}, {before:.1%} of the base's: train "
        "less, raise --objective.anchor-weight, or allow more --sampling.max-tokens"
    )


def length_drift(base: Result, kept: Result) -> str | None:
    """A warning where lengths change: trimming to the shortest rollouts teaches short answers."""
    before, after = base.mean_tokens.value, kept.mean_tokens.value
    if abs(after / before - 1) <= LENGTH_DRIFT:
        return None
    return (
        f"answers have {after:.0f} tokens, the base's {before:.0f}: see "
        "--selection.shortest, which prefers short rollouts where it is below 1"
    )


def no_gain(base: Result, kept: Result) -> str | None:
    """A warning where there is no gain even on the problems that selected the checkpoint."""
    gain = kept.against(base)
    if gain.value > 0:
        return None
    return f"no gain on the held-out problems ({gain.value:+.3f} \u00b1 {gain.stderr:.3f})"
