"""The figures of a run, from its answers: by model, by phase, by second; and the saturation point.

Hostile requests are counted apart. Percentiles of the gap between tokens are of every single gap.
Tokens a second count tokens when they came, not when their answer ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from loadtests.answers import CHAT, HOSTILE, Answer, Move, Phase
from loadtests.vitals import Sample

GAIN = 0.05  # a step that adds less to the best throughput so far does not count as a rise
STEPS_WITHOUT_GAIN = 2  # in a row, and it is saturated
PLATEAU = 0.95  # of the highest throughput: where saturation begins
SETTLING = 1 / 3  # of a step, not counted
WINDOWS = 5  # of a phase, whose spread is its error


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Mean, p50, p95, p99 and maximum; None of nothing."""
    if len(values) == 0:
        return None
    array = np.asarray(values, dtype=float)
    p50, p95, p99 = np.percentile(array, (50, 95, 99))
    found = {"mean": array.mean(), "p50": p50, "p95": p95, "p99": p99, "max": array.max()}
    return {name: round(float(value), 3) for name, value in found.items()}


def gaps(answers: Iterable[Answer]) -> np.ndarray:
    """Every gap of all answers, ms."""
    lists = [answer.gaps for answer in answers]
    return np.concatenate([np.asarray(one) for one in lists]) if lists else np.empty(0)


def tokens_between(answers: Iterable[Answer], start: float, end: float) -> float:
    """Tokens that came in [start, end), seconds.

    Now and then a piece of text holds several tokens; each counts the mean of its answer.
    """
    total = 0.0
    for answer in answers:
        came = answer.arrivals
        if len(came) and answer.at < end and came[-1] >= start:
            within = int(np.count_nonzero((came >= start) & (came < end)))
            total += within * answer.tokens / len(came)
    return total


def gaps_between(answers: Iterable[Answer], start: float, end: float) -> np.ndarray:
    """Every gap that ended in [start, end), seconds; the gaps in ms."""
    found = [np.empty(0)]
    for answer in answers:
        came = answer.arrivals[1:]
        if len(came) and answer.at < end and came[-1] >= start:
            found.append(np.asarray(answer.gaps)[(came >= start) & (came < end)])
    return np.concatenate(found)


def gate_rate(answers: Iterable[Answer]) -> float | None:
    """Gated tokens / generated tokens, of the answers that had a gate."""
    had = [answer for answer in answers if answer.gated is not None]
    tokens = sum(answer.tokens for answer in had)
    return round(sum(answer.gated or 0 for answer in had) / tokens, 4) if tokens else None


def describe(answers: Sequence[Answer], start: float, end: float) -> dict[str, Any]:
    """One row of figures: of the answers begun in [start, end)."""
    begun = [answer for answer in answers if start <= answer.at < end]
    good = [answer for answer in begun if not answer.error]
    seconds = max(end - start, 1e-9)
    pieces = sum(1 + len(answer.gaps) for answer in good if answer.ttft is not None)
    tokens = sum(answer.tokens for answer in good)
    return {
        "requests": len(begun),
        "failures": len(begun) - len(good),
        "requests_per_second": round(len(begun) / seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens_between(answers, start, end) / seconds, 1),
        "ttft_ms": percentiles([answer.ttft for answer in good if answer.ttft is not None]),
        "inter_token_ms": percentiles(gaps(good)),
        "request_tokens_per_second": percentiles([one.rate for one in good if one.rate]),
        "request_ms": percentiles([answer.ms for answer in good]),
        "gate_rate": gate_rate(good),
        "tokens_per_piece": round(tokens / pieces, 4) if pieces else None,
    }


def good_users(answers: Iterable[Answer]) -> list[Answer]:
    """All but the hostile."""
    return [answer for answer in answers if answer.kind != HOSTILE]


def by_model(answers: Sequence[Answer], start: float, end: float) -> dict[str, dict[str, Any]]:
    """Model, with ` [long]` for long prompts -> its figures."""
    groups: dict[str, list[Answer]] = {}
    for answer in good_users(answers):
        name = answer.model if answer.kind == CHAT else f"{answer.model} [{answer.kind}]"
        groups.setdefault(name, []).append(answer)
    return {name: describe(group, start, end) for name, group in sorted(groups.items())}


def by_phase(answers: Sequence[Answer], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """The phases in order, each with the figures of plain chat users, and their errors."""
    chat = [answer for answer in answers if answer.kind == CHAT]
    return [
        {
            "phase": phase.name,
            "users": phase.users,
            "start": round(phase.start, 2),
            "end": round(phase.end, 2),
            **describe(chat, phase.start, phase.end),
            "errors": errors(chat, phase.start, phase.end),
        }
        for phase in phases
    ]


def errors(answers: Sequence[Answer], start: float, end: float) -> dict[str, dict[str, float]]:
    """Figure -> percentile -> its standard error in [start, end), from `WINDOWS` equal parts.

    A machine that is shared is now faster, now slower; how much, the parts of a phase tell.
    """
    edges = np.linspace(start, end, WINDOWS + 1)
    parts = [describe(answers, *edges[at : at + 2]) for at in range(WINDOWS)]
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
    """Kind of hostile request -> how many there were, and how many were not refused as due."""
    found: dict[str, dict[str, Any]] = {}
    for answer in answers:
        if answer.kind == HOSTILE:
            row = found.setdefault(answer.model, {"requests": 0, "wrong": 0, "most_ms": 0.0})
            row["requests"] += 1
            row["wrong"] += bool(answer.error)
            row["most_ms"] = round(max(row["most_ms"], answer.ms), 1)
    return dict(sorted(found.items()))


# --------------------------------------------------------------------------------------- by second


class Second(NamedTuple):
    """One row of seconds.csv; empty where nothing of the kind came."""

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
    refused: int  # hostile requests, as they should be
    memory_mib: float | None


def by_second(
    answers: Sequence[Answer], phases: Sequence[Phase], samples: Sequence[Sample] = ()
) -> list[Second]:
    """The run, second by second, up to the end of its last phase."""
    length = max(1, round(phases[-1].end)) if phases else 0
    chat = good_users(answers)
    tokens = np.zeros(length)
    ended: list[list[float]] = [[] for _ in range(length)]
    sent: list[list[Answer]] = [[] for _ in range(length)]
    for answer in chat:
        if answer.at < length:
            sent[int(answer.at)].append(answer)
        came = answer.arrivals
        for at, gap in zip(came, [None, *answer.gaps], strict=False):
            if at < length:
                tokens[int(at)] += answer.tokens / len(came)
                if gap is not None:
                    ended[int(at)].append(gap)
    refused = np.zeros(length, dtype=int)
    for answer in answers:
        if answer.kind == HOSTILE and not answer.error and answer.at < length:
            refused[int(answer.at)] += 1
    memory = {int(sample.seconds): sample.rss for sample in samples}
    rows = []
    for second in range(length):
        users = [phase.users for phase in phases if phase.start <= second + 0.5 < phase.end]
        firsts = [one.ttft for one in sent[second] if one.ttft is not None and not one.error]
        rows.append(
            Second(
                second,
                users[-1] if users else 0,
                len(sent[second]),
                sum(bool(one.error) for one in sent[second]),
                round(float(tokens[second]), 1),
                *_two(firsts),
                *_two(ended[second]),
                gate_rate(one for one in sent[second] if not one.error),
                int(refused[second]),
                round(memory[second], 1) if second in memory else None,
            )
        )
    return rows


def _two(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    p50, p95 = np.percentile(values, (50, 95))
    return round(float(p50), 2), round(float(p95), 2)


# -------------------------------------------------------------------------------------- saturation


class Saturation(NamedTuple):
    """Where throughput stops rising."""

    users: int
    tokens_per_second: float
    requests_per_second: float
    reached: bool  # False: it was still rising at the last step


def no_gain(rate: float, best: float) -> bool:
    """Whether a step's throughput is no rise over the best before it."""
    return rate < (1 + GAIN) * best


def steps(answers: Sequence[Answer], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """by_phase of a ramp, without the time in which each step settles."""
    settled = [
        Phase(one.name, one.users, one.start + SETTLING * (one.end - one.start), one.end)
        for one in phases
    ]
    return by_phase(answers, settled)


def saturation(rows: Sequence[dict[str, Any]], most_users: int) -> Saturation | None:
    """The first step within PLATEAU of the highest throughput; None without steps.

    A ramp that ended before `most_users` did so because throughput no longer rose.
    """
    if not rows:
        return None
    best = max(row["tokens_per_second"] for row in rows)
    knee = next(row for row in rows if row["tokens_per_second"] >= PLATEAU * best)
    without_gain, highest = 0, 0.0
    for row in rows:
        rate = row["tokens_per_second"]
        without_gain = without_gain + 1 if no_gain(rate, highest) else 0
        highest = max(highest, rate)
    answers = sum(row["requests"] - row["failures"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    # Counted, the few requests of one step would say less than its many tokens do.
    requests = best * answers / tokens if tokens else 0.0
    reached = without_gain > 0 or rows[-1]["users"] < most_users
    return Saturation(knee["users"], best, round(requests, 3), reached)


# ------------------------------------------------------------------------------------------- moves


def not_the_alias(answers: Iterable[Answer], moves: Sequence[Move]) -> list[str]:
    """Answers by a version that the alias did not point at when the request was admitted.

    That was at some moment between its sending and its first text, and a move takes effect at some
    moment between its being asked for and answered.
    """
    good = [move for move in moves if not move.error]
    wrong = []
    for answer in answers:
        if answer.error or answer.ttft is None:
            continue
        start, end = answer.at, answer.at + answer.ttft / 1000
        allowed = set()
        for index, move in enumerate(good):
            gone = good[index + 1].end if index + 1 < len(good) else float("inf")
            if move.start <= end and gone >= start:
                allowed.add(move.version)
        if answer.served.partition(":")[0] not in allowed:
            wrong.append(f"at {answer.at:.2f} s: {answer.served or 'no version'}")
    return wrong
