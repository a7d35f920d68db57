"""Stage 6, select a checkpoint: the one that scores best on held-out problems, and its gate.

An adapter that is served gated is selected by estimates (`checkpoint_estimates.py`): every
checkpoint with every threshold and temperature of the gate has one, and only the best are decoded
to confirm it. A candidate is also decoded if its estimate cannot be trusted and it may still be the
best. An adapter that is served always-on has no estimates: every checkpoint is decoded.

Decoding is a race. All answer a quarter of the held-out problems; those that are behind the leader
by more than the standard error of the paired difference drop out. The others go on to a half, and
those that are left to all. So most answers are spent on candidates that are hard to tell apart.

A score that was used to select is optimistic. What the adapter is worth is for `training.evaluate`
to say, on fresh problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow.compute as pc

from adapters.manifest import Gate
from training.evaluation import Evaluation, Result, evaluate_generator
from training.fit_config import FitConfig
from training.generation import Applied, SamplingOptions, derive_seed
from training.problems import Problem, source_name
from training.run import Run
from training.stages.checkpoint_estimates import Candidate, CheckpointEstimates, shortlist
from training.stages.score import Rollouts
from training.stages.train import Trained, checkpoints_of

SHARES = (0.25, 0.5, 1.0)  # of the held-out problems, after which candidates drop out
FEWEST = 10  # problems on which nobody drops out: they tell nothing, and small batches are slow


class Choice(NamedTuple):
    """The checkpoint and the gate that are kept, and how they did on the held-out problems."""

    checkpoint: Path
    gate: Gate
    base: Result
    kept: Result
    decoded: list[Result]  # of every candidate that was decoded, as far as it came
    candidates: Sequence[Candidate] = ()  # with their estimates

    @property
    def tokens(self) -> int:
        """Generated for the choice, the base's answers aside."""
        return sum(int(one.tokens.sum()) for one in self.decoded)


class Decode(Protocol):
    """Has the first `count` held-out problems answered by an adapter."""

    def __call__(self, label: str, applied: Applied, count: int) -> Result: ...


def select_checkpoint(
    run: Run, rounds: Sequence[Trained], estimates: CheckpointEstimates
) -> Choice:
    """Keep the best checkpoint of all `rounds`, and the best gate for it."""
    config, heldout = run.config, run.heldout
    options = decoding_options(config)
    source = source_name(config.heldout or config.problems)
    base = _base_result(estimates.heldout, heldout, source, options.temperature)
    checkpoints = checkpoints_of(rounds)
    candidates = estimates.candidates(checkpoints) if config.mode == "gated" else []
    stage = rounds[-1].stage.then("decoded", {"problems": [p.model_dump() for p in heldout]})
    asked = Evaluation(heldout, run.renderer, options, run.verifier, source, stage.path())
    with run.clock("choose", stage), run.generator(adapter=True) as generator:

        def decode(label: str, applied: Applied, count: int) -> Result:
            part = asked._replace(problems=heldout[:count])
            return evaluate_generator(generator, part, applied, label)

        if config.mode == "gated":
            decoded = config.checkpoints.decoded
            return select_gated(candidates, decoded, len(heldout), base, decode)
        return select_always(checkpoints, estimates.gates[0], len(heldout), base, decode)


def decoding_options(config: FitConfig) -> SamplingOptions:
    """How candidates are decoded: as the base's held-out answers were drawn."""
    sampling = config.heldout_sampling
    return SamplingOptions(
        n=config.checkpoints.samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=derive_seed(config.seed, "held-out"),
    )


def select_gated(
    candidates: Sequence[Candidate], count: int, problems: int, base: Result, decode: Decode
) -> Choice:
    """Decode the shortlist behind its gates; keep the best answer rate, the first of equals.

    Args:
        count: of candidates to decode.
        problems: held out.
    """
    listed = shortlist(candidates, count)
    entrants = [(one.label, Applied.behind(one.checkpoint, one.gate)) for one in listed]
    kept, decoded = race(entrants, problems, decode)
    checkpoint, gate = listed[kept].checkpoint, listed[kept].gate
    return Choice(checkpoint, gate, base, decoded[kept], decoded, candidates)


def select_always(
    checkpoints: Sequence[Path], gate: Gate, problems: int, base: Result, decode: Decode
) -> Choice:
    """Decode every checkpoint always-on; keep the best, the first of equals."""
    entrants = [(f"{path.name} always", Applied(path)) for path in checkpoints]
    kept, decoded = race(entrants, problems, decode)
    return Choice(checkpoints[kept], gate, base, decoded[kept], decoded)


def race(
    entrants: Sequence[tuple[str, Applied]], problems: int, decode: Decode
) -> tuple[int, list[Result]]:
    """Decode `entrants` on more and more of the problems, dropping those that fall behind.

    Returns:
        The place of the winner, and each entrant's result as far as it came.
    """
    results: list[Result] = []
    running = list(range(len(entrants)))
    for share in SHARES:
        count = round(share * problems)
        if count < min(FEWEST, problems):
            continue
        found = {place: decode(*entrants[place], count) for place in running}
        results = [found.get(place, before) for place, before in enumerate(results)] or list(
            found.values()
        )
        best = running[best_of([found[place] for place in running])]
        running = [place for place in running if not is_behind(found[place], found[best])]
    return best, results


def is_behind(result: Result, leader: Result) -> bool:
    """Whether `result` is worse by more than the standard error of the paired difference."""
    gap = leader.against(result)
    return gap.value > (0.0 if math.isnan(gap.stderr) else gap.stderr)


def best_of(results: Sequence[Result]) -> int:
    """The place of the highest pass@1, the first one of equals."""
    scores = [result.pass_at_1.value for result in results]
    return max(range(len(results)), key=lambda place: np.nan_to_num(scores[place], nan=-1.0))


def _base_result(
    rollouts: Rollouts, problems: Sequence[Problem], source: str, temperature: float
) -> Result:
    """The base's answers to the held-out `problems`, as a result.

    Args:
        source: the problems' name.
        temperature: of the answers.
    """
    shape = (len(problems), -1)
    lengths = pc.list_value_length(rollouts.table["token_ids"]).to_numpy()
    reasons = np.array(rollouts.table["finish_reason"].to_pylist())
    return Result(
        label="base",
        mode="base",
        source=source,
        temperature=temperature,
        problem_ids=[problem.id for problem in problems],
        correct=rollouts.rewards.reshape(shape),
        boxed=rollouts.boxed.reshape(shape),
        tokens=lengths.astype(np.int64).reshape(shape),
        gated=np.zeros_like(lengths, dtype=np.int64).reshape(shape),
        truncated=(reasons == "length").reshape(shape),
        sources=[problem.source for problem in problems],
    )
