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
from test_gate_drafts import sequences, with_drafts
from test_gate_ends import ends, not_ended
from test_gate_exact import (
    CRAMPED,
    PLAIN,
    ROUNDS,
    Case,
    World,
    assert_exact,
    assert_tidy,
    bad_cases,
    job,
    mixed,
    next_turns,
)
from test_gate_sampling import assert_same_answers

pytestmark = [pytest.mark.timeout(1800), interpreter.needed]

TIGHT = CRAMPED | {"num_gpu_blocks_override": 15}
TWO_ROWS = {"additional_config": {"gate_two_rows": {"rows": 32, "rate": 0.0}}}
DRAFTS = {
    "method": "ngram_gpu",  # with gate_drafts.Oracle in the drafter's place
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
SCHEDULERS = {"v2 sync": "GateScheduler", "v2 async": "AsyncGateScheduler"}
RUNNERS = pytest.mark.parametrize("runner", SCHEDULERS)


def brief(batch: list[Asked], most: int) -> list[Asked]:
    """The same requests, for `most` tokens at the most."""
    return [asked._replace(tokens=min(asked.tokens, most)) for asked in batch]


def two_cases(here: World, seed: int, count: int, aborted: list[int]) -> list[Case]:
    """A batch with aborts and resets in mid-replay, and two turns in tight memory."""
    first = brief(mixed(seed, count), 16)
    turns = [first, brief(next_turns(here, first, seed), 8)]
    disturbed = {"reset": [4], "abort": {"6": [2, 3]}, "pending": {"abort": aborted, "reset": 2}}
    return [
        Case([first], job(here, [first], PLAIN, **disturbed)),
        Case(turns, job(here, turns, TIGHT)),
    ]


def run_exactly(here: World, runner: str, cases: list[Case], **more: Any) -> list[dict[str, Any]]:
    """The results of the jobs, all as the reference has them."""
    results = here.run(*(case.job for case in cases), runner=runner, **more)
    for case, result in zip(cases, results, strict=True):
        assert result["kind"] == [SCHEDULERS[runner], True]
        assert_exact(here, case.waves, result)
        total, drafts = sum(map(len, case.waves)), result["drafts"]
        print(f"{runner}: {total} cases, {result['preempted']} preemptions, {drafts}")
    return results


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@RUNNERS
def test_every_case_is_the_references(
    world: Callable[[str], World], architecture: str, runner: str
) -> None:
    here = world(architecture)
    results = run_exactly(here, runner, two_cases(here, 70, 20, aborted=[7, 9]))
    assert sum(result["preempted"] for result in results) > 0


@RUNNERS
def test_a_gated_token_costs_no_step_with_two_rows(here: World, runner: str) -> None:
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
def test_every_case_with_two_rows(here: World, runner: str) -> None:
    """A batch that fits twice, and one in which some requests get a second row."""
    few, many = brief(mixed(77, 10), 12), brief(mixed(78, 18), 12)
    cases = [
        Case([few], job(here, [few], PLAIN | TWO_ROWS, abort={"6": [2]}, reset=[9])),
        Case([many], job(here, [many], TIGHT | TWO_ROWS, pending={"reset": 1})),
    ]
    results = run_exactly(here, runner, cases)
    second = [result["second rows"] for result in results]
    print(f"{runner}: {second} second rows")
    assert all(rows > 20 for rows in second)
    assert results[1]["preempted"] > 0


@pytest.mark.parametrize(
    ("method", "seed"), [*(("standard", 71 + turn) for turn in range(ROUNDS)), ("block", 71)]
)
@RUNNERS
def test_every_case_with_drafts(here: World, runner: str, method: str, seed: int) -> None:
    """Verified as a block, a draft counts by what follows it: greedy answers show no difference."""
    count = 20 if method == "standard" else 8
    cases = two_cases(here, seed, count, aborted=[7])
    known = {"sequences": sequences(here, cases[1].waves)}
    drafts = DRAFTS | {"rejection_sample_method": method}
    cases = [case._replace(job=with_drafts(case.job, drafts)) for case in cases]
    results = run_exactly(here, runner, cases if method == "standard" else cases[:1], known=known)
    assert sum(result["drafts"]["accepted"] for result in results) > 2 * count


@pytest.mark.parametrize(
    ("seed", "count", "taus", "settings", "breakages"),
    [
        (75, 12, (0.0, 1.5), PLAIN, ["the replay writes", "a preempted point is taken as known"]),
        (
            *(76, 12, (1.0, 2.0), PLAIN | {"speculative_config": DRAFTS}),
            ["the replay writes", "a rejected draft counts as reached", "drafts are not tested"],
        ),
        (
            *(79, 8, (1.0, 2.0), PLAIN | TWO_ROWS),
            ["a second row always gives the token", "second rows run the base"],
        ),
    ],
    ids=["one row", "drafts", "two rows"],
)
@RUNNERS
def test_breaking_it_shows(
    here: World,
    runner: str,
    seed: int,
    count: int,
    taus: tuple[float, float],
    settings: dict[str, Any],
    breakages: list[str],
) -> None:
    batch = [
        asked._replace(tokens=count, adapter="all", tau=taus[index % 2])
        for index, asked in enumerate(mixed(seed, count))
    ]
    given = job(here, [batch], settings, pending={"reset": 4} if settings == PLAIN else {})
    ways = [*breakages, "none"]
    results = here.run(
        *(given | {"break": way} for way in ways),
        runner=runner,
        known={"sequences": sequences(here, [batch])} if "speculative_config" in settings else None,
    )
    bad = [len(bad_cases(here, [batch], result)) for result in results]
    print(f"{runner}: bad cases {dict(zip(ways, bad, strict=True))}")
    assert all(bad[:-1]) and not bad[-1]


@RUNNERS
def test_ends_and_seeds(here: World, runner: str) -> None:
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
        assert result["kind"] == [SCHEDULERS[runner], True]
        assert_tidy(result)
    assert_same_answers(alone["results"], together["results"])
    assert sum(got["gated"] for got in alone["results"]) > len(seeded)
