"""Stage 1, sample: rollouts of the frozen base on every problem.

The only stage that needs no verifier, no gradient and no adapter; and the longest. Token ids are
kept as they were generated and are never made from text again. With each comes the base's entropy
where it was drawn, where the engine reports that (vLLM).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from tqdm import tqdm

from adapters.prompt import PromptRenderer
from adapters.recipe import Sampling
from training.generate import Applied, Generator, SamplingOptions, TokenRate, derive_seed
from training.problems import Problem
from training.run import Parts, Stage

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


def sample(
    stage: Stage,
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    sampling: Sampling,
    seed: int,
    generator: Generator,
    applied: Applied | None = None,
) -> pa.Table:
    """Rollouts of all problems, SCHEMA, ordered by (problem, sample).

    Args:
        applied: the adapter that answers; None: the base.
    """
    parts = Parts(stage.path(), SCHEMA)
    if not parts.complete:
        done = set(parts.read(["problem"])["problem"].to_pylist())
        missing = [index for index in range(len(problems)) if index not in done]
        prompts = [renderer.token_ids(problems[index].problem) for index in missing]
        # Seeds follow the problem, not the place in the queue: a resumed run draws the same.
        seeds = [derive_seed(seed, "rollouts", problems[index].id) for index in missing]
        options = SamplingOptions(
            sampling.rollouts,
            sampling.rollout_temperature or sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            entropies=generator.reports_entropies,
            stop=renderer.stop,
        )
        with tqdm(desc="sample", unit="problem", total=len(problems), initial=len(done)) as bar:
            rate = TokenRate(bar)
            for place, completions in generator.stream(prompts, options, applied, seeds, rate):
                parts.add(
                    {
                        "problem": missing[place],
                        "sample": number,
                        "prompt_ids": prompts[place],
                        **completion._asdict(),
                    }
                    for number, completion in enumerate(completions)
                )
                bar.update()
        parts.finish()
    return parts.read().sort_by([("problem", "ascending"), ("sample", "ascending")])
