"""Sampled tokens of gated requests: reproducible with a seed, distributed as the reference says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from gate_models import VOCAB, prompts
from gate_reference import Asked
from test_gate_exact import CRAMPED, FULL, PLAIN, World

DRAWS = 20_000 if FULL else 5_000


def test_a_seed_gives_the_same_tokens_in_any_company(world: Callable[[str], World]) -> None:
    here = world("qwen2")
    asked = [
        Asked(prompt[:50], "attention", 1.8, 30)._asdict() | {"temperature": 1.0, "seed": seed}
        for seed, prompt in enumerate(prompts(12, 50, seed=8))
    ]
    crowd = [
        Asked(p[:40], "mlp", 1.0, 40)._asdict() | {"temperature": 1.0} for p in prompts(20, 40, 9)
    ]
    alone, together = here.run(
        {"engine": PLAIN, "waves": [asked]},
        {"engine": CRAMPED, "waves": [asked + crowd]},
    )
    assert together["preempted"] > 0
    for one, other in zip(alone["results"], together["results"], strict=False):
        assert one["tokens"] == other["tokens"]
        # Entropies may differ in the last digit: another batch rounds otherwise.
        points = [[entry["position"] for entry in got["trace"]] for got in (one, other)]
        assert points[0] == points[1]
    assert sum(one["gated"] for one in alone["results"]) > 20


def test_two_tokens_are_distributed_as_the_references(world: Callable[[str], World]) -> None:
    here = world("qwen2")
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
    seen = Counter(tuple(got["tokens"]) for got in result["results"])
    rest = DRAWS - sum(wanted.values())
    expected = np.array([*wanted.values(), rest])
    counted = np.array([seen[cell] for cell in wanted])
    observed = np.append(counted, DRAWS - counted.sum())
    chi = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    # Mean and deviation of chi-square; five deviations are one case in millions.
    print(f"chi-square {chi:.0f} at {freedom} degrees of freedom")
    assert freedom > 50
    assert chi < freedom + 5 * (2 * freedom) ** 0.5
    gated = Counter(got["gated"] for got in result["results"])
    assert len(gated) > 1, "every draw gated alike: the test shows little"
