"""Sampled tokens of gated requests: reproducible with a seed, distributed as the reference says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from gate_models import VOCAB, prompts
from gate_reference import Asked
from test_gate_exact import CRAMPED, FULL, PLAIN, World

DRAWS = 20_000 if FULL else 5_000


def assert_same_answers(alone: list[dict[str, Any]], together: list[dict[str, Any]]) -> None:
    """Requests are answered as without the crowd that stands behind them in `together`."""
    for one, other in zip(alone, together, strict=False):
        assert one["tokens"] == other["tokens"]
        # Entropies may differ in the last digit: another batch rounds otherwise.
        points = [[entry["position"] for entry in got["trace"]] for got in (one, other)]
        assert points[0] == points[1]


def test_a_seed_gives_the_same_tokens_in_any_company(here: World) -> None:
    asked = [
        Asked(prompt[:50], "attention", 1.8, 30)._asdict() | {"temperature": 1.0, "seed": seed}
        for seed, prompt in enumerate(prompts(12, 50, seed=8))
    ]
    crowd = [
        Asked(p[:40], "mlp", 1.0, 40)._asdict() | {"temperature": 1.0} for p in prompts(20, 40, 9)
    ]
    alone, together = here.run(
        {"engine": PLAIN, "waves": [asked]}, {"engine": CRAMPED, "waves": [asked + crowd]}
    )
    assert together["preempted"] > 0
    assert_same_answers(alone["results"], together["results"])
    assert sum(one["gated"] for one in alone["results"]) > 20


def assert_distributed(
    expected: dict[tuple[int, ...], float], results: list[dict[str, Any]], freedom: int
) -> None:
    """Answers come up as often as expected, at gates open and shut.

    Args:
        expected: answers that are likely enough to be counted, and how often they should come.
        freedom: chi-square has more degrees of freedom than that.
    """
    seen = Counter(tuple(got["tokens"]) for got in results)
    counted = np.array([seen[cell] for cell in expected])
    observed = np.append(counted, len(results) - counted.sum())
    wanted = np.array([*expected.values(), len(results) - sum(expected.values())])
    chi, found = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    # Mean and deviation of chi-square; five deviations are one case in millions.
    print(f"chi-square {chi:.0f} at {found} degrees of freedom")
    assert found > freedom
    assert chi < found + 5 * (2 * found) ** 0.5
    gated = Counter(got["gated"] for got in results)
    assert len(gated) > 1, "every draw gated alike: the test shows little"


def test_two_tokens_are_distributed_as_the_references(here: World) -> None:
    prompt = prompts(1, 9, seed=4)[0]
    reference, tau = here.reference, 1.5
    asked = Asked(prompt, "attention", tau, 2, correction_temperature=0.75)
    first = reference.distribution(asked, [])
    wanted = {}
    for one in first.topk(20).indices.tolist():
        second = reference.distribution(asked, [one])
        wanted |= {(one, two): float(first[one] * second[two]) * DRAWS for two in range(VOCAB)}
    wanted = {cell: expected for cell, expected in wanted.items() if expected >= 5}
    request = asked._asdict() | {"temperature": 1.0}
    (result,) = here.run({"engine": PLAIN | {"max_num_seqs": 256}, "waves": [[request] * DRAWS]})
    assert_distributed(wanted, result["results"], freedom=50)
