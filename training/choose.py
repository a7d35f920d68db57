"""Stage 6, choose: the checkpoint and the gate that answer best on held-out problems.

First every checkpoint is asked with the gate it was trained for; then the best of them with other
thresholds; then the best of those with lower temperatures where the gate is open. The base and the
adapter at every step answer the same problems, so that the gain is known. A score that was used to
choose is optimistic; what the adapter is worth is for `training.evaluate` to say on fresh problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adapters.manifest import Gate
from adapters.prompt import PromptRenderer
from training.evaluate import evaluate_generator
from training.generate import Applied, Generator, SamplingOptions
from training.problems import Problem
from training.results import Result
from training.run import Stage
from training.verify import Verifier


class Choice(NamedTuple):
    """The checkpoint and the gate that are kept, and how they did on the held-out problems."""

    checkpoint: Path
    gate: Gate
    base: Result
    always: Result
    gated: Result
    tokens: int  # generated for the choice, by all candidates

    @property
    def results(self) -> tuple[Result, Result, Result]:
        return self.base, self.always, self.gated


def choose(
    stage: Stage,
    checkpoints: Sequence[Path],
    gate: Gate,
    others: Sequence[Gate],
    temperatures: Sequence[float],
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    options: SamplingOptions,
    generator: Generator,
    verifier: Verifier,
    source: str,
) -> Choice:
    """Answer the held-out problems with each candidate; keep the best.

    Ties go to the earlier checkpoint, which has moved less from the base, and to the gate trained
    for.

    Args:
        gate: the one trained for.
        others: other thresholds to try, on the best checkpoint.
        temperatures: of the gate, to try on the best of those; a greedy answer is the same at any.
        source: the problems' name in the results.
    """

    def ask(label: str, applied: Applied | None) -> Result:
        return evaluate_generator(
            generator,
            renderer,
            problems,
            options,
            verifier,
            applied,
            source=source,
            label=label,
            output=stage.path(),
        )

    base = ask("base", None)
    trained = [ask(path.name, Applied.behind(path, gate)) for path in checkpoints]
    place = _best(trained)
    best, gates, gated = checkpoints[place], [gate], [trained[place]]

    def try_too(others: Sequence[Gate], label: str) -> None:
        gates.extend(others)
        gated.extend(
            ask(f"{best.name} {label.format(one)}", Applied.behind(best, one)) for one in others
        )

    try_too(others, "at {0.tau:.3f}")
    found = gates[_best(gated)]
    cooler = [found.model_copy(update={"temperature": one}) for one in temperatures]
    try_too(cooler, "at {0.tau:.3f}, temperature {0.temperature:g}")
    always = ask(f"{best.name} always", Applied(best))
    kept = _best(gated)
    asked = [base, *trained, *gated[1:], always]
    tokens = sum(int(one.tokens.sum()) for one in asked)
    return Choice(best, gates[kept], base, always, gated[kept], tokens)


def _best(results: Sequence[Result]) -> int:
    """The place of the highest pass@1, the first one of equals."""
    return max(range(len(results)), key=lambda place: results[place].pass_at_1.value)
