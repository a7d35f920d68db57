"""The objective against hand-worked cases and a slow loop over tokens in float64."""

import math

import pytest
import torch

from adapters.recipe import Objective
from training.objective import (
    Counts,
    batch_loss,
    clipped_surrogate,
    kl_divergence,
    point_loss,
    position_weights,
    sample_off_gate,
    signed_cross_entropy,
    token_log_probs,
)


def loop_loss(hidden, base_hidden, weight, tokens, advantage, decision, rollout, objective):
    """The paper's formula, one rollout and one token at a time, in float64."""
    rollouts = sorted(set(rollout.tolist()))
    total = 0.0
    for number in rollouts:
        on, off = [], []
        for t in range(len(tokens)):
            if rollout[t] != number:
                continue
            z = [sum(float(h) * float(w) for h, w in zip(hidden[t], row)) for row in weight]  # noqa: B905
            zb = [sum(float(h) * float(w) for h, w in zip(base_hidden[t], row)) for row in weight]  # noqa: B905
            norm, norm_b = (math.log(sum(math.exp(v) for v in values)) for values in (z, zb))
            log_p, log_pb = [v - norm for v in z], [v - norm_b for v in zb]
            y, a = int(tokens[t]), float(advantage[t])
            if not decision[t]:
                off.append(sum(math.exp(q) * (q - p) for q, p in zip(log_pb, log_p)))  # noqa: B905
            elif objective.name == "paper":
                skipped = a < 0 and math.exp(log_p[y]) < objective.min_probability
                on.append(0.0 if skipped else a * -log_p[y])
            else:
                r = math.exp(log_p[y] - log_pb[y])
                clipped = min(max(r, objective.clip_low), objective.clip_high)
                on.append(-min(r * a, clipped * a))
            if decision[t]:
                sharp = [v / objective.anchor_temperature for v in zb]
                norm_s = math.log(sum(math.exp(v) for v in sharp))
                far = sum(math.exp(v - norm_s) * (v - norm_s - p) for v, p in zip(sharp, log_p))  # noqa: B905
                on[-1] += objective.anchor_weight * far
                on[-1] -= objective.entropy_weight * sum(math.exp(p) * p for p in log_p)
        loss = sum(on) / len(on) if on else 0.0
        loss += objective.kl_weight * sum(off) / len(off) if off else 0.0
        total += loss / len(rollouts)
    return total


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    positions, d, vocabulary = 37, 6, 11
    rollout = torch.tensor([0] * 10 + [1] * 20 + [2] * 7)
    return {
        "hidden": torch.randn(positions, d, generator=g, dtype=torch.float64),
        "base_hidden": torch.randn(positions, d, generator=g, dtype=torch.float64),
        "weight": torch.randn(vocabulary, d, generator=g, dtype=torch.float64),
        "tokens": torch.randint(vocabulary, (positions,), generator=g),
        "advantage": torch.tensor([1.5, -0.7, 0.4])[rollout].double(),
        "decision": torch.rand(positions, generator=g) < 0.3,
        "rollout": rollout,
    }


def head_of(batch) -> torch.nn.Linear:
    head = torch.nn.Linear(6, 11, bias=False).double()
    head.weight.data = batch["weight"]
    return head


def whole_loss(batch, objective: Objective, **more) -> torch.Tensor:
    """`batch_loss` of every position of `batch`."""
    given = {key: value for key, value in batch.items() if key != "weight"} | more
    return batch_loss(**given, head=head_of(batch), objective=objective)


def decision_loss(batch, objective: Objective, **more) -> torch.Tensor:
    """`point_loss` of the decision points of `batch` alone."""
    head, at = head_of(batch), batch["decision"]
    base = batch["base_hidden"][at]
    given = {key: batch[key][at] for key in ("hidden", "tokens", "advantage", "rollout")} | more
    log_p = token_log_probs(head(base), given["tokens"])
    return point_loss(
        **given, head=head, base_hidden=base, sampled_log_p=log_p, objective=objective
    )


OBJECTIVES = [
    Objective(name="paper", kl_weight=0.2),
    Objective(name="paper", kl_weight=0.2, min_probability=0.05),
    Objective(name="clipped", clip_low=0.5, clip_high=2.0, kl_weight=0.2),
    Objective(name="clipped", clip_low=0.2, clip_high=4.0, kl_weight=0.0),
    Objective(name="clipped", anchor_weight=0.3),
    Objective(name="clipped", entropy_weight=0.7),
    Objective(name="paper", anchor_weight=2.0, anchor_temperature=0.2),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_equal_the_slow_loop(batch, objective: Objective) -> None:
    without_kl = objective.model_copy(update={"kl_weight": 0.0})
    whole, decisions = (loop_loss(**batch, objective=one) for one in (objective, without_kl))
    for chunk in (1, 8, 1000):
        loss = whole_loss(batch, objective, chunk=chunk)
        assert loss.item() == pytest.approx(whole, rel=1e-5)
        loss = decision_loss(batch, objective, chunk=chunk)
        assert loss.item() == pytest.approx(decisions, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "objective"),
    [
        *((whole_loss, one) for one in OBJECTIVES),
        *((decision_loss, one) for one in [*OBJECTIVES, Objective(name="sequence")]),
    ],
)
def test_gradient_of_chunks_equals_that_of_the_whole(batch, loss, objective: Objective) -> None:
    grads = []
    for chunk in (5, 1000):
        hidden = batch["hidden"].clone().requires_grad_()
        loss(batch | {"hidden": hidden}, objective, chunk=chunk).backward()
        assert hidden.grad is not None
        grads.append(hidden.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-7)


def test_the_sequence_objective_is_the_clipped_estimate_by_hand() -> None:
    # Logits are the hidden states: p(token 1) = 3/4, 1/4, 1/2; the base said 1/2 throughout.
    hidden = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), 0.0], [0.0, 0.0]])
    given = {
        "head": lambda h: h,
        "tokens": torch.tensor([1, 1, 0]),
        "sampled_log_p": torch.full((3,), math.log(0.5)),
        "rollout": torch.tensor([0, 0, 1]),
    }
    objective = Objective(name="sequence", clip_low=0.5, clip_high=2.0)
    advantage = torch.tensor([2.0, 2.0, -1.0])
    loss = point_loss(hidden, advantage=advantage, objective=objective, **given)
    # w = 3/2 * 1/2 = 3/4 and 1
    assert loss.item() == pytest.approx(-(0.75 * 2 + 1 * -1) / 2)
    surer = torch.tensor([[0.0, 50.0], [0.0, 50.0], [-50.0, 0.0]])  # w = 4 and 0, both clipped
    loss = point_loss(surer, advantage=advantage, objective=objective, **given)
    assert loss.item() == pytest.approx(-(2.0 * 2 + 0.5 * -1) / 2, abs=1e-5)


def test_a_batch_without_decision_points_is_pure_kl(batch) -> None:
    batch["decision"] = torch.zeros_like(batch["decision"])
    objective = Objective(kl_weight=0.2)
    loss = whole_loss(batch, objective)
    assert loss.item() == pytest.approx(loop_loss(**batch, objective=objective), rel=1e-5)
    batch["base_hidden"] = batch["hidden"]
    assert whole_loss(batch, objective).item() == pytest.approx(0)


def test_every_decision_point_is_kept_and_a_sample_stands_for_the_others() -> None:
    decision = torch.tensor([True, False, False, False, False, True, False])
    rollout = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    kept, stands_for = sample_off_gate(decision, rollout, 2)
    assert len(kept) == 5 and kept.tolist() == sorted(kept.tolist())
    assert {0, 5, 6} < set(kept.tolist())
    by_position = dict(zip(kept.tolist(), stands_for.tolist(), strict=True))
    drawn = [by_position[p] for p in kept.tolist() if p in range(1, 5)]
    assert drawn == [2.0, 2.0]  # two of four
    assert (by_position[0], by_position[5], by_position[6]) == (1.0, 1.0, 1.0)
    everything, ones = sample_off_gate(decision, rollout, None)
    assert everything.tolist() == list(range(7)) and ones.tolist() == [1.0] * 7


@pytest.mark.parametrize("mean", ["rollout", "token"])
def test_a_sample_of_the_kl_term_is_the_full_sum_on_average(batch, mean: str) -> None:
    def loss(count: int | None) -> float:
        objective = Objective(kl_weight=5.0, mean=mean, kl_positions=count)
        return whole_loss(batch, objective).item()

    torch.manual_seed(0)
    full = loss(None)
    assert loss(100) == pytest.approx(full, rel=1e-6)
    drawn = torch.tensor([loss(2) for _ in range(400)])
    error = drawn.std().item() / 400**0.5
    assert error > 0.001  # a draw does differ
    assert abs(drawn.mean().item() - full) < 3 * error


@pytest.mark.parametrize(
    ("loss", "objective"),
    [
        *((whole_loss, Objective(mean=mean, kl_positions=None)) for mean in ("rollout", "token")),
        *((decision_loss, Objective(mean=mean)) for mean in ("rollout", "token")),
        (decision_loss, Objective(name="sequence", entropy_weight=0.1)),
    ],
)
def test_batches_of_a_step_are_parts_of_one_sum(batch, loss, objective: Objective) -> None:
    """Two rollouts in one batch and one in another, of other lengths."""
    rollout, decision = batch["rollout"], batch["decision"]
    if loss is decision_loss:  # which hands decision points on, and no other position
        step = Counts.of(torch.ones_like(rollout[decision], dtype=torch.bool), rollout[decision])
    else:
        step = Counts.of(decision, rollout)
    parts = []
    for numbers in ((0, 1), (2,)):
        at = torch.isin(rollout, torch.tensor(numbers))
        part = {key: value if key == "weight" else value[at] for key, value in batch.items()}
        part["rollout"] = part["rollout"] - numbers[0]
        parts.append(loss(part, objective, step=step).item())
    assert sum(parts) == pytest.approx(loss(batch, objective).item(), rel=1e-5)


def test_token_log_probs_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])  # p = (1/4, 3/4)
    assert token_log_probs(logits, torch.tensor([1])).item() == pytest.approx(math.log(0.75))


def test_kl_by_hand() -> None:
    base, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(base, other).item() == pytest.approx(expected, abs=1e-6)


def test_signed_cross_entropy_by_hand() -> None:
    log_p = torch.tensor([0.5, 0.5, 0.00001]).log()
    advantage = torch.tensor([2.0, -1.0, -1.0])
    loss = signed_cross_entropy(log_p, advantage)
    assert loss.tolist() == pytest.approx([2 * math.log(2), -math.log(2), math.log(0.00001)])
    assert signed_cross_entropy(log_p, advantage, 1e-4)[2].item() == 0.0


def test_clipped_surrogate_by_hand() -> None:
    base = torch.zeros(4)
    log_p = torch.tensor([3.0, 0.1, 3.0, 0.1]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped_surrogate(log_p, base, advantage, 0.5, 2.0)
    # right tokens gain up to ratio 2, wrong ones lose down to 0.5; the other sides are unbounded
    assert loss.tolist() == pytest.approx([-2.0, -0.1, 3.0, 0.5])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(kl_weight=0.2), [0.5, 0.05, 0.05, 0.25, 0.25, 0.1]),
        (Objective(kl_weight=0.3, mean="token"), [1 / 3, 0.1, 0.1, 1 / 3, 1 / 3, 0.1]),
    ],
)
def test_every_rollout_or_every_decision_point_weighs_the_same(
    objective: Objective, expected: list[float]
) -> None:
    decision = torch.tensor([True, False, False, True, True, False])
    rollout = torch.tensor([0, 0, 0, 1, 1, 1])
    assert position_weights(decision, rollout, objective).tolist() == pytest.approx(expected)
