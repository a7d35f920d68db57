"""The choice of problems and rollouts, and of tau, by hand."""

import numpy as np
import pytest

from adapters.recipe import GateChoice, Selection
from training.stages.select_rollouts import Example, calibrate_gates, select_examples


def rollouts(rewards_by_problem: dict[int, list[int]], lengths: list[int] | None = None):
    problems = [p for p, rewards in rewards_by_problem.items() for _ in rewards]
    rewards = [r for rs in rewards_by_problem.values() for r in rs]
    lengths = lengths or [4] * len(rewards)
    entropies = [np.array([0.0] * (n - 1) + [2.0]) for n in lengths]
    return problems, rewards, [[1] * n for n in lengths], entropies


def test_only_mixed_problems_nearest_to_one_half_are_kept() -> None:
    problems, rewards, tokens, h = rollouts(
        {0: [1, 1, 1, 1], 1: [1, 0, 0, 0], 2: [0, 0, 0, 0], 3: [1, 1, 0, 0], 4: [1, 1, 1, 0]}
    )
    kept = select_examples(problems, rewards, tokens, h, 1.0, Selection(problems=2, shortest=1.0))
    assert {problems[example.row] for example in kept} == {3, 1}  # 1 before 4: ties by index
    assert sum(example.advantages[0] for example in kept) == pytest.approx(0)


def test_the_longest_rollouts_are_dropped_and_advantages_stay() -> None:
    problems, rewards, tokens, h = rollouts({0: [1, 0, 1, 0, 1]}, lengths=[9, 3, 4, 5, 6])
    kept = select_examples(problems, rewards, tokens, h, 1.0, Selection(problems=1, shortest=0.8))
    assert [example.row for example in kept] == [1, 2, 3, 4]
    assert kept[1].advantages == pytest.approx((1 - 0.6) / np.std([1, 0, 1, 0, 1]))


def test_as_many_right_as_wrong_rollouts_are_kept_where_there_are() -> None:
    problems, rewards, tokens, h = rollouts({0: [1] * 6 + [0] * 2, 1: [0] * 7 + [1], 2: [1, 0]})
    selection = Selection(problems=3, shortest=1.0, rollouts=4)
    kept = select_examples(problems, rewards, tokens, h, 1.0, selection, seed=3)
    found = [[rewards[e.row] for e in kept if problems[e.row] == p] for p in range(3)]
    assert sorted(found[0]) == [0, 0, 1, 1]
    assert sorted(found[1]) == [0, 0, 0, 1]
    assert sorted(found[2]) == [0, 1]
    # Advantages are those of all eight.
    wrong = next(e for e in kept if problems[e.row] == 0 and not rewards[e.row])
    assert wrong.advantages[0] == pytest.approx(-0.75 / np.std([1] * 6 + [0] * 2))
    again = select_examples(problems, rewards, tokens, h, 1.0, selection, seed=3)
    other = select_examples(problems, rewards, tokens, h, 1.0, selection, seed=4)
    rows = [[e.row for e in one] for one in (kept, again, other)]
    assert rows[0] == rows[1] != rows[2]


def test_decisions_are_where_entropy_exceeds_tau_and_rollouts_without_any_are_left_out() -> None:
    h, tokens = [np.array([0.1, 1.5, 1.0]), np.array([0.1, 0.2, 1.0])], [[1] * 3] * 2
    kept = select_examples([0, 0], [1, 0], tokens, h, 1.0, Selection(problems=1, shortest=1.0))
    assert [example.row for example in kept] == [0]
    assert kept[0].decisions.tolist() == [False, True, False]


def test_calibrate_gates_calibrates_or_obeys() -> None:
    h = [np.array([0.0, 0.5, 1.0, 1.5]), np.array([0.0, 0.0, 0.0, 2.0])]
    gate, *others = calibrate_gates(h, GateChoice(rate=0.25, others=[0.125, 0.25]))
    assert (gate.tau, gate.rate, gate.tokens) == (1.0, 0.25, 8)
    assert [(other.tau, other.rate) for other in others] == [(1.5, 0.125)]  # never the same twice
    given = calibrate_gates(h, GateChoice(tau=1.5))[0]
    assert (given.tau, given.rate) == (1.5, 0.125)


def test_every_threshold_is_tried_at_every_temperature_and_the_trained_one_comes_first() -> None:
    h = [np.linspace(0, 2, 100)]
    gates = calibrate_gates(h, GateChoice(rate=0.1, others=[0.2], temperatures=[1, 0.3]))
    found = [(round(gate.rate, 1), gate.temperature) for gate in gates]
    assert found == [(0.1, 1), (0.2, 1), (0.1, 0.3), (0.2, 0.3)]


def test_the_controls_keep_the_numbers_and_lose_the_meaning() -> None:
    rng = np.random.default_rng(1)
    problems = np.repeat(np.arange(50), 8)
    rewards = np.repeat(rng.random(50) < 0.5, 8) ^ (rng.random(400) < 0.1)
    entropies = [np.where(np.arange(30) < 3, 2.0, 0.1) for _ in problems]  # the first three
    tokens = [[1] * 30] * 400

    def select(**control: str) -> list[Example]:
        selection = Selection(problems=50, **control)
        return select_examples(problems, rewards, tokens, entropies, 1.0, selection)

    usual, gate, reward = select(), select(gate="random"), select(reward="random")
    assert [one.row for one in gate] == [one.row for one in usual]
    assert all(one.decisions.sum() == 3 for one in gate)
    assert np.mean([one.decisions[:3].sum() for one in gate]) < 1  # 0.3 expected, 3 in `usual`
    signs = [np.sign(one.advantages[0]) == (1 if rewards[one.row] else -1) for one in reward]
    assert 0.3 < np.mean(signs) < 0.7
    again = select(gate="random")
    assert all((a.decisions == b.decisions).all() for a, b in zip(gate, again, strict=True))


def test_positions_by_place_or_all_and_right_rollouts_alone() -> None:
    h = [np.array([0.1, 2.0, 0.1, 2.0]), np.array([2.0, 0.1, 0.1, 0.1])]
    tokens = [[1, 2, 3, 4], [1, 3, 3, 4]]

    def decisions(**changes: str) -> list[list[bool]]:
        kept = select_examples(
            [0, 0], [1, 0], tokens, h, 1.0, Selection(problems=1, shortest=1.0, **changes)
        )
        return [one.decisions.tolist() for one in kept]

    first, two = [True, False, False, False], [False, True, False, True]
    assert decisions() == [two, first]
    assert decisions(gate="position") == [[True, True, False, False], first]
    other, *rest = decisions(gate="shut")
    assert other == [True, False, True, False]  # all that is left
    assert [sum(one) for one in rest] == [1] and rest != [first]
    assert decisions(gate="none") == [[True] * 4, [True] * 4]
    assert decisions(advantages="positive") == [two]


def test_the_baseline_of_a_prefix_weighs_each_token_apart() -> None:
    h = [np.array([2.0, 2.0])] * 4
    tokens, selection = [[7, 1], [7, 2], [8, 1], [8, 2]], Selection(shortest=1.0)
    by_problem = select_examples([0] * 4, [1, 1, 1, 0], tokens, h, 1.0, selection)
    assert all(one.advantages[0] == one.advantages[1] for one in by_problem)
    prefix = selection.model_copy(update={"baseline": "prefix"})
    by_prefix = select_examples([0] * 4, [1, 1, 1, 0], tokens, h, 1.0, prefix)
    assert by_prefix[2].advantages[1] > by_prefix[2].advantages[0] > 0  # its kin failed


def test_rollouts_without_a_reward_are_left_out_and_change_nothing_else() -> None:
    nan = float("nan")
    problems, rewards, tokens, h = rollouts({0: [1, nan, 0, nan], 1: [1, nan], 2: [nan, nan]})
    kept = select_examples(problems, rewards, tokens, h, 1.0, Selection(problems=3, shortest=1.0))
    assert [example.row for example in kept] == [0, 2]
    assert [example.advantages[0] for example in kept] == pytest.approx([1, -1])
    control = Selection(problems=3, shortest=1.0, reward="random")
    kept = select_examples(problems, rewards, tokens, h, 1.0, control)
    assert not {example.row for example in kept} & {1, 3, 5, 6, 7}
