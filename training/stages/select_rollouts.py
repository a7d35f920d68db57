"""Stage 4, select rollouts: which of them teach something, how strongly, and where.

Only problems that the base sometimes solves carry a signal: everywhere else all advantages are
zero. Those near a pass rate of one half carry the most. The decision points of a rollout are where
the base's entropy exceeds tau.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adapters.gate import RATES, calibrate, calibration_table
from adapters.manifest import Gate
from adapters.recipe import GateChoice, Selection
from training.advantage import advantages, prefix_advantages
from training.contrastive_trainer import TrainingRow
from training.run import Run
from training.stages.score import Rollouts

logger = logging.getLogger("training.fit")


class Example(NamedTuple):
    """A rollout to train on: where, and how strongly."""

    row: int  # in the rollouts table
    advantages: npt.NDArray[np.float64]  # [T]
    decisions: npt.NDArray[np.bool_]  # [T]


class TrainingSet(NamedTuple):
    """The rollouts that one round trains on."""

    rollouts: Rollouts  # of which the rows are some
    gate: Gate  # opens at the decision points
    rows: list[TrainingRow]


def select_rollouts(run: Run, rollouts: Rollouts, gate: Gate) -> TrainingSet:
    """Pick the rollouts that teach something, behind `gate`.

    Raises:
        ValueError: there are none.
    """
    examples = examples_of(rollouts, gate, run.config.selection, run.training_seed)
    if not examples:
        raise ValueError(
            "problems: none has both right and wrong rollouts with decision points (their pass "
            f"rate is {np.nanmean(rollouts.rewards):.3f}); give problems nearer to what the base "
            "can do, raise --sampling.rollouts, or lower --gate.tau"
        )
    logger.info("%d rollouts to train on", len(examples))
    return TrainingSet(rollouts, gate, training_rows(rollouts.table, examples))


def examples_of(rollouts: Rollouts, gate: Gate, selection: Selection, seed: int) -> list[Example]:
    """Those of `rollouts` to train on; see `select_examples`."""
    return select_examples(
        rollouts.table["problem"].to_numpy(),
        rollouts.rewards,
        rollouts.table["token_ids"].to_pylist(),
        rollouts.entropies,
        gate.tau,
        selection,
        seed,
    )


def calibrate_gates(entropies: Sequence[npt.NDArray[Any]], choice: GateChoice) -> list[Gate]:
    """The gates that an adapter may be served behind.

    First comes the one to train for, at the wanted rate or the tau that was given; then others to
    serve, and each of them at the correction temperatures to be tried.

    Args:
        entropies: one array [T] for each rollout of the base, nats.
    """
    h = np.concatenate(list(entropies))
    table = calibration_table(h, RATES)

    def gate(tau: float) -> Gate:
        return Gate(tau=tau, rate=float((h > tau).mean()), tokens=h.size, table=table)

    trained = gate(choice.tau if choice.tau is not None else calibrate(h, choice.rate))
    logger.info(
        "tau %.4f nats: gate rate %.3f on %d tokens", trained.tau, trained.rate, trained.tokens
    )
    others = [gate(calibrate(h, rate)) for rate in choice.others]
    served = [trained, *(other for other in others if other.tau != trained.tau)]
    return [
        one.model_copy(update={"temperature": temperature})
        for temperature in (1.0, *(t for t in choice.temperatures if t != 1))
        for one in served
    ]


def select_examples(
    problems: npt.ArrayLike,
    rewards: npt.ArrayLike,
    tokens: Sequence[Sequence[int]],
    entropies: Sequence[npt.NDArray[Any]],
    tau: float,
    selection: Selection,
    seed: int = 0,
) -> list[Example]:
    """The rollouts to train on, in the table's order.

    Args:
        problems: [N] the problem each rollout belongs to.
        rewards: [N] 0 or 1; NaN: not graded. Such rollouts are left out, of pass rates too.
        tokens: N answers, [T] ids each.
        entropies: N arrays [T], nats.
        tau: the gate's threshold, nats.
        seed: for the controls, which draw at random.

    Returns:
        Rollouts with at least one decision point, of the `selection.problems` mixed problems
        nearest to a pass rate of 0.5 (ties by the problem's index), the shortest
        `selection.shortest` of each (ties by row), and `selection.rollouts` of those at random.
    """
    problem_of, reward_of = np.asarray(problems), np.asarray(rewards, dtype=np.float64)
    graded = ~np.isnan(reward_of)
    rng = np.random.default_rng(seed)
    if selection.reward == "random":
        reward_of = (rng.random(len(reward_of)) < reward_of[graded].mean()).astype(np.float64)
    rows_of = {
        int(p): np.flatnonzero((problem_of == p) & graded) for p in np.unique(problem_of[graded])
    }
    pass_rate = {p: reward_of[rows].mean() for p, rows in rows_of.items()}
    mixed = [p for p, rate in pass_rate.items() if 0 < rate < 1]
    kept = sorted(mixed, key=lambda p: (abs(pass_rate[p] - 0.5), p))[: selection.problems]

    examples: list[Example] = []
    for p in sorted(kept):
        rows = rows_of[p]
        # Advantages over all of a problem's rollouts: the trimming must not move their mean.
        advantage = dict(
            zip(
                rows,
                _advantages(reward_of[rows], [tokens[r] for r in rows], selection),
                strict=True,
            )
        )
        by_length = sorted(rows, key=lambda row: (len(entropies[row]), row))
        shortest = by_length[: max(1, round(selection.shortest * len(rows)))]
        for row in sorted(_balanced(shortest, reward_of, selection.rollouts, rng)):
            if selection.advantages == "positive" and reward_of[row] == 0:
                continue
            decisions = _decisions(entropies[row] > tau, selection.gate, rng)
            if decisions.any():
                examples.append(Example(int(row), advantage[row], decisions))
    return examples


def _balanced(
    rows: Sequence[int],
    reward_of: npt.NDArray[np.float64],
    count: int | None,
    rng: np.random.Generator,
) -> list[int]:
    """`count` of the rows, drawn at random, right and wrong ones in turn while there are both."""
    if count is None or len(rows) <= count:
        return list(rows)
    drawn = [int(row) for row in rng.permutation(rows)]
    right = [row for row in drawn if reward_of[row] > 0]
    wrong = [row for row in drawn if reward_of[row] == 0]
    fewer, more = sorted((right, wrong), key=len)
    few = min(len(fewer), count // 2)
    return fewer[:few] + more[: count - few]


def _advantages(
    rewards: npt.NDArray[np.float64], tokens: Sequence[Sequence[int]], selection: Selection
) -> Sequence[npt.NDArray[np.float64]]:
    """The advantages of one problem's rollouts, [T] each."""
    if selection.baseline == "prefix":
        return prefix_advantages(rewards, tokens, selection.advantage_clip)
    each = advantages(rewards, selection.advantage_clip)
    return [np.full(len(answer), one) for one, answer in zip(each, tokens, strict=True)]


def _decisions(
    opened: npt.NDArray[np.bool_], gate: str, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """The positions trained on, [T], given those above tau: these, or a control's."""
    match gate:
        case "random":
            return rng.permutation(opened)
        case "shut":
            drawn = np.zeros_like(opened)
            drawn[rng.permutation(np.flatnonzero(~opened))[: opened.sum()]] = True
            return drawn
        case "position":
            return np.arange(opened.size) < opened.sum()
        case "none":
            return np.ones_like(opened)
    return opened


def training_rows(rollouts: pa.Table, examples: list[Example]) -> list[TrainingRow]:
    """The selected rollouts, joined with their tokens."""
    chosen = rollouts.take([example.row for example in examples])
    return [
        TrainingRow(
            prompt_ids=prompt,
            token_ids=tokens,
            advantages=example.advantages.tolist(),
            decisions=example.decisions.tolist(),
        )
        for prompt, tokens, example in zip(
            chosen["prompt_ids"].to_pylist(), chosen["token_ids"].to_pylist(), examples, strict=True
        )
    ]
