"""Speculative decoding on the CPU build.

vLLM 0.32 has four faults in its way:

    sampling    temperature, top-k and top-p of drafted rows are read from memory that nobody wrote:
                the kernel fills a copy. Only batches that are greedy throughout are right.
    threads     the n-gram drafter starts numba's pool of threads, which takes the cores from the
                model's: an answer takes ten times as long as without drafts.
    first call  that drafter is compiled while the first request waits, for seconds.
    numba       once numba is loaded, no second engine starts in the process: the search for kernels
                to replace trips over an object of llvmlite, which answers to every name.

Written for vLLM 0.32 (v1/sample/rejection_sampler.py, v1/spec_decode/ngram_proposer.py,
triton_utils/dispatcher.py); patches.py puts these functions in place of vLLM's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def expand_batch_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """The value of each request [R], once for each of its drafted rows [T].

    Args:
        x: [R], any type.
        cu_num_tokens: [R] rows of the requests up to and with each one.
        num_tokens: T.
        replace_from: a value that is replaced where it is found...
        replace_to: by this one.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = x.masked_fill(x == replace_from, replace_to)
    return values.repeat_interleave(counts, output_size=num_tokens)


def batch_propose(
    self: Any,
    num_requests: int,
    valid_ngram_requests: list[int],
    num_tokens_no_spec: np.ndarray,
    token_ids_cpu: np.ndarray,
    k: int,
) -> list[list[int]]:
    """The drafts of each request, by NumPy; none for those that are not among the valid ones.

    Args:
        self: vLLM's NgramProposer.
        num_requests: R.
        valid_ngram_requests: which of them want drafts.
        num_tokens_no_spec: [R] how many tokens each one has.
        token_ids_cpu: [R, longest] their tokens.
        k: how many drafts, at most.
    """
    drafts: list[list[int]] = [[] for _ in range(num_requests)]
    for row in valid_ngram_requests:
        tokens = token_ids_cpu[row, : num_tokens_no_spec[row]]
        room = min(k, self.max_model_len - len(tokens))
        drafts[row] = after_longest_match(tokens, self.min_n, self.max_n, room)
    return drafts


def after_longest_match(tokens: np.ndarray, shortest: int, longest: int, count: int) -> list[int]:
    """What followed when the last tokens were said before.

    Of all earlier places where the last n tokens stand, for the largest n between `shortest` and
    `longest`, the first one counts, as in vLLM.

    Returns:
        At most `count` tokens; none where the last `shortest` tokens stand nowhere else.
    """
    if count <= 0 or len(tokens) < shortest:
        return []
    ends = np.arange(len(tokens) - 1)  # where an earlier stretch may end
    found: int | None = None
    for n in range(1, longest + 1):
        ends = ends[ends >= n - 1]
        ends = ends[tokens[ends - (n - 1)] == tokens[-n]] if n <= len(tokens) else ends[:0]
        if not ends.size:
            break
        if n >= shortest:
            found = int(ends[0])
    return [] if found is None else tokens[found + 1 : found + 1 + count].tolist()


def rebind_kernels(overrides: Sequence[tuple[Any, Any]]) -> None:
    """Point every reference to each kernel at what replaces it, as vLLM does.

    Args:
        overrides: (kernel, its replacement). References are attributes of modules, and the `kernel`
            of objects that are attributes of modules.
    """

    def replacement(value: Any) -> Any:
        # By identity: other comparisons of a module's attributes may import things, or raise.
        return next((ours for kernel, ours in overrides if value is kernel), None)

    for module in list(sys.modules.values()):
        for name, value in list((getattr(module, "__dict__", None) or {}).items()):
            ours = replacement(value)
            if ours is not None:
                setattr(module, name, ours)
                continue
            inside = getattr(value, "__dict__", None)
            # llvmlite's `lib` hands out a function under any name, this one included.
            if not isinstance(inside, Mapping):
                continue
            ours = replacement(inside.get("kernel"))
            if ours is not None:
                value.kernel = ours
                if isinstance(inside, dict):  # an object's, not a class's
                    inside.pop("_kernel_arg_names", None)
