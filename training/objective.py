"""The objective, as pure tensor functions to be held against the paper's equations.

For a rollout y with advantage A, decision points D = {t : H_t > tau}, the policy p_s that sampled
it (the frozen base p_b, or in a later round the adapter of the round before) and the adapter p:

    paper:     L = mean_{t in D} A * (-log p(y_t))
    clipped:   L = mean_{t in D} -min(r_t A, clip(r_t, lo, hi) A),   r_t = p(y_t) / p_s(y_t)
    sequence:  L = -min(w A, clip(w, lo, hi) A),                     w = prod_{t in D} r_t

The paper's term has no lower bound: once a wrong token is unlikely it can be made ever more so. The
clip (PPO's, with the sampling policy as the old one) bounds what any one token can contribute. The
weight w of `sequence` is that of evaluation/importance_sampling.py, so its loss is the estimated
gain itself.

Each may add, at decision points, the distance to the base at temperature T (`anchor_weight` a):

              + a * mean_{t in D} KL(p_b(. | y_<t)^(1/T) / Z || p(. | y_<t))

At T = 1 it holds the adapter to the base; below, it sharpens what the base believes already, for
which no reward is needed. Or the adapter's own entropy (`entropy_weight` e):

              + e * mean_{t in D} H(p(. | y_<t))

An adapter that is trained to run at every step (`positions: all`) is also held to the base
everywhere else:

              + w * mean_{t not in D} KL(p_b(. | y_<t) || p(. | y_<t))

Over a large vocabulary that mean costs more than all the rest, so it is taken of a random sample of
`kl_positions` positions of each rollout, which changes it by nothing on average.

Shapes: T positions, V tokens. Logits are the model's own (temperature 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from adapters.recipe import Objective

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [T, d] -> logits [T, V]


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """log p(y_t) at `temperature`: logits [T, V], tokens [T] -> [T] float32."""
    logits = logits.float() / temperature
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)


def kl_divergence(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(p_base || p) in nats: two [T, V] -> [T] float32."""
    base_log_p = base_logits.float().log_softmax(-1)
    return (base_log_p.exp() * (base_log_p - logits.float().log_softmax(-1))).sum(-1)


def differentiable_entropy(logits: torch.Tensor) -> torch.Tensor:
    """H(p) in nats: [T, V] -> [T] float32."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def signed_cross_entropy(
    log_p: torch.Tensor, advantage: torch.Tensor, min_probability: float = 0.0
) -> torch.Tensor:
    """The paper's decision term, per token: log_p [T], advantage [T] -> [T].

    `min_probability` > 0 leaves already rarer tokens out of the negative term, a known cure for
    its divergence; 0 is the paper's own.
    """
    loss = -advantage * log_p
    if min_probability > 0:
        spent = (advantage < 0) & (log_p.detach().exp() < min_probability)
        loss = loss.masked_fill(spent, 0.0)
    return loss


def clipped_surrogate(
    log_p: torch.Tensor, base_log_p: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    """The ratio-clipped decision term, per token: three [T] -> [T]."""
    ratio = (log_p - base_log_p).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def decision_loss(
    log_p: torch.Tensor, sampled_log_p: torch.Tensor, advantage: torch.Tensor, objective: Objective
) -> torch.Tensor:
    """The decision term that `objective` names, per token (`sequence`: per rollout): three [T]."""
    if objective.name == "paper":
        return signed_cross_entropy(log_p, advantage, objective.min_probability)
    return clipped_surrogate(
        log_p, sampled_log_p, advantage, objective.clip_low, objective.clip_high
    )


class Counts(NamedTuple):
    """What a mean is over: all batches of an optimizer step, those of other processes among them.

    The losses of these batches are then parts of one sum, however unevenly it is cut into batches.
    """

    rollouts: int
    others: int  # positions that are no decision points
    points: int  # decision points

    @classmethod
    def of(cls, decision: torch.Tensor, rollout: torch.Tensor) -> Counts:
        """Those of one batch; [T] each, as for `position_weights`."""
        points = int(decision.sum())
        return cls(int(rollout.max()) + 1, len(decision) - points, points)


def position_weights(
    decision: torch.Tensor,
    rollout: torch.Tensor,
    objective: Objective,
    step: Counts | None = None,
) -> torch.Tensor:
    """What each position counts in the mean of the losses above.

    By the mean per rollout a decision point weighs 1 / |D| of its rollout, any other position
    kl_weight / |not D|, and each rollout the same. By the mean per token all rollouts count as one,
    so that a rollout weighs as it has decision points.

    Args:
        decision: [T] bool, positions of all rollouts of a batch one after another.
        rollout: [T] long, which rollout a position belongs to, 0 to B - 1.
        step: what the mean is over; None: this batch.

    Returns:
        [T] float32.
    """
    step = step or Counts.of(decision, rollout)
    kind = decision.long()  # 1: in D, 0: not
    if objective.mean == "token":
        rollout = torch.zeros_like(rollout)
        size = torch.tensor([step[1:]], dtype=torch.float32, device=decision.device)
    else:
        size = torch.zeros(int(rollout.max()) + 1, 2, device=decision.device)
        one = torch.ones_like(rollout, dtype=torch.float32)
        size.index_put_((rollout, kind), one, accumulate=True)
    weights = 1.0 / size[rollout, kind]
    weights = torch.where(decision, weights, objective.kl_weight * weights)
    return weights if objective.mean == "token" else weights / step.rollouts


def sample_off_gate(
    decision: torch.Tensor, rollout: torch.Tensor, count: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All decision points, and `count` random other positions of each rollout.

    Args:
        decision, rollout: as for `position_weights`.
        count: None: all.

    Returns:
        The positions kept, [K] long, ascending; and for each the number of positions that it
        stands for, [K] float32: 1 at a decision point, n / min(n, count) at one of n others.
    """
    stands_for = torch.ones_like(rollout, dtype=torch.float32)
    if count is None:
        return torch.arange(len(rollout), device=rollout.device), stands_for
    keep = decision.clone()
    for number in range(int(rollout.max()) + 1):
        others = ((rollout == number) & ~decision).nonzero()[:, 0]
        drawn = others[torch.randperm(len(others), device=others.device)[:count]]
        keep[drawn] = True
        stands_for[drawn] = len(others) / max(1, len(drawn))
    kept = keep.nonzero()[:, 0]
    return kept, stands_for[kept]


def point_loss(
    hidden: torch.Tensor,
    head: Head,
    tokens: torch.Tensor,
    sampled_log_p: torch.Tensor,
    advantage: torch.Tensor,
    rollout: torch.Tensor,
    objective: Objective,
    base_hidden: torch.Tensor | None = None,
    chunk: int = 1024,
    step: Counts | None = None,
) -> torch.Tensor:
    """The mean loss of the decision points of a batch of rollouts, `chunk` logits at a time.

    Args:
        hidden: [N, d] states at the decision points, adapter on, rollout by rollout.
        head: the output projection, frozen.
        tokens: [N] long, the tokens taken.
        sampled_log_p: [N], theirs under the policy that sampled them.
        advantage: [N]; by `sequence` all points of a rollout share their mean.
        rollout: [N] long, which rollout a point belongs to, 0 to B - 1.
        base_hidden: [N, d], adapter off; needed for `objective.anchor_weight`.
        step: what the mean is over, of which the batch is a part; None: the batch.

    Returns:
        A scalar.
    """

    def chunk_terms(
        h: torch.Tensor, y: torch.Tensor, h_base: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(h)
        extra = logits.new_zeros(len(y), dtype=torch.float32)
        if h_base is not None:
            anchor = head(h_base) / objective.anchor_temperature
            extra = extra + objective.anchor_weight * kl_divergence(anchor, logits)
        if objective.entropy_weight > 0:
            extra = extra + objective.entropy_weight * differentiable_entropy(logits)
        return token_log_probs(logits, y), extra

    parts = []
    for start in range(0, len(tokens), chunk):
        part = slice(start, start + chunk)
        given = (hidden[part], tokens[part], None if base_hidden is None else base_hidden[part])
        # One chunk's logits fit into memory; of several, each is made anew in the backward pass.
        parts.append(
            chunk_terms(*given)
            if len(tokens) <= chunk
            else checkpoint(chunk_terms, *given, use_reentrant=False)
        )
    log_p, extra = (torch.cat(column) for column in zip(*parts, strict=True))
    every = torch.ones_like(rollout, dtype=torch.bool)
    weights = position_weights(every, rollout, objective, step)
    if objective.name != "sequence":
        terms = decision_loss(log_p, sampled_log_p, advantage, objective)
        return (weights * (terms + extra)).sum()
    count = int(rollout.max()) + 1
    log_w = log_p.new_zeros(count).index_add(0, rollout, (log_p - sampled_log_p).float())
    whole = log_p.new_zeros(count).index_add(0, rollout, advantage.float()) / rollout.bincount()
    terms = decision_loss(log_w, torch.zeros_like(log_w), whole, objective)
    return terms.sum() / (step.rollouts if step else count) + (weights * extra).sum()


def batch_loss(
    hidden: torch.Tensor,
    base_hidden: torch.Tensor,
    head: Head,
    tokens: torch.Tensor,
    advantage: torch.Tensor,
    decision: torch.Tensor,
    rollout: torch.Tensor,
    objective: Objective,
    chunk: int = 1024,
    step: Counts | None = None,
) -> torch.Tensor:
    """The mean loss at every position of a batch of rollouts, `chunk` logits at a time.

    Logits are made at decision points and at a sample of the other positions. Each chunk's are made
    anew in the backward pass, so that never more than a few [chunk, V] float32 tensors exist,
    however long the rollouts.

    Args:
        hidden, base_hidden: [T, d] hidden states that predict `tokens`, adapter on and off.
        head: the output projection, frozen.
        tokens: [T] long, the tokens taken.
        advantage: [T] float.
        decision: [T] bool.
        rollout: [T] long.
        step: as for `point_loss`.

    Returns:
        A scalar.
    """
    kept, stands_for = sample_off_gate(decision, rollout, objective.kl_positions)
    weights = position_weights(decision, rollout, objective, step)[kept] * stands_for
    hidden, base_hidden, tokens = hidden[kept], base_hidden[kept], tokens[kept]
    advantage, decision = advantage[kept], decision[kept]

    def chunk_loss(
        h: torch.Tensor,
        h_base: torch.Tensor,
        y: torch.Tensor,
        a: torch.Tensor,
        d: torch.Tensor,
        w: torch.Tensor,
    ) -> torch.Tensor:
        logits, base_logits = head(h), head(h_base)
        on = decision_loss(
            token_log_probs(logits[d], y[d]), token_log_probs(base_logits[d], y[d]), a[d], objective
        )
        if objective.anchor_weight > 0:
            anchor = base_logits[d] / objective.anchor_temperature
            on = on + objective.anchor_weight * kl_divergence(anchor, logits[d])
        if objective.entropy_weight > 0:
            on = on + objective.entropy_weight * differentiable_entropy(logits[d])
        off = kl_divergence(base_logits[~d], logits[~d])
        return (w[d] * on).sum() + (w[~d] * off).sum()

    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(tokens), chunk):
        part = slice(start, start + chunk)
        total = total + checkpoint(
            chunk_loss,
            hidden[part],
            base_hidden[part],
            tokens[part],
            advantage[part],
            decision[part],
            weights[part],
            use_reentrant=False,
        )
    return total
