"""A model's answers to problems, as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from adapters.prompt import PromptRenderer
from training.generation.generator import Generator
from training.generation.interface import Applied, Completion, SamplingOptions, derive_seed
from training.problems import Problem


class Answered(NamedTuple):
    """All answers to one problem."""

    problem: int  # its index
    prompt_ids: list[int]
    completions: list[Completion]


def answer_problems(
    generator: Generator,
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    missing: Sequence[int],
    options: SamplingOptions,
    applied: Applied | None = None,
    *,
    purpose: tuple[str, ...] = (),
    on_tokens: Callable[[int], object] = lambda _: None,
) -> Iterator[Answered]:
    """Yield the answers to `missing` as problems finish, in any order.

    Seeds follow the problem, not its place in the queue: a resumed run draws the same, but for
    rounding. (With transformers, one seed serves a batch, and batches are other ones then.)

    Args:
        missing: indices into `problems`.
        applied: an adapter and where it runs; None: the base.
        purpose: tells these seeds from others of the same `options.seed`.
        on_tokens: see `Generator.stream`.
    """
    prompts = [renderer.token_ids(problems[index].problem) for index in missing]
    seeds = [derive_seed(options.seed, *purpose, problems[index].id) for index in missing]
    for place, completions in generator.stream(prompts, options, applied, seeds, on_tokens):
        yield Answered(missing[place], prompts[place], completions)
