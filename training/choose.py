"""Stage 6, choose: the checkpoint that answers best on problems held out from training.

The base answers the same problems, so that the gain is known. A score that was used to choose is
optimistic; what the adapter is worth is for `training.evaluate` to say on fresh problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adapters.prompt import PromptRenderer
from training.evaluate import evaluate_generator
from training.generate import Generator, SamplingOptions
from training.problems import Problem
from training.results import Result
from training.run import Stage
from training.verify import Verifier


class Choice(NamedTuple):
    """The checkpoint kept, and how it and the base did on the held-out problems."""

    checkpoint: Path
    base: Result
    adapter: Result


def choose(
    stage: Stage,
    checkpoints: Sequence[Path],
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    options: SamplingOptions,
    generator: Generator,
    verifier: Verifier,
    source: str,
) -> Choice:
    """Answer the held-out problems with the base and with each checkpoint; keep the best.

    Ties go to the earlier checkpoint, which has moved less from the base. `source` names the
    problems in the results.
    """

    def ask(adapter: Path | None) -> Result:
        return evaluate_generator(
            generator,
            renderer,
            problems,
            options,
            verifier,
            adapter,
            source=source,
            label=adapter.name if adapter else "base",
            output=stage.path(),
        )

    base = ask(None)
    results = [ask(checkpoint) for checkpoint in checkpoints]
    best = max(range(len(results)), key=lambda place: results[place].pass_at_1.value)
    return Choice(checkpoints[best], base, results[best])
