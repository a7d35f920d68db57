"""Stage 6, choose: the checkpoint that answers best on problems held out from training.

The base answers the same problems, so that the gain is known. A score that was used to choose is
optimistic; what the adapter is worth is for `training.evaluate` to say on fresh problems.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from adapters.files import write_json
from adapters.prompt import PromptRenderer
from adapters.recipe import Checkpoints, Sampling
from training.generate import Generator, SamplingOptions, derive_seed
from training.problems import Problem
from training.run import Stage
from training.verify import Verifier


@dataclass(frozen=True)
class HeldOut:
    """How a model did on the held-out problems."""

    checkpoint: str  # folder name, "base" for the base
    accuracy: float  # pass@1: the mean over problems and samples
    boxed: float  # share of answers with a \\boxed{}
    tokens: float  # mean length


@dataclass(frozen=True)
class Choice:
    """The checkpoint kept, and every candidate's figures, the base's first."""

    best: Path
    base: HeldOut
    candidates: list[HeldOut]

    @property
    def chosen(self) -> HeldOut:
        return next(one for one in self.candidates if one.checkpoint == self.best.name)


def choose(
    stage: Stage,
    checkpoints: Sequence[Path],
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    sampling: Sampling,
    how: Checkpoints,
    seed: int,
    open_generator: Callable[[], AbstractContextManager[Generator]],
    verifier: Verifier,
) -> Choice:
    """Answer the held-out problems with the base and with each checkpoint; keep the best.

    Ties go to the earlier checkpoint, which has moved less from the base.
    """
    folder = stage.path()
    folder.mkdir(parents=True, exist_ok=True)
    todo = {"base": None} | {path.name: path for path in checkpoints}
    missing = [name for name in todo if not (folder / f"{name}.json").exists()]
    if missing:
        prompts = [renderer.token_ids(problem.problem) for problem in problems]
        options = SamplingOptions(
            how.samples,
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            derive_seed(seed, "held-out"),
        )
        with open_generator() as generator:
            for name in missing:
                answers = generator.generate(prompts, options, todo[name], label=f"choose {name}")
                flat = [answer for row in answers for answer in row]
                wanted = [p.answer for p in problems for _ in range(how.samples)]
                verdicts = verifier.check([answer.text for answer in flat], wanted)
                result = HeldOut(
                    checkpoint=name,
                    accuracy=float(np.mean([verdict.correct for verdict in verdicts])),
                    boxed=float(np.mean([verdict.boxed for verdict in verdicts])),
                    tokens=float(np.mean([len(answer.token_ids) for answer in flat])),
                )
                write_json(folder / f"{name}.json", asdict(result))
    results = {name: HeldOut(**json.loads((folder / f"{name}.json").read_text())) for name in todo}
    base = results.pop("base")
    best = max(checkpoints, key=lambda path: results[path.name].accuracy)  # max keeps the first
    return Choice(best, base, list(results.values()))
