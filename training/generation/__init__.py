"""Text from a base model: alone, with an adapter at every step, or with one at decision points.

    with open_generator(model, gated=True, max_rank=32) as generator:
        answers = generator.generate(prompts, SamplingOptions(n=4), Applied(adapter, tau=0.9))

The engine starts at the first question, and its memory is free again after the `with` block.

    generator.py             open_generator and Generator
    answer_problems.py       the answers to problems, as they finish
    interface.py             what can be asked, and what comes back
    context.py               how long a prompt and its answer may be
    vllm_engine.py           vLLM offline, in a child process
    transformers_engine.py   transformers, where vLLM cannot run, and for the random gate
    gated_decoding.py        gated decoding in transformers
    stop_strings.py          stop strings outside of vLLM
    token_rate.py            tokens per second in a progress bar
"""

from training.generation.context import context_of, longest_sequence
from training.generation.generator import Generator, open_generator, vllm_is_here
from training.generation.interface import (
    Applied,
    Completion,
    EngineName,
    Guidance,
    SamplingOptions,
    derive_seed,
)

__all__ = [
    "Applied",
    "Completion",
    "EngineName",
    "Generator",
    "Guidance",
    "SamplingOptions",
    "context_of",
    "derive_seed",
    "longest_sequence",
    "open_generator",
    "vllm_is_here",
]
