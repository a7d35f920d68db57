"""Run by test_cpu_drafts.py in a process of its own: vLLM's drafts on the CPU, and ours.

Last line of stdout: what was seen. In this process no Triton stands in for the kernels, and nothing
of numba is loaded at first, as in a worker of the CPU build.
"""

from __future__ import annotations

import json
import random
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.platforms import current_platform

from vllm_gate import patches
from vllm_gate.cpu import drafts


def expanded(expand: Any) -> dict[str, list[float]]:
    """Of three requests with 2, 3 and 1 drafts: temperatures, top-k and top-p of their rows."""
    ends = torch.tensor([2, 5, 6], dtype=torch.int32)
    cases = {
        "temperature": (torch.tensor([0.6, 0.0, 1.3]), {"replace_from": 0, "replace_to": 1}),
        "top_k": (torch.tensor([5, 9, 7], dtype=torch.int32), {}),
        "top_p": (torch.tensor([0.5, 0.9, 1.0]), {}),
    }
    return {name: expand(x, ends, 6, **more).tolist() for name, (x, more) in cases.items()}


def second_engine() -> str:
    """What an engine's worker does first."""
    try:
        current_platform.register_triton_kernel_overrides()
    except Exception as error:  # whichever it is, that engine would not start
        return type(error).__name__
    return "ready"


def contexts() -> list[np.ndarray]:
    """Token sequences that repeat themselves in part, and not at all."""
    choose = random.Random(0)
    made = [
        np.array([choose.randrange(vocabulary) for _ in range(length)], dtype=np.int32)
        for vocabulary in (1, 2, 3, 5, 40)
        for length in (1, 2, 3, 4, 5, 8, 13, 30, 100)
        for _ in range(6)
    ]
    return [*made, np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2], dtype=np.int32)]


def main() -> None:
    """Print the findings."""
    from vllm.v1.sample import rejection_sampler

    found: dict[str, Any] = {"numba at first": "numba" in sys.modules}
    found["first engine"] = second_engine()
    found["rows"] = expanded(rejection_sampler.expand_batch_to_tokens)
    patches.install("cpu drafts")
    found["rows of ours"] = expanded(rejection_sampler.expand_batch_to_tokens)
    with patches.stock("cpu drafts"):
        from vllm.v1.spec_decode import ngram_proposer

        found["second engine"] = second_engine()
    found["second engine with ours"] = second_engine()
    # The kernels that were replaced are found by ours as well.
    found["kernel"] = type(rejection_sampler.expand_kernel).__name__

    from numba.np.ufunc import parallel

    compiled = ngram_proposer.batch_propose_numba
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(
            prompt_lookup_min=2, prompt_lookup_max=4, num_speculative_tokens=3
        ),
        model_config=SimpleNamespace(max_model_len=101),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )
    proposer = ngram_proposer.NgramProposer(config)
    found["compiled at the start"] = len(compiled.signatures)
    stock_propose = ngram_proposer.NgramProposer.batch_propose
    patches.install("cpu ngram")
    proposer.max_n = 4

    def propose(batch_propose: Any, tokens: np.ndarray, **limits: int) -> list[list[int]]:
        vars(proposer).update(limits)
        padded = np.zeros((3, 128), dtype=np.int32)
        padded[1, : len(tokens)] = tokens
        counts = np.array([0, len(tokens), 0], dtype=np.int32)
        return batch_propose(proposer, 3, [1], counts, padded, 3)

    cases = [
        (tokens, {"min_n": shortest, "max_n": longest})
        for tokens in contexts()
        for shortest, longest in ((1, 1), (1, 3), (2, 4), (3, 3), (4, 8))
    ]
    ours = [propose(drafts.batch_propose, tokens, **limits) for tokens, limits in cases]
    found["threads with ours"] = parallel._is_initialized
    found["compiled with ours"] = len(compiled.signatures)
    theirs = [propose(stock_propose, tokens, **limits) for tokens, limits in cases]
    found["threads"] = parallel._is_initialized
    found["compiled by the first request"] = len(compiled.signatures)
    found["cases"] = len(cases)
    found["with drafts"] = sum(bool(one[1]) for one in ours)
    found["other drafts"] = [
        [tokens.tolist(), limits, one, other]
        for (tokens, limits), one, other in zip(cases, ours, theirs, strict=True)
        if one != other
    ][:3]
    found["in place"] = ngram_proposer.NgramProposer.batch_propose is drafts.batch_propose
    print(json.dumps(found))


if __name__ == "__main__":
    main()
