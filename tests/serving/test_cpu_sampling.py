"""Top-p and top-k without sorting the vocabulary, against vLLM's own masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.sample.ops import topk_topp_sampler

from vllm_gate import patches
from vllm_gate.cpu import sampling

NAME = "apply_top_k_top_p_pytorch"


def both(logits, k, p) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's masked logits and ours."""
    theirs, ours = patches.theirs(topk_topp_sampler, NAME), getattr(sampling, NAME)
    made = []
    for function in (theirs, ours):
        given_k = None if k is None else torch.tensor(k)  # vLLM writes into it
        given_p = None if p is None else torch.tensor(p)
        made.append(function(logits.clone(), given_k, given_p, allow_cpu_sync=True))
    return made[0], made[1]


def kept(row: torch.Tensor) -> list[float]:
    """The logits that were kept, in order: vLLM's sort picks any of equal ones."""
    return sorted(row[row > -torch.inf].tolist())


def spread_out(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Logits [rows, V] from nearly flat to nearly certain."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 12, rows)[:, None]
    return torch.randn(rows, vocabulary, generator=generator) * scale


@pytest.mark.parametrize("vocabulary", [3, 63, 64, 1000, 50_257])
@pytest.mark.parametrize("which", ["p", "k", "both"])
def test_the_tokens_kept_are_vllms(vocabulary: int, which: str) -> None:
    logits = spread_out(12, vocabulary, seed=vocabulary)
    shares = [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999, 0.5, 0.9]
    counts = [1, 2, 3, 20, 50, 64, 65, 200, vocabulary, vocabulary, 1, vocabulary // 2 + 1]
    k = [min(count, vocabulary) for count in counts] if which != "p" else None
    theirs, ours = both(logits, k, shares if which != "k" else None)
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.equal(ours[~ours.isinf()], theirs[~theirs.isinf()])
    dropped = ours.isinf().sum().item()
    assert 0 < dropped < ours.numel()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 300),
    st.integers(0, 2**16),
    st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.999]),
    st.integers(1, 300),
    st.booleans(),
)
def test_of_equal_logits_as_many_are_kept(
    size: int, seed: int, p: float, k: int, cut: bool
) -> None:
    logits = spread_out(4, size, seed).round()  # many ties
    logits[0, ::3] = -torch.inf  # a grammar forbids them
    counts = [min(k, size)] * 4 if cut else None
    for theirs, ours in zip(*both(logits, counts, [p] * 4), strict=True):
        # A running sum that meets the threshold exactly is decided by its rounding.
        assert abs(len(kept(theirs)) - len(kept(ours))) <= 1
        shorter, longer = sorted((kept(theirs), kept(ours)), key=len)
        assert longer[len(longer) - len(shorter) :] == shorter


def test_bfloat16_logits_and_rows_that_ask_for_nothing() -> None:
    logits = spread_out(3, 500, seed=1).bfloat16()
    ours = sampling.apply_top_k_top_p_pytorch(
        logits.clone(), torch.tensor([500, 5, 500]), torch.tensor([1.0, 1.0, 0.5])
    )
    assert torch.equal(ours[0], logits[0])
    assert (ours[1] > -torch.inf).sum() >= 5
    assert 1 <= (ours[2] > -torch.inf).sum() < 500


def test_a_certain_token_is_never_dropped() -> None:
    logits = torch.full((1, 200), -1e4)
    logits[0, 77] = 0.0
    ours = sampling.apply_top_k_top_p_pytorch(logits, None, torch.tensor([1e-6]))
    assert (ours > -torch.inf).nonzero().tolist() == [[0, 77]]


def test_it_stands_in_vllms_place() -> None:
    patches.install("cpu")
    assert getattr(topk_topp_sampler, NAME) is sampling.apply_top_k_top_p_pytorch
    row = torch.tensor([[3.0, 1.0, 2.0]])
    masked = topk_topp_sampler.apply_top_k_top_p(row, torch.tensor([2]), None)
    assert masked.tolist() == [[3.0, -torch.inf, 2.0]]
