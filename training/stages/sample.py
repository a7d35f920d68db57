"""Stage 1, sample: rollouts of the frozen base on every problem.

This is the only stage that needs no verifier, no gradient and no adapter, and it takes the longest.
Token ids are kept as they were generated and are never made from text again. With each token comes
the base's entropy where it was drawn, if the engine reports that (vLLM does).

In a later round the gated adapter answers in place of the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

from adapters.manifest import Gate
from adapters.prompt import PromptRenderer
from adapters.recipe import Sampling
from training.generation import Applied, Generator, SamplingOptions
from training.generation.answer_problems import answer_problems
from training.generation.token_rate import TokenRate
from training.problems import Problem
from training.run import Run
from training.run_folder import Parts, Stage

SCHEMA = pa.schema(
    [
        ("problem", pa.int32()),  # index into the run's problems
        ("sample", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("entropies", pa.list_(pa.float32())),  # nats, one for each token; null: not reported
    ]
)


@dataclass(frozen=True)
class SampledRollouts:
    """Answers to some problems, not graded yet."""

    stage: Stage
    problems: list[Problem]
    table: pa.Table  # SCHEMA, one row for each of N answers
    note: str  # what the log and the clock add to a stage's name: "", " held-out", ", round 2"


class BaseAnswers(NamedTuple):
    """What the base answers before anything is trained."""

    rollouts: SampledRollouts  # to the problems that are trained on
    heldout: SampledRollouts  # to the held-out ones
    greedy: SampledRollouts  # to the same at temperature 0, one each


def sample_base(run: Run, problems: list[Problem]) -> BaseAnswers:
    """Rollouts of the base on `problems` and on the held-out ones, from one engine."""
    config = run.config
    heldout = config.heldout_sampling
    greedy = heldout.model_copy(update={"rollouts": 1, "temperature": 0.0})
    with run.generator(adapter=False) as generator:

        def sampled(
            name: str, note: str, asked: list[Problem], sampling: Sampling
        ) -> SampledRollouts:
            stage = Stage.first(
                config.run_dir,
                name,
                {
                    "base": run.base.fingerprint,
                    "template": run.renderer.template,
                    **({"stop": run.renderer.stop} if run.renderer.stop else {}),
                    "problems": [p.model_dump() for p in asked],
                    "sampling": sampling.model_dump(),
                    "seed": config.seed,
                    "engine": config.engine,
                },
            )
            with run.clock(f"sample{note}", stage):
                table = sample_problems(
                    stage, asked, run.renderer, sampling, config.seed, generator
                )
            return SampledRollouts(stage, asked, table, note)

        return BaseAnswers(
            sampled("rollouts", "", problems, config.sampling),
            sampled("heldout", " held-out", run.heldout, heldout),
            sampled("greedy", " at temperature 0", run.heldout, greedy),
        )


def sample_adapter(
    run: Run, before: Stage, number: int, problems: list[Problem], adapter: Path, gate: Gate
) -> SampledRollouts:
    """Rollouts of the gated adapter, for round `number`.

    Args:
        before: the training stage of the round before.
        adapter: a PEFT folder.
    """
    # The adapter is chosen by held-out answers, on which `before` does not depend.
    chosen = f"{adapter.parent.name}/{adapter.name}"
    asked = [p.model_dump() for p in problems]
    stage = before.then("rollouts", {"problems": asked, "adapter": chosen})
    note = f", round {number}"
    with run.clock(f"sample{note}", stage), run.generator(adapter=True) as generator:
        table = sample_problems(
            stage,
            problems,
            run.renderer,
            run.config.sampling,
            run.config.seed,
            generator,
            Applied.behind(adapter, gate),
        )
    return SampledRollouts(stage, problems, table, note)


def sample_problems(
    stage: Stage,
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    sampling: Sampling,
    seed: int,
    generator: Generator,
    applied: Applied | None = None,
) -> pa.Table:
    """Rollouts of all `problems`; those that an earlier process has sampled are read back.

    Args:
        stage: where they are kept.
        applied: the adapter that answers; None: the base.

    Returns:
        A table of SCHEMA, ordered by (problem, sample).
    """
    parts = Parts(stage.path(), SCHEMA)
    if not parts.complete:
        done = set(parts.read(["problem"])["problem"].to_pylist())
        missing = [index for index in range(len(problems)) if index not in done]
        options = SamplingOptions(
            sampling.rollouts,
            sampling.rollout_temperature or sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            seed,
            entropies=generator.reports_entropies,
            stop=renderer.stop,
        )
        with tqdm(desc="sample", unit="problem", total=len(problems), initial=len(done)) as bar:
            for answered in answer_problems(
                generator,
                renderer,
                problems,
                missing,
                options,
                applied,
                purpose=("rollouts",),
                on_tokens=TokenRate(bar),
            ):
                parts.add(
                    {
                        "problem": answered.problem,
                        "sample": number,
                        "prompt_ids": answered.prompt_ids,
                        **completion._asdict(),
                    }
                    for number, completion in enumerate(answered.completions)
                )
                bar.update()
        parts.finish()
    return parts.read().sort_by([("problem", "ascending"), ("sample", "ascending")])
