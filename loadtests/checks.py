"""The checks of a run, by scenario. One that fails makes the exit code 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from loadtests import figures
from loadtests.answers import CHAT, HOSTILE, Answer, MemorySample, Move
from loadtests.figures import Saturation, without_hostile
from loadtests.plan import Plan

# Latencies of a run with less than this are shown and not judged.
MIN_SECONDS = 60
MIN_ANSWERS = 50
# (figure, percentile, by how much the later phase may exceed the earlier): for a recovery ...
ALIKE = (("ttft_ms", "p50", 1.0), ("inter_token_ms", "p50", 0.5))
# ... and for the last two thirds of a soak.
FLAT = (
    *(("ttft_ms", "p50", 0.15), ("ttft_ms", "p95", 0.25)),
    *(("inter_token_ms", "p50", 0.10), ("inter_token_ms", "p99", 0.25)),
)
NAMES = {"ttft_ms": "time to first token", "inter_token_ms": "inter-token latency"}


class Check(NamedTuple):
    """Something that has to hold, and whether it does."""

    what: str
    said: str  # the figure
    ok: bool | None  # None: too short a run to say


def _none_wrong(what: str, bad: Sequence[str], of: int) -> Check:
    if not bad:
        return Check(what, f"all {of:,}", of > 0)
    most, number = Counter(bad).most_common(1)[0]
    return Check(what, f"{len(bad):,} of {of:,} not; {number:,} times: {most[:160]}", False)


def answered(answers: Iterable[Answer]) -> Check:
    """Check that no good request fails."""
    good = without_hostile(answers)
    bad = [f"HTTP {one.status}: {one.error}" for one in good if one.error]
    return _none_wrong("every good request is answered", bad, len(good))


def every_model(answers: Iterable[Answer], plan: Plan) -> Check:
    """Check that every model that was requested has answered."""
    asked = {one.model for one in without_hostile(answers)}
    silent = asked - {one.model for one in without_hostile(answers) if not one.error}
    names = ", ".join(sorted(silent))
    said = f"no answer from {names}" if silent else f"{len(asked)} of {len(plan.mix)} asked"
    return Check("every model that is asked answers", said, not silent and bool(asked))


def refused(answers: Iterable[Answer]) -> Check:
    """Check that every hostile request was refused with 4xx, in OpenAI's error shape."""
    bad = [one for one in answers if one.kind == HOSTILE]
    wrong = [f"{one.model}: {one.error}" for one in bad if one.error]
    return _none_wrong("every hostile request is refused as OpenAI does", wrong, len(bad))


def right_version(answers: Iterable[Answer], plan: Plan, moves: Sequence[Move]) -> list[Check]:
    """Check that the alias moved, and that each answer is of a version it pointed at."""
    mine = [one for one in answers if one.model.partition(":")[0] == plan.alias]
    failed = [move.error for move in moves if move.error]
    seen = {one.served for one in mine if not one.error}
    stale = not_the_alias(mine, moves)
    return [
        _none_wrong("every move is made", failed, len(moves) - 1),
        _none_wrong("every answer is of a version that was aliased", stale, len(mine)),
        Check("several versions answer", f"{len(seen)} of {len(plan.versions)}", len(seen) > 1),
    ]


def not_the_alias(answers: Iterable[Answer], moves: Sequence[Move]) -> list[str]:
    """List the answers by a version that the alias did not point at when they were admitted."""
    late = (
        (answer, staleness(answer, moves))
        for answer in answers
        if not answer.error and answer.ttft is not None
    )
    return [f"at {one.at:.2f} s: {one.served or 'no version'}" for one, seconds in late if seconds]


def staleness(answer: Answer, moves: Sequence[Move]) -> float:
    """Seconds from when the alias had left the version that answered until the request was sent.

    A request is admitted at some moment between its sending and its first text. A move takes effect
    at some moment between its request and its answer.

    Returns:
        0 where the alias may have pointed at the version, infinity where it did not up to then.
    """
    good = [move for move in moves if not move.error]
    ends = [*(move.end for move in good[1:]), float("inf")]  # from when on a version is not served
    admitted = answer.at + (answer.ttft or 0.0) / 1000
    return min(
        (
            max(0.0, answer.at - gone)
            for move, gone in zip(good, ends, strict=True)
            if move.version == answer.served and move.start <= admitted
        ),
        default=float("inf"),
    )


def not_slower(
    phases: Sequence[dict[str, Any]],
    pair: tuple[str, str],
    limits: Sequence[tuple[str, str, float]],
    seconds: float,
) -> list[Check]:
    """Check that the later of two phases is not slower than the earlier one, within `limits`.

    What exceeds its limit by less than two standard errors of the difference is not judged: it
    takes a longer run, or a quieter machine, to say.
    """
    before, after = (next((p for p in phases if p["phase"] == name), None) for name in pair)
    checks = []
    for figure, share, limit in limits:
        what = f"{NAMES[figure]} {share}, {pair[1]}: at most {limit:+.0%} on {pair[0]}"
        if not (before and after and before[figure] and after[figure]):
            checks.append(Check(what, "too few answers", None))
            continue
        old, new = before[figure][share], after[figure][share]
        growth = new / old - 1 if old else 0.0
        enough = min(before["requests"], after["requests"]) >= MIN_ANSWERS
        errors = [one.get("errors", {}).get(figure, {}).get(share, 0.0) for one in (before, after)]
        error = math.hypot(*errors)
        said = f"{old:.1f} ms, then {new:.1f} ms ({growth:+.0%}; the difference ± {error:.1f} ms)"
        within = growth <= limit
        sure = within or new - old * (1 + limit) > 2 * error
        judged = sure and enough and seconds >= MIN_SECONDS
        checks.append(Check(what, said, within if judged else None))
    return checks


def saturates(found: Saturation | None) -> Check:
    """Check that the ramp found the point where throughput stops rising."""
    what = "throughput stops rising"
    if found is None or not found.tokens_per_second:
        return Check(what, "nothing was generated", False)
    rates = f"{found.tokens_per_second:,.0f} tokens/s, {found.requests_per_second:,.1f} requests/s"
    said = f"{rates} from {found.users} users on"
    return Check(what, said if found.reached else f"still rising: {said}", found.reached)


def flat_memory(samples: Sequence[MemorySample]) -> list[Check]:
    """Check that the server's memory does not grow; no check without samples."""
    memory = figures.memory_growth(samples)
    if memory is None:
        return []
    said = f"{memory.start:,.0f} MiB at the start, {memory.middle:,.0f} in the middle third, "
    said += f"{memory.end:,.0f} in the last ({memory.growth:+.2%})"
    return [Check(f"memory: below {figures.MEMORY_LIMIT:+.0%}", said, memory.flat)]


def kept_pace(answers: Sequence[Answer], plan: Plan, seconds: float) -> Check:
    """Check that the server answered at the rate that the plan asks for."""
    rate = len([one for one in answers if one.kind == CHAT]) / max(seconds, 1e-9)
    said = f"{rate:.2f} of {plan.rate:.2f} requests/s"
    return Check("the server keeps up with the rate", said, rate >= 0.95 * plan.rate)


def run_checks(
    plan: Plan,
    answers: Sequence[Answer],
    phases: Sequence[dict[str, Any]],
    moves: Sequence[Move],
    samples: Sequence[MemorySample],
    found: Saturation | None,
) -> list[Check]:
    """Run all checks of the plan's scenario."""
    curve = plan.curve
    seconds = phases[-1]["end"] if phases else 0.0
    checks = [answered(answers), every_model(answers, plan)]
    if not curve.stages:
        checks.append(saturates(found))
    if curve.other == HOSTILE:
        checks.append(refused(answers))
    if curve.moves:
        checks += right_version(answers, plan, moves)
    if plan.rate:
        checks.append(kept_pace(answers, plan, seconds))
    if curve.compares:
        checks += not_slower(phases, curve.compares, FLAT if curve.paced else ALIKE, seconds)
    if curve.paced:
        checks += flat_memory(samples)
    return checks
