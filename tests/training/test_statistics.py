"""Metrics against hand-worked cases and brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.statistics import (
    contrast_over_seeds,
    graded_mean,
    mean,
    over_seeds,
    paired_difference,
    pass_at_1,
    pass_at_k,
    pass_at_k_scores,
    per_problem,
    ratio,
    ratio_over_seeds,
)

# Four problems, four samples: 4, 2, 1 and 0 right.
CORRECT = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=bool)


def test_pass_at_1_by_hand() -> None:
    estimate = pass_at_1(CORRECT)
    # Scores 1, 1/2, 1/4, 0: mean 7/16; deviations 9, 1, -3, -7 sixteenths; sum of squares 140/256.
    assert estimate.value == 7 / 16
    assert estimate.stderr == pytest.approx(math.sqrt(140 / 256 / 3 / 4))
    assert estimate.n == 4


def test_the_error_is_clustered_by_problem() -> None:
    """Copies of an answer tell nothing new."""
    once, twice = pass_at_1(CORRECT), pass_at_1(np.repeat(CORRECT, 10, axis=1))
    assert twice.stderr == pytest.approx(once.stderr)


def test_pass_at_k_by_hand() -> None:
    # k = 2 of 4: 1; 1 - C(2,2)/6; 1 - C(3,2)/6; 0.
    assert pass_at_k_scores(CORRECT, 2) == pytest.approx([1, 5 / 6, 1 / 2, 0])
    assert pass_at_k(CORRECT, 2).value == pytest.approx((1 + 5 / 6 + 1 / 2) / 4)
    assert pass_at_k(CORRECT, 4).value == 3 / 4
    assert pass_at_k(CORRECT, 1).value == pytest.approx(pass_at_1(CORRECT).value)


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(row: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    subsets = [any(subset) for subset in combinations(row, k)]
    assert pass_at_k_scores([row], k)[0] == pytest.approx(np.mean(subsets))


def test_pass_at_k_with_many_samples() -> None:
    right = np.zeros((1, 2000), dtype=bool)
    right[0, :3] = True
    expected = 1 - math.prod((1997 - i) / (2000 - i) for i in range(1000))
    assert pass_at_k_scores(right, 1000)[0] == pytest.approx(expected)


def test_paired_difference_by_hand() -> None:
    # Differences 1/2, 0, 1/2, 1: mean 1/2, squares of deviations 0, 1/4, 0, 1/4.
    estimate = paired_difference([0.5, 0, 0.5, 0], [1, 0, 1, 1])
    assert estimate.value == 0.5
    assert estimate.stderr == pytest.approx(math.sqrt(0.5 / 3 / 4))


def test_pairing_removes_what_problems_share() -> None:
    hard = np.linspace(0, 0.9, 50)
    estimate = paired_difference(hard, hard + 0.05)
    assert estimate.value == pytest.approx(0.05)
    assert estimate.stderr == pytest.approx(0)


def test_ratio_by_hand() -> None:
    # 3 of 12; deviations from a quarter: 0, 1, -1; their s is 1, over sqrt(3) and the mean 4.
    assert ratio([1, 2, 0], [4, 4, 4]) == pytest.approx((0.25, 1 / 3**0.5 / 4, 3))


def test_ratio_over_seeds_by_hand() -> None:
    parts, wholes = [[1, 2, 0], [1, 4, 1]], [[4, 4, 4]]
    # Means 1.5 and 4. The parts' means over seeds, less .375 of 4: -.5, 1.5, -1; their s**2 is
    # 1.75, over 3. The seeds' means are 1 and 2; their variance is .5, over 2.
    expected = (0.375, (1.75 / 3 + 0.5 / 2) ** 0.5 / 4, 3)
    assert ratio_over_seeds(parts, wholes) == pytest.approx(expected)
    # The wholes' seeds count as much as the share is: 3 and 5 vary by 2, over 2.
    expected = (0.375, (1.75 / 3 + 0.5 / 2 + 0.375**2 * 2 / 2) ** 0.5 / 4, 3)
    assert ratio_over_seeds(parts, [[3, 3, 3], [5, 5, 5]]) == pytest.approx(expected)
    assert ratio_over_seeds([[1, 2, 0]], wholes) == pytest.approx(ratio([1, 2, 0], [4, 4, 4]))


def test_contrast_over_seeds_by_hand() -> None:
    one, other = [[1, 1, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]]
    # By problem 1, 0, 0: s**2 is a third, over 3. Both terms' seeds vary by a third: 1/18, over 2.
    expected = (1 / 3, (1 / 9 + 2 / 36) ** 0.5, 3)
    assert contrast_over_seeds((1, one), (-1, other)) == pytest.approx(expected)
    # A term with one seed adds its problems alone: 1, .25, 0; their s**2 is 13/48.
    half = contrast_over_seeds((1, one), (-0.5, [[0, 0.5, 0]]))
    assert half == pytest.approx((1.25 / 3, (13 / 48 / 3 + 1 / 36) ** 0.5, 3))
    assert contrast_over_seeds((1, [[1, np.nan]]), (-1, [[0, 0]])).n == 1


def test_one_problem_has_no_standard_error() -> None:
    estimate = mean([0.5])
    assert estimate.value == 0.5
    assert math.isnan(estimate.stderr)


def test_per_problem() -> None:
    assert per_problem([[1, 3], [5, 5]]).tolist() == [2, 5]


@pytest.mark.parametrize("bad", [0, 5])
def test_k_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match="k: "):
        pass_at_k(CORRECT, bad)


def test_shapes_are_checked() -> None:
    for values in ([], [[]], [1.0, 0.0]):
        with pytest.raises(ValueError, match="matrix"):
            pass_at_1(values)
    with pytest.raises(ValueError, match="scores"):
        mean([[1.0]])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1, 0], [1])


UNGRADED = np.array([[1.0, np.nan, 0.0, 1.0], [np.nan] * 4, [0.0, 0.0, np.nan, np.nan]])


def test_answers_that_were_not_graded_are_left_out() -> None:
    assert graded_mean(UNGRADED)[[0, 2]] == pytest.approx([2 / 3, 0])
    assert np.isnan(graded_mean(UNGRADED)[1])
    assert pass_at_1(UNGRADED).value == pytest.approx(1 / 3)
    assert pass_at_1(UNGRADED).n == 2
    # Two of three, drawn from two right and one wrong: never both wrong.
    assert pass_at_k_scores(UNGRADED, 2)[0] == 1
    assert pass_at_k(UNGRADED, 2).n == 2 and pass_at_k(UNGRADED, 3).n == 1
    assert pass_at_1([[np.nan]]).n == 0
    difference = paired_difference(graded_mean(UNGRADED), [1.0, 1.0, 1.0])
    assert (difference.value, difference.n) == (pytest.approx((1 / 3 + 1) / 2), 2)
    assert over_seeds([[1.0, np.nan], [0.0, 1.0]]).n == 1
