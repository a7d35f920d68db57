"""What became of the fuzzer's requests, and the report of it."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.report import print_table
from loadtests.answers import MemorySample
from loadtests.figures import memory_growth
from tests.fuzz import server_state
from tests.fuzz.traffic import Case

SHOWN = 20  # faults printed as they come; all are in the report


@dataclass
class Row:
    """Counts and times of the requests of one kind."""

    answered: int = 0
    refused: int = 0
    aborted: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)  # of those answered or refused


@dataclass
class Tally:
    """What became of all requests."""

    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    features: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    in_a_row: int = 0
    ended: int = 0
    gated: int = 0
    parted: int = 0  # witnesses that differ from the idle server's answer, at a near tie
    most: dict[str, float] = field(default_factory=dict)  # the highest value of what is held

    def note(self, case: Case, outcome: str, seconds: float, faults: list[str]) -> None:
        """Count a request that has ended."""
        row = self.rows[case.kind]
        self.ended += 1
        self.features.update(set(case.features))
        if faults:
            row.failed += 1
            self.in_a_row += 1
            body = case.content or b""
            shown = body[:2000].decode(errors="replace")
            self.faults.append(
                {"number": case.number, "kind": case.kind, "faults": faults, "body": shown}
            )
            if len(self.faults) <= SHOWN:
                tqdm.write(f"FAULT {case.number} ({case.kind}): {'; '.join(faults)}")
            return
        self.in_a_row = 0
        setattr(row, outcome, getattr(row, outcome) + 1)
        if outcome != "aborted":
            row.seconds.append(seconds)


def report(
    tally: Tally,
    samples: list[server_state.Sample],
    before: dict[str, float],
    after: dict[str, float],
) -> dict[str, Any]:
    """The figures of a run; `before` and `after` are the idle server's metrics."""

    def rose(name: str) -> float:
        return after.get(name, before.get(name, 0)) - before.get(name, 0)

    rows = {
        kind: {
            **{name: getattr(row, name) for name in ("answered", "refused", "aborted", "failed")},
            **dict(zip(("p50_s", "p99_s"), _percentiles(row.seconds), strict=True)),
        }
        for kind, row in sorted(tally.rows.items())
    }
    result: dict[str, Any] = {
        "requests": tally.ended,
        "kinds": rows,
        "features": dict(tally.features.most_common()),
        "preemptions": rose(server_state.PREEMPTIONS),
        "generated_by_gated": rose(server_state.GENERATED),
        "gated": rose(server_state.GATED),
        "witnesses_parted_at_a_near_tie": tally.parted,
        "held_most": tally.most,
        "held_after": {name: after.get(name) for name in server_state.HELD},
    }
    if (mib := memory(samples)) is not None:
        result["memory_mib"] = mib
        result["samples"] = [sample._asdict() for sample in samples]
    return result


def memory(samples: Sequence[server_state.Sample]) -> dict[str, Any] | None:
    """The memory of a run by thirds, MiB; None if there are too few samples.

    `per_1000` is its growth per 1,000 requests,
    fitted over the last two thirds: in the first one the server still warms up.
    """
    found = memory_growth([MemorySample(one.seconds, one.rss) for one in samples])
    if found is None:
        return None
    later, slope = samples[len(samples) // 3 :], 0.0
    if later[-1].requests > later[0].requests:
        requests, rss = [one.requests for one in later], [one.rss for one in later]
        slope = statistics.linear_regression(requests, rss).slope
    return found._asdict() | {"per_1000": 1000 * slope}


def _percentiles(seconds: list[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    middle, high = np.percentile(seconds, (50, 99))
    return round(float(middle), 3), round(float(high), 3)


def show(result: dict[str, Any]) -> None:
    """Print the report as tables."""
    columns = ("answered", "refused", "aborted", "failed", "p50_s", "p99_s")
    rows = [
        (kind, *("" if row[name] is None else f"{row[name]:,}" for name in columns))
        for kind, row in result["kinds"].items()
    ]
    sums = [sum(row[name] for row in result["kinds"].values()) for name in columns[:4]]
    print_table(("requests", *columns), [*rows, ("all", *(f"{n:,}" for n in sums), "", "")])
    print(
        f"\n{result['requests']:,} requests in {result['seconds']:,.0f} s "
        f"({result['requests'] / result['seconds']:.1f} a second); "
        f"{result['gated']:,.0f} of {result['generated_by_gated']:,.0f} tokens gated; "
        f"{result['preemptions']:,.0f} preemptions; "
        f"{result['witnesses_parted_at_a_near_tie']} witnesses parted at a near tie"
    )
    if mib := result.get("memory_mib"):
        flat = {True: "flat", False: "NOT FLAT", None: "too short a run to judge"}[mib["flat"]]
        print(
            f"memory: {mib['start']:,.0f} MiB at the start, {mib['middle']:,.0f} in the "
            f"middle third, {mib['end']:,.0f} in the last ({mib['growth']:+.2%}, "
            f"{mib['per_1000']:+.2f} MiB by 1,000 requests): {flat}"
        )
    for name, value in result["held_after"].items():
        most = result["held_most"].get(name, 0)
        print(f"{name}: at most {most:g} under traffic, {value} when idle")
    for one in result["wrong"]:
        print(f"WRONG {one}")
    if result["faults"]:
        print(f"FAULTS: {len(result['faults'])}, each in the report with its request's number")
