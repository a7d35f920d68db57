"""Which candidates are decoded, and which one is kept."""

from pathlib import Path

import numpy as np
import pytest
from support import made_up_result

from adapters.manifest import Gate
from training.evaluation import Result
from training.evaluation.importance_sampling import WeightedScore
from training.evaluation.statistics import Estimate
from training.fit_config import FitConfig
from training.generation import Applied
from training.stages.checkpoint_estimates import Candidate, best_estimated, shortlist
from training.stages.select_checkpoint import (
    decoding_options,
    race,
    select_always,
    select_gated,
)

GATE = Gate(tau=1.0, rate=0.05, tokens=100)


def candidate(
    step: int, value: float, mean_weight: float = 1.0, effective: float = 0.9, error: float = 0.01
) -> Candidate:
    score = WeightedScore(
        Estimate(value, error, 50), Estimate(value - 0.5, error, 50), mean_weight, effective
    )
    return Candidate(Path(f"checkpoint-{step}"), GATE, score)


def result(label: str, value: float, mode="gated") -> Result:
    return made_up_result(np.arange(100)[:, None] < 100 * value, label, mode)


def steps(candidates) -> list[int]:
    return [int(one.checkpoint.name.split("-")[1]) for one in candidates]


@pytest.mark.parametrize("mode", ["gated", "always"])
def test_candidates_are_decoded_as_the_base_was_asked(mode: str) -> None:
    flags = ["--model", "m", "--problems", "p", "--output", "a", "--mode", mode]
    sampling = ["--sampling.top-p", "0.9", "--sampling.rollout-temperature", "1.5"]
    counts = ["--checkpoints.samples", "3", "--checkpoints.rollouts", "7"]
    config = FitConfig.load([*flags, *sampling, *counts])
    base, adapter = config.heldout_sampling, decoding_options(config)
    assert (base.rollouts, base.temperature, base.rollout_temperature) == (7, 0.6, None)
    assert (adapter.n, adapter.temperature) == (3, 0.6)
    assert (adapter.top_p, adapter.max_tokens) == (base.top_p, base.max_tokens) == (1.0, 2048)
    assert config.sampling.top_p == 0.9  # of rollouts


def test_the_best_estimates_are_decoded_and_ties_go_to_the_earlier() -> None:
    found = [candidate(1, 0.5), candidate(2, 0.7), candidate(3, 0.7), candidate(4, 0.6)]
    assert steps(shortlist(found, 2)) == [2, 3]
    assert steps(shortlist(found, 3)) == [2, 3, 4]


def test_an_estimate_that_is_high_by_chance_does_not_come_first() -> None:
    found = [candidate(1, 0.70), candidate(2, 0.89, error=0.3), candidate(3, 0.72, error=0.02)]
    assert steps(shortlist(found, 2)) == [3, 1]
    alone = candidate(4, 0.75, error=float("nan"))  # of a single problem
    assert steps(shortlist([alone, *found], 3)) == [4, 3, 1]


def test_a_doubtful_candidate_is_decoded_only_where_it_may_be_the_best() -> None:
    hopeless = candidate(5, 0.40, mean_weight=0.75)  # at most .40 + .25 + .01
    hopeful = candidate(6, 0.55, mean_weight=0.7)  # at most .86
    few = candidate(7, 0.75, effective=0.1)  # its estimate is above the best already
    found = [candidate(1, 0.7), candidate(2, 0.6), hopeless, hopeful, few]
    assert steps(shortlist(found, 1)) == [1, 6, 7]
    assert steps(shortlist(found, 2)) == [1, 2, 6, 7]


def test_doubtful_candidates_are_taken_from_the_whole_training() -> None:
    trusted = candidate(2, 0.42)
    lost = [candidate(4 + 2 * n, 0.4 / (n + 1), mean_weight=0.7 / (n + 1)) for n in range(9)]
    assert steps(shortlist([trusted, *lost], 2)) == [2, 4, 10, 14, 20]
    assert steps(shortlist([trusted, *lost], 1)) == [2, 4, 20]
    cooled = [one._replace(gate=GATE.model_copy(update={"temperature": 0.5})) for one in lost]
    assert steps(shortlist([trusted, *lost, *cooled], 1)) == [2, 4, 20]
    assert len(shortlist([trusted, *cooled], 1)) == 3  # of the gate that there is


def test_where_no_estimate_is_trusted_the_best_of_them_are_decoded() -> None:
    found = [candidate(1, 0.3, mean_weight=0.5), candidate(2, 0.4, mean_weight=0.5)]
    assert steps(shortlist(found, 1)) == [1, 2]
    assert best_estimated(found) is found[1]


class Decoder:
    """Answers as an entrant's scores say, and keeps what was asked."""

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores, self.asked = scores, []

    def __call__(self, label, applied, count) -> Result:
        self.asked.append((label, applied.tau, count))
        correct = np.array(self.scores[label])[:count, None] > 0
        return made_up_result(correct, label, applied.mode)


def test_decoding_decides_between_those_that_were_decoded() -> None:
    found = [candidate(1, 0.7), candidate(2, 0.69), candidate(3, 0.1)]
    # Too close to drop either; the second wins by the last problems.
    ask = Decoder(
        {
            "checkpoint-1 at 1.000": [1, 0] * 40 + [0] * 20,
            "checkpoint-2 at 1.000": [1, 0] * 40 + [1] * 20,
        }
    )
    base = result("base", 0.4, "base")
    choice = select_gated(found, 2, 100, base, ask)
    assert ask.asked == [(label, 1.0, count) for count in (25, 50, 100) for label in ask.scores]
    assert (choice.checkpoint.name, choice.gate) == ("checkpoint-2", GATE)
    assert choice.kept.pass_at_1.value == 0.6 and choice.base is base
    assert choice.tokens == 2 * 700


def test_a_candidate_that_falls_behind_is_asked_no_further() -> None:
    entrants = [(name, Applied(Path(name))) for name in ("good", "bad", "close", "late")]
    ask = Decoder(
        {
            "good": [1, 1, 1, 0] * 10,
            "bad": [0] * 40,
            "close": [1, 1, 0, 1] * 10,  # as good, on other problems
            "late": [1, 1, 1, 0] * 3 + [0] * 28,
        }
    )
    kept, results = race(entrants, 40, ask)
    assert (kept, [one.n for one in results]) == (0, [40, 10, 40, 20])
    assert [label for label, _, count in ask.asked if count == 40] == ["good", "close"]


def test_few_problems_are_asked_in_one_go() -> None:
    entrants = [(name, Applied(Path(name))) for name in ("a", "b")]
    ask = Decoder({"a": [0] * 12, "b": [1] * 12})
    kept, results = race(entrants, 12, ask)
    assert kept == 1 and len(results) == 2
    assert [count for _, _, count in ask.asked] == [12, 12]
    kept, results = race(entrants, 1, Decoder({"a": [0], "b": [1]}))
    assert kept == 1 and len(results) == 2


def test_an_always_on_adapter_is_chosen_by_decoding_every_checkpoint() -> None:
    paths = [Path(f"checkpoint-{n}") for n in (1, 2, 3)]
    ask = Decoder(
        {
            "checkpoint-1 always": [0] * 8,
            "checkpoint-2 always": [1, 0] * 4,
            "checkpoint-3 always": [1, 0] * 4,
        }
    )
    choice = select_always(paths, GATE, 8, result("base", 0.4, "base"), ask)
    assert choice.checkpoint.name == "checkpoint-2"
    assert {tau for _, tau, _ in ask.asked} == {None}
    assert {label for label, _, _ in ask.asked} == ask.scores.keys()


def test_checkpoints_of_two_rounds_have_names_of_their_own() -> None:
    """The steps of each round begin anew, and a report is a mapping by label."""
    one = candidate(4, 0.5)
    assert one.label == "checkpoint-4 at 1.000"
    assert one._replace(round=2).label == "checkpoint-4 of round 2 at 1.000"
