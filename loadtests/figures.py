"""The figures of a run, computed from its answers: by model, phase and second; and saturation.

Hostile requests are counted apart. Percentiles of inter-token latency are of every single gap, and
tokens per second count tokens when they come, not when their answer ends. Where the plan has a
rate, latencies count from the moment a request was due: one that had to wait for a user who was
still waiting for an answer has waited, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from loadtests.answers import CHAT, HOSTILE, Answer, MemorySample, Phase

MIN_GAIN = 0.05  # a step that adds less to the best throughput so far does not count as a rise
STEPS_WITHOUT_GAIN = 2  # after so many in a row the server is saturated
PLATEAU = 0.95  # share of the highest throughput at which saturation begins
SETTLING = 1 / 3  # share of a ramp's step that is not counted
WINDOWS = 5  # equal parts of a phase; their spread gives the standard error
MEMORY_LIMIT = 0.02  # growth from the middle third of a run to its last that counts as a leak
WARM_UP_SECONDS = 600  # the memory of a shorter run is not judged: pools fill, allocators settle
MIN_SAMPLES = 6


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, p50, p95, p99 and maximum; None without values."""
    if len(values) == 0:
        return None
    array = np.asarray(values, dtype=float)
    p50, p95, p99 = np.percentile(array, (50, 95, 99))
    found = {"mean": array.mean(), "p50": p50, "p95": p95, "p99": p99, "max": array.max()}
    return {name: round(float(value), 3) for name, value in found.items()}


def tokens_between(answers: Iterable[Answer], start: float, end: float) -> float:
    """Count the tokens that came in [start, end), in seconds.

    Sometimes a piece of text holds several tokens; each piece counts the mean of its answer.
    """
    total = 0.0
    for answer in answers:
        came = answer.arrivals
        if len(came):
            total += np.count_nonzero((came >= start) & (came < end)) * answer.tokens / len(came)
    return float(total)


def gate_rate(answers: Iterable[Answer]) -> float | None:
    """Gated tokens / generated tokens, over the answers of gated models."""
    gated = [answer for answer in answers if answer.gated is not None]
    tokens = sum(answer.tokens for answer in gated)
    return round(sum(answer.gated or 0 for answer in gated) / tokens, 4) if tokens else None


def describe(answers: Sequence[Answer], start: float, end: float) -> dict[str, Any]:
    """One row of figures, of the answers whose requests were sent in [start, end)."""
    sent = [answer for answer in answers if start <= answer.at < end]
    good = [answer for answer in sent if not answer.error]
    seconds = max(end - start, 1e-9)
    pieces = sum(1 + len(answer.gaps) for answer in good if answer.ttft is not None)
    tokens = sum(answer.tokens for answer in good)
    return {
        "requests": len(sent),
        "failures": len(sent) - len(good),
        "requests_per_second": round(len(sent) / seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens_between(answers, start, end) / seconds, 1),
        "ttft_ms": percentiles([one.first for one in good if one.first is not None]),
        "inter_token_ms": percentiles([gap for answer in good for gap in answer.gaps]),
        "request_tokens_per_second": percentiles([one.rate for one in good if one.rate]),
        "request_ms": percentiles([one.late + one.ms for one in good]),
        "gate_rate": gate_rate(good),
        "tokens_per_piece": round(tokens / pieces, 4) if pieces else None,
    }


def without_hostile(answers: Iterable[Answer]) -> list[Answer]:
    """The answers to good requests."""
    return [answer for answer in answers if answer.kind != HOSTILE]


def by_model(answers: Sequence[Answer], start: float, end: float) -> dict[str, dict[str, Any]]:
    """The figures of each model; long prompts are a row of their own, `MODEL [long]`."""
    groups: dict[str, list[Answer]] = {}
    for answer in without_hostile(answers):
        name = answer.model if answer.kind == CHAT else f"{answer.model} [{answer.kind}]"
        groups.setdefault(name, []).append(answer)
    return {name: describe(group, start, end) for name, group in sorted(groups.items())}


def by_phase(
    answers: Sequence[Answer], phases: Sequence[Phase], settling: float = 0.0
) -> list[dict[str, Any]]:
    """The figures and standard errors of chat in each phase, without its share of `settling`."""
    chat = [answer for answer in answers if answer.kind == CHAT]
    phases = [replace(p, start=p.start + settling * (p.end - p.start)) for p in phases]
    return [
        {
            "phase": phase.name,
            "users": phase.users,
            "start": round(phase.start, 2),
            "end": round(phase.end, 2),
            **describe(chat, phase.start, phase.end),
            "errors": standard_errors(chat, phase.start, phase.end),
        }
        for phase in phases
    ]


def standard_errors(
    answers: Sequence[Answer], start: float, end: float
) -> dict[str, dict[str, float]]:
    """Figure -> percentile -> its standard error in [start, end), from the spread of WINDOWS."""
    edges = np.linspace(start, end, WINDOWS + 1)
    parts = [describe(answers, edges[at], edges[at + 1]) for at in range(WINDOWS)]
    found: dict[str, dict[str, float]] = {}
    for figure in ("ttft_ms", "inter_token_ms"):
        rows = [part[figure] for part in parts if part[figure]]
        if len(rows) == WINDOWS:
            found[figure] = {
                share: round(float(np.std([row[share] for row in rows], ddof=1)) / WINDOWS**0.5, 3)
                for share in ("p50", "p95", "p99")
            }
    return found


def refusals(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """Kind of hostile request -> how many were sent, and how many were not properly refused."""
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        if answer.kind == HOSTILE:
            row = found.setdefault(answer.model, {"requests": 0, "wrong": 0, "most_ms": 0.0})
            row["requests"] += 1
            row["wrong"] += bool(answer.error)
            row["most_ms"] = round(max(row["most_ms"], answer.ms), 1)
    return dict(sorted(found.items()))


class MemoryGrowth(NamedTuple):
    """The memory of a run by thirds, MiB."""

    start: float
    middle: float  # median of the middle third
    end: float  # median of the last third
    growth: float  # from the middle third to the last, as a fraction
    flat: bool | None  # None: the run was too short to say


def memory_growth(samples: Sequence[MemorySample]) -> MemoryGrowth | None:
    """Compare the thirds of a run; None if there are less than MIN_SAMPLES samples."""
    if len(samples) < MIN_SAMPLES:
        return None
    mib, third = [one.mib for one in samples], len(samples) // 3
    middle, end = median(mib[third : 2 * third]), median(mib[2 * third :])
    growth, long = end / middle - 1, samples[-1].seconds - samples[0].seconds >= WARM_UP_SECONDS
    return MemoryGrowth(mib[0], middle, end, growth, growth < MEMORY_LIMIT if long else None)


class Second(NamedTuple):
    """One row of seconds.csv; empty where there is nothing to measure."""

    second: int
    users: int
    requests: int  # sent
    errors: int  # of those sent
    tokens: float  # that came
    ttft_p50_ms: float | None  # of requests sent
    ttft_p95_ms: float | None
    inter_token_p50_ms: float | None  # of gaps that ended
    inter_token_p95_ms: float | None
    gate_rate: float | None  # of requests sent
    refused: int  # hostile requests, properly
    memory_mib: float | None


def by_second(
    answers: Sequence[Answer], phases: Sequence[Phase], samples: Sequence[MemorySample] = ()
) -> list[Second]:
    """The run second by second, to the end of its last phase."""
    sent: dict[int, list[Answer]] = defaultdict(list)
    gaps: dict[int, list[float]] = defaultdict(list)
    tokens: dict[int, float] = defaultdict(float)
    refused: Counter[int] = Counter()
    for answer in answers:
        if answer.kind == HOSTILE:
            refused[int(answer.at)] += not answer.error
            continue
        sent[int(answer.at)].append(answer)
        came = answer.arrivals.astype(int).tolist()
        for at in came:
            tokens[at] += answer.tokens / len(came)
        for at, gap in zip(came[1:], answer.gaps, strict=False):
            gaps[at].append(gap)
    memory = {int(sample.seconds): round(sample.mib, 1) for sample in samples}
    rows = []
    for second in range(max(1, round(phases[-1].end)) if phases else 0):
        users = [phase.users for phase in phases if phase.start <= second + 0.5 < phase.end]
        good = [one for one in sent[second] if not one.error]
        rows.append(
            Second(
                second,
                users[-1] if users else 0,
                len(sent[second]),
                len(sent[second]) - len(good),
                round(tokens[second], 1),
                *_p50_p95([one.first for one in good if one.first is not None]),
                *_p50_p95(gaps[second]),
                gate_rate(good),
                refused[second],
                memory.get(second),
            )
        )
    return rows


def _p50_p95(values: Sequence[float]) -> tuple[float | None, float | None]:
    found: dict[str, float] = percentiles(values) or {}
    return found.get("p50"), found.get("p95")


class Saturation(NamedTuple):
    """The point where throughput stops rising."""

    users: int
    tokens_per_second: float
    requests_per_second: float
    reached: bool  # False: throughput was still rising at the last step


def no_gain(rate: float, best: float) -> bool:
    """Whether a step's throughput is no rise over the best one before it."""
    return rate < (1 + MIN_GAIN) * best


def saturation(rows: Sequence[dict[str, Any]], max_users: int) -> Saturation | None:
    """The first step within PLATEAU of the highest throughput; None without steps.

    A ramp that ended before `max_users` did so because throughput no longer rose.
    """
    if not rows:
        return None
    rates = [row["tokens_per_second"] for row in rows]
    best = max(rates)
    knee = next(row for row in rows if row["tokens_per_second"] >= PLATEAU * best)
    answers = sum(row["requests"] - row["failures"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    # The few requests of one step would say less than its many tokens do.
    requests = best * answers / tokens if tokens else 0.0
    reached = no_gain(rates[-1], max(rates[:-1], default=0.0)) or rows[-1]["users"] < max_users
    return Saturation(knee["users"], best, round(requests, 3), reached)
