"""Requests that end, or are ended, at a decision point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gate_models import prompts
from gate_reference import Asked, Decoded
from test_gate_exact import (
    CRAMPED,
    ROOMY,
    World,
    assert_exact,
    assert_tidy,
    bad_cases,
    job,
    next_turns,
)

EOS = 0  # of the models in gate_models.py


class End(NamedTuple):
    """A request that ends with a gated token, and what it should have said by then."""

    asked: Asked
    stop: int  # the token it ends with
    tokens: list[int]
    points: list[int]


def end(asked: Asked, decoded: Decoded, stop: int | None = None) -> End | None:
    """Where `asked` takes a token for the first time, and takes it through the open gate.

    `stop` None: the last such token, whichever it is.
    """
    tokens, found = decoded.tokens, None
    for point in decoded.points:
        at = point - len(asked.prompt) + 1
        if tokens.index(tokens[at]) == at and stop in (None, tokens[at]):
            points = [p for p in decoded.points if p <= point]
            found = End(asked, tokens[at], tokens[: at + 1], points)
    return found


def ends(world: World, count: int, seed: int, length: int = 40) -> list[tuple[End, Any]]:
    """(end, request): by a stop token, and by the end-of-sequence token where one comes up."""
    adapters = ("one", "attention", "mlp", "all")
    chosen: list[tuple[End, Any]] = []
    with_eos = 0
    for index, prompt in enumerate(prompts(40 * count, 70, seed)):
        asked = Asked(prompt, adapters[index % 4], (0.5, 1.5, 2.5)[index % 3], length)
        decoded = world.reference.decode(asked)
        by_eos = end(asked, decoded, EOS)
        if by_eos is not None:
            with_eos += 1
            chosen.append((by_eos, asked._asdict() | {"ignore_eos": False}))
        elif EOS not in decoded.tokens and len(chosen) - with_eos < count:
            by_stop = end(asked, decoded)
            if by_stop is not None:
                chosen.append((by_stop, asked._asdict() | {"stop_token_ids": [by_stop.stop]}))
        if with_eos >= count // 4 and len(chosen) - with_eos >= count:
            return chosen
    raise AssertionError(f"only {with_eos} of {len(chosen)} ends by end-of-sequence")


def not_ended(chosen: list[tuple[End, Any]], results: list[dict[str, Any]]) -> list[str]:
    """What went otherwise than it should."""
    bad = []
    for (wanted, asked), got in zip(chosen, results, strict=False):
        points = [len(wanted.asked.prompt) - 1 + entry["position"] for entry in got["trace"]]
        said = got["tokens"], points, got["gated"], got["finish"], got["stop"]
        if said != (wanted.tokens, wanted.points, len(points), "stop", wanted.stop):
            bad.append(f"{asked}: {said} instead of {wanted}")
    return bad


def test_a_stop_or_an_end_of_sequence_taken_through_the_open_gate(here: World) -> None:
    chosen = ends(here, 24, seed=60)
    first = [wanted.asked for wanted, _ in chosen]
    turns = next_turns(here, [a._replace(tokens=8) for a in first[:16]], 60)
    given = job(here, [[], turns], ROOMY)
    given["waves"][0] = [asked for _, asked in chosen]
    (result,) = here.run(given)
    bad = not_ended(chosen, result["results"])
    assert not bad, f"{len(bad)} of {len(chosen)}:\n" + "\n".join(bad[:3])
    assert_tidy(result)
    # What they wrote at their last, gated position is in nobody's prompt.
    after = {"results": result["results"][len(chosen) :]}
    assert not bad_cases(here, [turns], after)
    assert any(got["cached"] for got in after["results"])


def all_gated(count: int, tokens: int, seed: int) -> list[Asked]:
    """Requests of one adapter behind gates that open often."""
    return [
        Asked(prompt, "all", (0.0, 1.0, 2.0)[index % 3], tokens)
        for index, prompt in enumerate(prompts(count, 40, seed))
    ]


def test_aborts_and_resets_while_a_replay_is_pending(world: Callable[[str], World]) -> None:
    here = world("llama")
    batch = all_gated(24, 30, seed=61)
    disturbed = {"pending": {"abort": [0, 3, 7, 11, 15, 19], "reset": 5}}
    turns = [batch, next_turns(here, batch, 61)]
    (result,) = here.run(job(here, turns, CRAMPED, **disturbed))
    assert_exact(here, turns, result)
    aborted = [index for index, got in enumerate(result["results"]) if got.get("aborted")]
    assert aborted == disturbed["pending"]["abort"]
    assert result["preempted"] >= 5


def test_an_engine_that_sleeps_and_wakes_while_replays_are_pending(
    world: Callable[[str], World],
) -> None:
    """The CPU build frees no memory, but its scheduler sleeps as any does: the cache is lost."""
    here = world("llama")
    batch = all_gated(12, 20, seed=62)
    turns = [batch, next_turns(here, batch, 62)]
    (result,) = here.run(job(here, turns, ROOMY, pending={"sleep": 6}))
    assert_exact(here, turns, result)
    assert result["preempted"] >= 2 * 6
