"""The gate in vLLM's V2 model runner, the default on GPUs, here under Triton's interpreter.

Slow, and in need of the `triton` package: `make test-gate-gpu` runs it, `make test` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import interpreter
import pytest
from gate_models import ARCHITECTURES, prompts
from gate_reference import Asked
from test_gate_ends import ends, not_ended
from test_gate_exact import (
    CRAMPED,
    PLAIN,
    ROUNDS,
    World,
    assert_tidy,
    bad_cases,
    job,
    mixed,
    next_turns,
)

pytestmark = [pytest.mark.timeout(1800), interpreter.needed]

TIGHT = CRAMPED | {"num_gpu_blocks_override": 15}


RUNNERS = pytest.mark.parametrize(
    ("runner", "scheduler"),
    [("v2 sync", "GateScheduler"), ("v2 async", "AsyncGateScheduler")],
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@RUNNERS
def test_every_case_is_the_references(
    world: Callable[[str], World], architecture: str, runner: str, scheduler: str
) -> None:
    here = world(architecture)
    first = [asked._replace(tokens=min(asked.tokens, 16)) for asked in mixed(70, 20)]
    turns = [first, [a._replace(tokens=8) for a in next_turns(here, first, 70)]]
    disturbed = {"reset": [4], "abort": {"6": [2, 3]}, "pending": {"abort": [7, 9], "reset": 2}}
    cases: list[tuple[Any, Any]] = [
        ([first], job(here, [first], PLAIN, **disturbed)),
        (turns, job(here, turns, TIGHT)),
    ]
    results = here.run(*(given for _, given in cases), runner=runner)
    bad = []
    for (waves, _), result in zip(cases, results, strict=True):
        assert result["kind"] == [scheduler, True]
        assert_tidy(result)
        bad += bad_cases(here, waves, result)
    total = sum(len(wave) for waves, _ in cases for wave in waves)
    preempted = sum(result["preempted"] for result in results)
    print(f"{runner} {architecture}: {total} cases, {preempted} preemptions, {len(bad)} bad")
    assert not bad, f"{len(bad)} of {total}:\n" + "\n".join(bad[:5])
    assert preempted > 0


TWO_ROWS = {"additional_config": {"gate_two_rows": {"rows": 32, "rate": 0.0}}}


@RUNNERS
def test_a_gated_token_costs_no_step_with_two_rows(
    world: Callable[[str], World], runner: str, scheduler: str
) -> None:
    here = world("qwen2")
    asked = Asked(prompts(1, 12, seed=3)[0], "all", 2.0, 16)
    points = here.reference.decode(asked).points
    always, often = (
        {"additional_config": {"gate_two_rows": {"rows": 8, "rate": rate}}} for rate in (0.0, 0.1)
    )
    one, two, later = here.run(
        *(job(here, [[asked]], PLAIN | more) for more in ({}, always, often)), runner=runner
    )
    assert len(points) > 4
    # The prompt's step has none, nor has the next one where it is scheduled before the result.
    assert len(points) - 2 <= one["steps"] - two["steps"] <= len(points)
    assert two["steps"] < later["steps"] < one["steps"]
    assert later["second rows"] < two["second rows"]
    assert not any(bad_cases(here, [[asked]], result) for result in (one, two, later))


@RUNNERS
def test_every_case_with_two_rows(
    world: Callable[[str], World], runner: str, scheduler: str
) -> None:
    """A batch that fits twice, and one in which some requests get a second row."""
    here = world("qwen2")
    few = [asked._replace(tokens=min(asked.tokens, 12)) for asked in mixed(77, 10)]
    many = [asked._replace(tokens=min(asked.tokens, 12)) for asked in mixed(78, 18)]
    cases: list[tuple[Any, Any]] = [
        ([few], job(here, [few], PLAIN | TWO_ROWS, abort={"6": [2]}, reset=[9])),
        ([many], job(here, [many], TIGHT | TWO_ROWS, pending={"reset": 1})),
    ]
    results = here.run(*(given for _, given in cases), runner=runner)
    bad = []
    for (waves, _), result in zip(cases, results, strict=True):
        assert result["kind"] == [scheduler, True]
        assert_tidy(result)
        bad += bad_cases(here, waves, result)
    second = [result["second rows"] for result in results]
    print(f"{runner}: {len(few) + len(many)} cases, {second} second rows, {len(bad)} bad")
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:5])
    assert all(rows > 20 for rows in second)
    assert results[1]["preempted"] > 0


@pytest.mark.parametrize("runner", ["v2 sync", "v2 async"])
def test_breaking_it_shows_with_two_rows(world: Callable[[str], World], runner: str) -> None:
    here = world("qwen2")
    batch = [
        asked._replace(tokens=8, adapter="all", tau=(1.0, 2.0)[index % 2])
        for index, asked in enumerate(mixed(79, 8))
    ]
    given = job(here, [batch], PLAIN | TWO_ROWS)
    breakages = ("a second row always gives the token", "second rows run the base")
    results = here.run(*(given | {"break": breakage} for breakage in breakages), runner=runner)
    bad = [len(bad_cases(here, [batch], result)) for result in results]
    print(f"{runner}: bad cases {dict(zip(breakages, bad, strict=True))}")
    assert all(bad)


DRAFTS = {
    "method": "ngram_gpu",  # with gate_drafts.Oracle in the drafter's place
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}


def drafting(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A job, on an engine that drafts."""
    engine = given["engine"] | {"speculative_config": DRAFTS | more}
    if "max_num_batched_tokens" in engine:  # vLLM asks for as many as all requests may draft
        engine["max_num_batched_tokens"] = 32 * 4
    return given | {"engine": engine}


def known(here: World, waves: list[list[Asked]]) -> dict[str, Any]:
    """Prompts with the reference's answers, which the Oracle is to know."""
    asked = [one for wave in waves for one in wave]
    return {"sequences": [one.prompt + here.reference.decode(one).tokens for one in asked]}


@pytest.mark.parametrize(
    ("method", "seed"), [*(("standard", 71 + turn) for turn in range(ROUNDS)), ("block", 71)]
)
@RUNNERS
def test_every_case_with_drafts(
    world: Callable[[str], World], runner: str, scheduler: str, method: str, seed: int
) -> None:
    """Verified as a block, a draft counts by what follows it: greedy answers show no difference."""
    here = world("qwen2")
    count = 20 if method == "standard" else 8
    first = [asked._replace(tokens=min(asked.tokens, 16)) for asked in mixed(seed, count)]
    turns = [first, [a._replace(tokens=8) for a in next_turns(here, first, seed)]]
    disturbed = {"reset": [4], "abort": {"6": [2, 3]}, "pending": {"abort": [7], "reset": 2}}
    cases: list[tuple[Any, Any]] = [
        ([first], job(here, [first], PLAIN, **disturbed)),
        (turns, job(here, turns, TIGHT)),
    ]
    if method == "block":
        cases = cases[:1]
    results = here.run(
        *(drafting(given, rejection_sample_method=method) for _, given in cases),
        runner=runner,
        known=known(here, turns),
    )
    bad = []
    for (waves, _), result in zip(cases, results, strict=True):
        assert result["kind"] == [scheduler, True]
        assert_tidy(result)
        bad += bad_cases(here, waves, result)
    drafts = [result["drafts"] for result in results]
    total = sum(len(wave) for waves, _ in cases for wave in waves)
    preempted = sum(result["preempted"] for result in results)
    print(f"{runner} {method}: {total} cases, {preempted} preemptions, {drafts}, {len(bad)} bad")
    assert not bad, f"{len(bad)} of {total}:\n" + "\n".join(bad[:5])
    assert sum(one["accepted"] for one in drafts) > 2 * count


@pytest.mark.parametrize("runner", ["v2 sync", "v2 async"])
def test_breaking_it_shows_with_drafts(world: Callable[[str], World], runner: str) -> None:
    here = world("qwen2")
    batch = [
        asked._replace(tokens=12, adapter="all", tau=(1.0, 2.0)[index % 2])
        for index, asked in enumerate(mixed(76, 12))
    ]
    given = drafting(job(here, [batch], PLAIN))
    breakages = (
        "the replay writes",
        "a rejected draft counts as reached",
        "drafts are not tested",
        "none",
    )
    results = here.run(
        *(given | {"break": breakage} for breakage in breakages),
        runner=runner,
        known=known(here, [batch]),
    )
    bad = [len(bad_cases(here, [batch], result)) for result in results]
    print(f"{runner}: bad cases {dict(zip(breakages, bad, strict=True))}")
    assert all(bad[:-1]) and not bad[-1]


@pytest.mark.parametrize("runner", ["v2 sync", "v2 async"])
def test_breaking_it_shows(world: Callable[[str], World], runner: str) -> None:
    here = world("qwen2")
    batch = [
        asked._replace(tokens=12, adapter="all", tau=(0.0, 1.5)[index % 2])
        for index, asked in enumerate(mixed(75, 12))
    ]
    given = job(here, [batch], PLAIN, pending={"reset": 4})
    breakages = ("the replay writes", "a preempted point is taken as known", "none")
    results = here.run(*(given | {"break": breakage} for breakage in breakages), runner=runner)
    bad = [len(bad_cases(here, [batch], result)) for result in results]
    print(f"{runner}: bad cases {dict(zip(breakages, bad, strict=True))}")
    assert all(bad[:-1]) and not bad[-1]


@RUNNERS
def test_ends_and_seeds(world: Callable[[str], World], runner: str, scheduler: str) -> None:
    here = world("qwen2")
    chosen = ends(here, 8, seed=80, length=16)
    by_end = [asked for _, asked in chosen]
    seeded = [
        Asked(prompt, "attention", 1.8, 10)._asdict() | {"temperature": 1.0, "seed": seed}
        for seed, prompt in enumerate(prompts(8, 60, seed=81))  # the third block on the way
    ]
    crowd = [request | {"seed": None} for request in seeded]
    first, alone, together = here.run(
        {"engine": TIGHT, "waves": [by_end]},
        {"engine": PLAIN, "waves": [seeded]},
        {"engine": TIGHT, "waves": [seeded + crowd]},
        runner=runner,
    )
    assert not not_ended(chosen, first["results"])
    assert together["preempted"] > 0
    for result in (first, alone, together):
        assert result["kind"] == [scheduler, True]
        assert_tidy(result)
    for one, other in zip(alone["results"], together["results"], strict=False):
        assert one["tokens"] == other["tokens"]
        # Entropies may differ in the last digit: another batch rounds otherwise.
        points = [[at["position"] for at in got["trace"]] for got in (one, other)]
        assert points[0] == points[1]
    assert sum(got["gated"] for got in alone["results"]) > len(seeded)
