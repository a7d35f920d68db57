"""The gate's mathematics against hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.gate import CACHED, RATES, calibrate, calibration_table, entropy, opens


def test_entropy_of_hand_worked_distributions() -> None:
    # p = (1/2, 1/4, 1/4): H = 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert entropy(logits).item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert entropy(torch.zeros(8)).item() == pytest.approx(math.log(8), abs=1e-6)
    assert entropy(torch.tensor([100.0, 0.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_entropy_leaves_masked_tokens_out() -> None:
    masked = torch.tensor([1.0, float("-inf"), 1.0, float("-inf")])
    assert entropy(masked).item() == pytest.approx(math.log(2), abs=1e-6)
    one_left = torch.tensor([float("-inf"), 3.0, float("-inf")])
    assert entropy(one_left).item() == 0.0


@pytest.mark.parametrize("vocab", [7, CACHED // 2, CACHED + 3])
def test_entropy_of_some_rows(vocab: int) -> None:
    """However many rows are taken at a time: with two threads, two large ones."""
    threads = torch.get_num_threads()
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(1)) * 3
    try:
        torch.set_num_threads(2)
        every = entropy(logits)
        torch.testing.assert_close(every, torch.distributions.Categorical(logits=logits).entropy())
        for rows in ([4], [6, 0, 3], [5, 4, 3, 2, 1], list(range(7)), []):
            torch.testing.assert_close(entropy(logits, rows), every[rows])
    finally:
        torch.set_num_threads(threads)


def test_entropy_of_a_batch_in_bfloat16_is_computed_in_float32() -> None:
    logits = torch.randn(3, 5, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    reference = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    assert entropy(logits).dtype == torch.float32
    torch.testing.assert_close(entropy(logits).double(), reference, atol=1e-5, rtol=1e-5)


def test_entropy_of_more_rows_than_one_pass_takes() -> None:
    vocabulary = 3000
    rows = 2 * CACHED // vocabulary + 5
    logits = 4 * torch.randn(2, rows, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1, ::7, 1:] = float("-inf")  # one token left
    logits[0, ::5, : vocabulary // 2] = float("-inf")
    kept = logits.clone()
    reference = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    found = entropy(logits)
    assert found.shape == (2, rows)
    torch.testing.assert_close(found.double(), reference, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, kept)
    assert entropy(logits[:0]).shape == (0, rows)


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_entropy_over_a_real_vocabulary_is_exact_to_a_millionth(scale: float) -> None:
    logits = 20 + scale * torch.randn(3, 151_936, generator=torch.Generator().manual_seed(0))
    reference = torch.special.entr(logits.double().softmax(-1)).sum(-1)
    torch.testing.assert_close(entropy(logits).double(), reference, atol=2e-6, rtol=2e-7)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(-100, 100))
def test_entropy_is_bounded_and_ignores_a_shift(values: list[float], shift: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    h = entropy(logits).item()
    assert -1e-6 <= h <= math.log(len(values)) + 1e-5
    assert entropy(logits + shift).item() == pytest.approx(h, abs=1e-4)


def test_the_gate_is_strict() -> None:
    assert opens(torch.tensor([0.9, 1.0, 1.1]), 1.0).tolist() == [False, False, True]


def test_calibration_by_hand() -> None:
    h = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert calibrate(h, 0.2) == 0.8  # 0.9 and 1.0 open the gate: 2 of 10
    assert calibrate(h, 0.0) == 1.0
    assert calibrate(h, 1.0) == 0.0
    assert calibrate([0.0] * 95 + [1.0] * 5, 0.1) == 0.0  # ties: at most the wanted rate


@given(st.lists(st.floats(0, 12), min_size=1, max_size=200), st.floats(0, 1))
def test_calibration_never_exceeds_the_rate_and_is_the_smallest_such(
    h: list[float], rate: float
) -> None:
    tau = calibrate(h, rate)
    values = np.asarray(h)
    assert (values > tau).mean() <= rate + 1e-9
    smaller = values[values < tau]
    if smaller.size:
        assert (values > smaller.max()).mean() > rate - 1e-9


def test_calibration_table_descends() -> None:
    table = calibration_table(np.random.default_rng(0).exponential(0.3, 5000))
    assert [rate for rate, _ in table] == list(RATES)
    taus = [tau for _, tau in table]
    assert taus == sorted(taus, reverse=True)


@pytest.mark.parametrize(
    ("h", "rate", "word"),
    [([], 0.1, "entropies"), ([float("nan")], 0.1, "entropies"), ([1.0], 1.5, "rate")],
)
def test_calibration_names_bad_input(h: list[float], rate: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        calibrate(h, rate)
