"""Signs that a run failed in one of the ways that runs of this method are known to fail.

Each is a sentence with the figures and the way out; none stops the run, as the figures on held-out
problems decide what an adapter is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from adapters.manifest import Gate
from training.results import Result

SPIKE = 10.0  # times the run's median |loss|, and no less than SPIKE_FLOOR
SPIKE_FLOOR = 5.0  # the clipped loss of a healthy run stays below 1
FEWEST_MIXED = 20  # problems with right and wrong rollouts
GATE_RATE_FACTOR = 2.0
BOXED_FALL = 0.05
LENGTH_DRIFT = 0.25


def diagnose(
    mixed: int, asked: int, log: Sequence[dict[str, Any]], gate: Gate, base: Result, kept: Result
) -> list[str]:
    """What looks like a known failure, in the order of the stages.

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
    """Little to learn from."""
    if mixed >= FEWEST_MIXED:
        return None
    return (
        f"only {mixed} of {asked} problems have both right and wrong rollouts: give more problems, "
        "ones nearer to what the base can do, or raise --sampling.rollouts"
    )


def loss_spike(log: Sequence[dict[str, Any]]) -> str | None:
    """The signed loss has no lower bound."""
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
    """The gate opens otherwise than on the base's own rollouts."""
    if gated.mode != "gated":
        return None
    rate = gated.gate_rate.value
    if gate.rate / GATE_RATE_FACTOR <= rate <= gate.rate * GATE_RATE_FACTOR:
        return None
    return (
        f"the gate opened at {rate:.1%} of held-out tokens, calibrated to {gate.rate:.1%}: the "
        "adapter leads to texts unlike the base's; train less or raise --objective.kl-weight"
    )


def boxes_lost(base: Result, kept: Result) -> str | None:
    """Answers that say no answer."""
    before, after = base.boxed_rate.value, kept.boxed_rate.value
    if after >= before - BOXED_FALL:
        return None
    return (
        f"{after:.1%} of the answers have a \\boxed{{}}, {before:.1%} of the base's: train "
        "less, raise --objective.kl-weight, or allow more --sampling.max-tokens"
    )


def length_drift(base: Result, kept: Result) -> str | None:
    """Trimming to the shortest rollouts teaches short answers."""
    before, after = base.mean_tokens.value, kept.mean_tokens.value
    if abs(after / before - 1) <= LENGTH_DRIFT:
        return None
    return (
        f"answers have {after:.0f} tokens, the base's {before:.0f}: see "
        "--selection.shortest, which prefers short rollouts where it is below 1"
    )


def no_gain(base: Result, kept: Result) -> str | None:
    """Not even where it chose the checkpoint."""
    gain = kept.against(base)
    if gain.value > 0:
        return None
    return f"no gain on the held-out problems ({gain.value:+.3f} \u00b1 {gain.stderr:.3f})"
