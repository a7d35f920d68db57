"""Guided decoding in vLLM is the reference's: at decision points, away from a negative prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from gate_models import ADAPTERS, VOCAB, prompts
from gate_reference import Asked
from test_gate_drafts import ORACLE, sequences, with_drafts
from test_gate_exact import CRAMPED, PLAIN, TAUS, World, assert_tidy, bad_cases, job, mixed

from vllm_gate.params import LONGEST

SCALES = (0.0, 0.5, 1.5, 3.0)


def guided(seed: int, count: int) -> list[Asked]:
    """A batch in which two of three requests are guided, half of them without an adapter."""
    choose = random.Random(seed)
    batch = []
    for asked in mixed(seed, count):
        if choose.random() < 0.7:
            length = choose.choice((1, 2, 5, LONGEST))
            asked = asked._replace(  # noqa: PLW2901
                adapter=choose.choice([None, *ADAPTERS]),
                tau=choose.choice(TAUS[:-1]),
                guidance_scale=choose.choice(SCALES),
                guidance_prompt=tuple(choose.randrange(1, VOCAB) for _ in range(length)),
            )
        batch.append(asked)
    return batch


def assert_counted(result: dict[str, Any], batch: list[Asked]) -> None:
    """As `assert_tidy`, where replays of the base itself are not an adapter's."""
    own = [
        got["gated"]
        for asked, got in zip(batch, result["results"], strict=True)
        if asked.adapter is None and got["gated"] is not None
    ]
    assert_tidy(result | {"replays": result["replays"] + sum(own)})


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_every_guided_case_is_the_references(
    world: Callable[[str], World], architecture: str
) -> None:
    here = world(architecture)
    batch = guided(61, 32)
    # 40 tokens a step: there is seldom room for a whole guidance prompt.
    tight = CRAMPED | {"max_num_batched_tokens": 40}
    disturbed = {"reset": [5, 11, 30], "abort": {"6": [2, 3]}, "pending": {"reset": 4}}
    (result,) = here.run(job(here, [batch], tight, **disturbed))
    bad = bad_cases(here, [batch], result)
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:5])
    assert result["preempted"] > 0
    assert result["left"] == [0, 0, 0.0]


BREAKAGES = (
    "a guidance prompt writes nothing",
    "guidance prompts change nothing",
    "the adapter reads the guidance prompt",
)


def test_guidance_beside_drafts_and_broken_on_purpose(here: World) -> None:
    """A guidance prompt takes the place of the drafts behind a replay."""
    batch = guided(60, 20)
    given = job(here, [batch], PLAIN)
    plain, drafting, *broken = here.run(
        given,
        with_drafts(given, ORACLE),
        *(given | {"break": breakage} for breakage in BREAKAGES),
        known={"sequences": sequences(here, [batch])},
    )
    for result in (plain, drafting):
        bad = bad_cases(here, [batch], result)
        assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:5])
        assert_counted(result, batch)
    assert drafting["drafts"]["accepted"] > 0
    bad_ones = [len(bad_cases(here, [batch], result)) for result in broken]
    print(f"bad cases: {dict(zip(BREAKAGES, bad_ones, strict=True))}")
    assert all(bad_ones)


def test_near_the_end_of_the_context_nothing_guides(here: World) -> None:
    """The guidance prompt does not fit there any more."""
    (prompt,) = prompts(1, 236, seed=62)
    asked = Asked(prompt, "all", 0.0, 20, 1.0, 2.0, (5, 6, 7))
    plain = asked._replace(guidance_scale=1.0, guidance_prompt=())
    (result,) = here.run({"engine": PLAIN, "waves": [[asked._asdict()]]})
    said = result["results"][0]["tokens"]
    assert len(said) == 20
    # Position p guides as long as the prompt's three tokens and one more fit behind it.
    last = 256 - len(asked.guidance_prompt) - 2
    known = last + 2 - len(prompt)
    assert said[:known] == here.reference.decode(asked).tokens[:known]
    follow = plain._replace(prompt=prompt + said[:known], tokens=20 - known)
    assert said[known:] == here.reference.decode(follow).tokens
