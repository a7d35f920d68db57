"""Advantages by hand and against a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.advantage import advantages, prefix_advantages


def test_advantages_by_hand() -> None:
    # mean 0.25, population std sqrt(0.1875)
    found = advantages([1, 0, 0, 0], clip=2.5)
    assert found == pytest.approx([1.7320508, -0.5773503, -0.5773503, -0.5773503])
    assert advantages([1] + [0] * 19, clip=2.5)[0] == 2.5  # 4.36 unclipped
    assert advantages([1, 1, 1], clip=2.5).tolist() == [0, 0, 0]


def test_prefix_advantages_by_hand() -> None:
    """Four rollouts; the two that begin with 7 are right, of the two that begin with 8 one is."""
    answers = [[7, 1], [7, 2], [8, 1], [8, 2]]
    found = prefix_advantages([1, 1, 1, 0], answers, clip=9)
    std = np.sqrt(3 / 16)
    # The first token: the mean of the three others. The second: the one other that began so, and
    # that mean as one more.
    assert found[0] == pytest.approx([(1 - 2 / 3) / std, (1 - (1 + 2 / 3) / 2) / std])
    assert found[2] == pytest.approx([(1 - 2 / 3) / std, (1 - (0 + 2 / 3) / 2) / std])
    assert found[3] == pytest.approx([(0 - 1) / std, (0 - (1 + 1) / 2) / std])


def test_a_mistake_is_blamed_where_it_was_made() -> None:
    """All that begin with 8 fail whatever follows: later tokens of theirs weigh little."""
    answers = [[7, n] for n in range(8)] + [[8, n] for n in range(8)]
    found = prefix_advantages([1] * 8 + [0] * 8, answers, clip=9)
    first, second = found[8]
    assert first == pytest.approx(-(8 / 15) / 0.5)
    assert abs(second) < abs(first) / 7


def test_nothing_to_learn_from_equal_rewards() -> None:
    found = prefix_advantages([1, 1], [[1, 2], [3]], clip=9)
    assert [one.tolist() for one in found] == [[0, 0], [0]]


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
        min_size=2,
        max_size=12,
    )
)
def test_prefix_advantages_equal_their_definition(rollouts: list[tuple[int, list[int]]]) -> None:
    rewards, answers = [r for r, _ in rollouts], [a for _, a in rollouts]
    found = prefix_advantages(rewards, answers, clip=2.5)
    std = np.std(rewards)
    for me, (reward, answer) in enumerate(rollouts):
        value = None
        for t in range(len(answer)):
            # A rollout is at a prefix while it has a token to choose there.
            others = [
                r
                for n, (r, a) in enumerate(rollouts)
                if n != me and len(a) > t and a[:t] == answer[:t]
            ]
            value = np.mean(others) if value is None else (sum(others) + value) / (len(others) + 1)
            wanted = 0 if std == 0 else np.clip((reward - value) / std, -2.5, 2.5)
            assert found[me][t] == pytest.approx(wanted)
