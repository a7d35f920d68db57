"""Estimates from base answers, against hand-worked cases and exact enumeration."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from tiny_networks import VOCAB, adapted, network

from training.base_cache import Budget
from training.evaluation.heldout_scorer import Answers, HeldoutScorer, Setting
from training.evaluation.importance_sampling import CAP, weighted_score


def test_by_hand() -> None:
    # Problem 0: weights 1, 2 and rewards 0, 1; problem 1: weights 1, 1/2 and rewards 1, 1.
    found = weighted_score(np.log([1, 2, 1, 0.5]), [0, 1, 1, 1], [0, 0, 1, 1])
    assert found.score.value == pytest.approx((1.0 + 0.75) / 2)
    assert found.score.stderr == pytest.approx(0.125)
    assert found.gain.value == pytest.approx((0.5 - 0.25) / 2)
    assert found.gain.stderr == pytest.approx(0.375)
    assert found.mean_weight == pytest.approx((1.5 + 0.75) / 2)
    assert found.effective == pytest.approx((1.5**2 / 2.5 + 0.75**2 / 0.625) / 2)


def test_answers_that_were_not_graded_are_left_out() -> None:
    found = weighted_score(np.log([1, 2, 1, 0.5, 3]), [0, 1, 1, 1, np.nan], [0, 0, 1, 1, 1])
    assert found == weighted_score(np.log([1, 2, 1, 0.5]), [0, 1, 1, 1], [0, 0, 1, 1])


def test_the_base_itself_scores_as_it_did() -> None:
    found = weighted_score(np.zeros(6), [1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    assert found.score.value == 0.5
    assert found.gain == (0, 0, 2)
    assert (found.mean_weight, found.effective, found.trusted) == (1, 1, True)


def test_one_answer_does_not_decide() -> None:
    found = weighted_score([50.0, 0.0], [1, 1], [0, 1])
    assert found.score.value == pytest.approx((np.exp(CAP) + 1) / 2)


def test_lost_weight_and_few_answers_are_not_trusted() -> None:
    lost = weighted_score(np.full(8, -1.0), [1] * 8, [0] * 4 + [1] * 4)
    assert lost.mean_weight == pytest.approx(np.exp(-1)) and not lost.trusted
    few = weighted_score([np.log(7.93)] + [np.log(0.01)] * 7, [1] * 8, [0] * 8)
    assert few.mean_weight == pytest.approx(1, abs=0.01)
    assert few.effective < 0.2 and not few.trusted
    heavy = weighted_score([np.log(4)] + [0.0] * 7, [1] * 8, [0] * 4 + [1] * 4)
    assert heavy.mean_weight == pytest.approx(11 / 8) and heavy.effective > 0.2
    assert not heavy.trusted


def test_without_a_single_choice_it_is_exact(tmp_path) -> None:
    """All answers of two tokens, each as often as the base gives it: the estimate has no noise.

    The gated policy's score is computed by stepping through it, another way.
    """
    base = network("qwen2")
    model = adapted(base, scale=0.1)
    prompt, few, temperature, setting = [5, 6, 7], 12, 0.8, Setting(tau=2.5, temperature=0.7)
    answers = [list(pair) for pair in itertools.product(range(few), range(few))]
    right = np.array([(a * b) % 3 == 1 for a, b in answers], dtype=np.float64)

    @cache  # the answers share 13 beginnings
    def step(*said: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Entropy, log p [V] of the base and of the gated adapter, at the answers' temperature."""
        ids = torch.tensor([[*prompt, *said]])
        with torch.no_grad(), model.disable_adapter():
            seen = model(ids, use_cache=True)
        z = seen.logits[0, -1]
        h = float(torch.special.entr(z.softmax(-1)).sum())
        log_base = (z / temperature).log_softmax(-1)
        if h <= setting.tau:
            return h, log_base, log_base
        length = ids.shape[1]
        mask = torch.zeros(1, 1, 1, length + 1)
        mask[..., -1] = torch.finfo(torch.float32).min
        with torch.no_grad():
            z = model(
                ids[:, -1:],
                past_key_values=seen.past_key_values,
                attention_mask=mask,
                position_ids=torch.tensor([[length - 1]]),
            ).logits[0, -1]
        return h, log_base, (z / setting.temperature / temperature).log_softmax(-1)

    def steps(answer: list[int]) -> tuple[list[float], float, float]:
        """Entropies, and log p of the whole answer by the base and by the gated adapter."""
        made = [step(*answer[:t]) for t in range(len(answer))]
        log_base, log_gated = (
            sum(float(one[way][token]) for one, token in zip(made, answer, strict=True))
            for way in (1, 2)
        )
        return [one[0] for one in made], log_base, log_gated

    found = [steps(answer) for answer in answers]
    log_base, log_gated = (np.array([one[k] for one in found]) for k in (1, 2))
    opened = np.array([[h > setting.tau for h in one[0]] for one in found])
    assert 0 < opened.mean() < 1, "choose a tau that opens at some of them"
    given = Answers(
        np.zeros(len(answers), dtype=np.int64),
        [prompt] * len(answers),
        answers,
        right,
        [np.array(one[0], dtype=np.float32) for one in found],
    )
    scorer = HeldoutScorer(
        model,
        given,
        [setting, Setting(1e9), Setting(0.0)],
        temperature,
        Budget(2**30, 0),
        tmp_path / "cache",
    )
    scores = scorer.score(model)
    # Uniform over these answers, where the base's probabilities would weigh them.
    weights = np.exp(log_gated - log_base)
    assert scores[setting].mean_weight == pytest.approx(weights.mean(), rel=1e-3)
    assert scores[setting].score.value == pytest.approx((weights * right).mean(), rel=1e-3)
    assert scores[Setting(1e9)].gain.value == 0
    assert scores[Setting(0.0)].mean_weight != pytest.approx(weights.mean(), rel=1e-2)
    # By the base's own frequencies the estimate is the gated policy's share of right answers.
    p_base = np.exp(log_base)
    expected = (np.exp(log_gated) * right).sum()
    assert (p_base * weights * right).sum() == pytest.approx(expected, rel=1e-6)
    assert few < VOCAB
