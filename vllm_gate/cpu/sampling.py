"""Top-p and top-k on the CPU without sorting the vocabulary.

vLLM 0.32 sorts every row of logits (v1/sample/ops/topk_topp_sampler.py): with a vocabulary of
152,000 that takes longer than the model. Nearly all of the probability lies on a few tokens, and
only those that may be kept are sorted here:

    top-p: of V tokens, those with p_i <= (1 - top_p) / V together hold at most 1 - top_p,
           so all of them are among the unlikely tokens that top-p drops
    top-k: the k-th largest logit is no smaller than the k-th largest maximum of a cell

A cell is 64 neighbouring tokens. Maxima of cells are found in one fast pass, and only cells whose
maximum passes are looked into. What is kept is what vLLM keeps, up to the choice among equal
logits; the running sum is in float64.
"""

from __future__ import annotations

import torch

CELL = 64


def apply_top_k_top_p_pytorch(
    logits: torch.Tensor,
    k: torch.Tensor | None,
    p: torch.Tensor | None,
    allow_cpu_sync: bool = True,  # noqa: ARG001
) -> torch.Tensor:
    """Set the logits that top-k and top-p drop to -inf, in place, and return them.

    Args:
        logits: [R, V], any float type.
        k: [R] how many tokens to keep, V for all; ties with the last one stay.
        p: [R] the smallest set of tokens with this much probability is kept, at least one; taken
            of what top-k leaves.
    """
    rows, size = logits.shape
    counts = [size] * rows if k is None else k.tolist()
    shares = [1.0] * rows if p is None else p.tolist()
    for row, count, share in zip(logits, counts, shares, strict=True):
        if count >= size and share >= 1:
            continue
        if count < size:
            keep = top_k(row, count)
            if share < 1:
                keep = keep[top_p(row[keep], share)]
        else:
            keep = top_p(row, share)
        values = row[keep]
        row.fill_(-torch.inf)[keep] = values
    return logits


def top_k(row: torch.Tensor, k: int) -> torch.Tensor:
    """Indices of the k largest of `row` [V], and of those equal to the smallest of them."""
    cells = len(row) // CELL
    if k > cells:
        return (row >= row.topk(k).values[-1]).nonzero()[:, 0]
    least = row[: cells * CELL].view(-1, CELL).amax(1).topk(k).values[-1]
    some = at_least(row, float(least))
    values = row[some]
    return some[values >= values.topk(k).values[-1]]


def top_p(row: torch.Tensor, share: float) -> torch.Tensor:
    """Indices of the smallest set of `row` [V] whose probability exceeds `share`, at least one."""
    probabilities = row.softmax(-1, dtype=torch.float32)
    drop = 1 - share
    some = at_least(probabilities, drop / len(row))
    order = row[some].sort(stable=True).indices  # least likely first
    likely = probabilities[some[order]].double()
    rest = 1 - likely.sum()  # held by tokens that are not among them
    kept = rest + likely.cumsum(0) > drop
    kept[-1] = True
    return some[order[kept]]


def at_least(row: torch.Tensor, least: float) -> torch.Tensor:
    """Indices where `row` [V] is `least` or more, ascending."""
    whole = len(row) // CELL * CELL
    cells = (row[:whole].view(-1, CELL).amax(1) >= least).nonzero()
    places = torch.arange(CELL)
    some = torch.cat([(cells * CELL + places).flatten(), torch.arange(whole, len(row))])
    return some[row[some] >= least]
