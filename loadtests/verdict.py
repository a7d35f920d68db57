"""What has to hold after a run; what does not makes the exit code 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from loadtests import vitals
from loadtests.answers import CHAT, HOSTILE, Answer, Move
from loadtests.figures import Saturation, good_users, not_the_alias
from loadtests.plan import Plan

# Latencies of a short run are a matter of luck: shown, not judged.
JUDGED_SECONDS = 60
JUDGED_ANSWERS = 50
# (figure, percentile, by how much the later phase may exceed the earlier): of like phases...
ALIKE = (("ttft_ms", "p50", 1.0), ("inter_token_ms", "p50", 0.5))
# ... and of the last two thirds of a soak.
FLAT = (
    *(("ttft_ms", "p50", 0.15), ("ttft_ms", "p95", 0.25)),
    *(("inter_token_ms", "p50", 0.10), ("inter_token_ms", "p99", 0.25)),
)
NAMES = {"ttft_ms": "time to first token", "inter_token_ms": "inter-token latency"}


class Check(NamedTuple):
    """One thing that has to hold."""

    what: str
    said: str  # the figure
    ok: bool | None  # None: too short a run to say


def _count(what: str, bad: Sequence[str], of: int) -> Check:
    if not bad:
        return Check(what, f"all {of:,}", of > 0)
    most, number = Counter(bad).most_common(1)[0]
    return Check(what, f"{len(bad):,} of {of:,} not; {number:,} times: {most[:160]}", False)


def answered(answers: Iterable[Answer]) -> Check:
    """No request of a good user fails."""
    good = good_users(answers)
    bad = [f"HTTP {one.status}: {one.error}" for one in good if one.error]
    return _count("every good request is answered", bad, len(good))


def every_model(answers: Iterable[Answer], plan: Plan) -> Check:
    """Whoever was asked has answered."""
    asked = {one.model for one in good_users(answers)}
    silent = asked - {one.model for one in good_users(answers) if not one.error}
    said = f"{len(asked)} of {len(plan.mix)} asked"
    if silent:
        said = f"no answer from {', '.join(sorted(silent))}"
    return Check("every model that is asked answers", said, not silent and bool(asked))


def refused(answers: Iterable[Answer]) -> Check:
    """All hostile requests are refused with 4xx, in OpenAI's error shape."""
    bad = [one for one in answers if one.kind == HOSTILE]
    wrong = [f"{one.model}: {one.error}" for one in bad if one.error]
    return _count("every hostile request is refused as OpenAI does", wrong, len(bad))


def right_version(answers: Iterable[Answer], plan: Plan, moves: Sequence[Move]) -> list[Check]:
    """The alias moves, and each answer is of a version it pointed at."""
    mine = [one for one in answers if one.model.partition(":")[0] == plan.alias]
    failed = [move.error for move in moves if move.error]
    seen = {one.served.partition(":")[0] for one in mine if not one.error}
    return [
        _count("every move is made", failed, len(moves) - 1),
        _count(
            "every answer is of a version that was aliased", not_the_alias(mine, moves), len(mine)
        ),
        Check("several versions answer", f"{len(seen)} of {len(plan.versions)}", len(seen) > 1),
    ]


def alike(
    phases: Sequence[dict[str, Any]],
    pair: tuple[str, str],
    limits: Sequence[tuple[str, str, float]],
    seconds: float,
) -> list[Check]:
    """The later of two phases is not slower than the earlier one, within `limits`.

    What exceeds its limit by less than two standard errors of the difference is not judged: a
    longer run, or a quieter machine, has to say.
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
        few = min(before["requests"], after["requests"]) < JUDGED_ANSWERS
        long = seconds >= JUDGED_SECONDS and not few
        error = math.hypot(*(_error(phase, figure, share) for phase in (before, after)))
        said = f"{old:.1f} ms, then {new:.1f} ms ({growth:+.0%}; the difference ± {error:.1f} ms)"
        within = growth <= limit
        sure = within or new - old * (1 + limit) > 2 * error
        checks.append(Check(what, said, within if long and sure else None))
    return checks


def _error(phase: dict[str, Any], figure: str, share: str) -> float:
    """Of a phase's percentile, ms; 0 where there was too little to tell."""
    found: float = phase.get("errors", {}).get(figure, {}).get(share, 0.0)
    return found


def saturates(found: Saturation | None) -> Check:
    """The ramp finds the point where throughput stops rising."""
    what = "throughput stops rising"
    if found is None or not found.tokens_per_second:
        return Check(what, "nothing was generated", False)
    said = (
        f"{found.tokens_per_second:,.0f} tokens/s and {found.requests_per_second:,.1f} requests/s, "
        f"from {found.users} users on"
    )
    return Check(what, said if found.reached else f"still rising: {said}", found.reached)


def flat_memory(samples: Sequence[vitals.Sample]) -> list[Check]:
    """The server's memory stays as it is; nothing where nobody looked."""
    if len(samples) < vitals.FEWEST:
        return []
    memory = vitals.memory(samples)
    said = (
        f"{memory.start:,.0f} MiB at the start, {memory.middle:,.0f} in the middle third, "
        f"{memory.end:,.0f} in the last ({memory.growth:+.2%})"
    )
    return [Check(f"memory: below {vitals.GROWTH:+.0%}", said, memory.flat)]


def kept_pace(answers: Sequence[Answer], plan: Plan, seconds: float) -> Check:
    """Requests came at the rate that was wanted; else the server was slower than that."""
    rate = len([one for one in answers if one.kind == CHAT]) / max(seconds, 1e-9)
    said = f"{rate:.2f} of {plan.rate:.2f} requests/s"
    return Check("the server keeps up with the rate", said, rate >= 0.95 * plan.rate)


def judge(
    plan: Plan,
    answers: Sequence[Answer],
    phases: Sequence[dict[str, Any]],
    moves: Sequence[Move],
    samples: Sequence[vitals.Sample],
    found: Saturation | None,
) -> list[Check]:
    """All checks of the plan's scenario."""
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
        checks += alike(phases, curve.compares, FLAT if curve.paced else ALIKE, seconds)
    if curve.paced:
        checks += flat_memory(samples)
    return checks
