"""More adapters than slots: what it costs, and how long the longest waits.

    python -m benchmarks.capacity                      (about 4 minutes)

The same random traffic goes to 64 adapters through 4 slots, and to 4 adapters that are always in
theirs, in turns on one server. Random LoRAs of the shipped miniature, float32, one thread.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import httpx
from pydantic import Field

from adapters.command_line import CommandLine
from benchmarks.adapters import random_store
from benchmarks.report import print_table, ratios, save, show
from benchmarks.streams import Answer, environment, percentile, stream
from benchmarks.swap import BASE
from demo.server import end_as_asked, running_server

TOKENS = 48


class CapacityConfig(CommandLine):
    """Measure what more adapters than slots cost, and how long the longest waits."""

    program: ClassVar[str] = "python -m benchmarks.capacity"

    adapters: int = Field(64, ge=1, description="Adapters that are asked.")
    slots: int = Field(4, ge=1, description="Adapters that fit into one batch.")
    users: int = Field(64, ge=1, description="Requests at a time.")
    requests: int = Field(512, ge=1, description="Requests of each run.")
    runs: int = Field(5, ge=1, description="Runs, after one that is not counted.")
    gated: bool = Field(False, description="Ask NAME:gated.")


async def round_of(
    client: httpx.AsyncClient, names: list[str], options: CapacityConfig, seed: int
) -> tuple[float, list[Answer]]:
    """(tokens per second, answers) of `options.requests` requests, `options.users` at a time."""
    choose = random.Random(seed)
    todo = [(choose.choice(names), choose.randrange(1000)) for _ in range(options.requests)]
    queue = iter(todo)
    answers: list[Answer] = []

    async def user() -> None:
        for name, number in queue:  # shared: each user takes the next one
            answers.append(await stream(client, name, f"What is {number}-11*7+12?", TOKENS))

    start = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(options.users)))
    seconds = time.perf_counter() - start
    # Not pieces: where the client is behind, a piece holds several tokens.
    return sum(TOKENS for one in answers if not one.error) / seconds, answers


async def measure(url: str, names: list[str], options: CapacityConfig) -> dict[str, Any]:
    few, many = names[: options.slots], names
    speeds: dict[str, list[float]] = {"resident": [], "through the slots": []}
    waits: dict[str, list[float]] = {"resident": [], "through the slots": []}
    failed = 0
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)
    ) as client:
        for turn in range(options.runs + 1):  # the first is a warm-up
            both = (("resident", few), ("through the slots", many))
            for label, chosen in both if turn % 2 else both[::-1]:
                speed, answers = await round_of(client, chosen, options, turn)
                failed += sum(bool(one.error) for one in answers)
                if turn:
                    speeds[label].append(speed)
                    waits[label] += [one.arrivals[0] for one in answers if one.arrivals]
    ratio = ratios(speeds["through the slots"], speeds["resident"])
    return {
        "adapters, slots, users": [len(names), options.slots, options.users],
        "runs": options.runs,
        f"tokens/s, {len(few)} resident": show(speeds["resident"]),
        f"tokens/s, {len(many)} through {options.slots} slots": show(speeds["through the slots"]),
        "ratio": round(statistics.median(ratio), 3),
        "ratios": [round(one, 3) for one in ratio],
        "failed": failed,
        **{
            f"first token, s, {label}: p50, p99, longest": [
                round(percentile(values, share), 2) for share in (0.5, 0.99, 1)
            ]
            for label, values in waits.items()
        },
    }


def main() -> int:
    """Measure; exit code 1 if a request failed."""
    options = CapacityConfig.load()
    end_as_asked()
    environment()
    with tempfile.TemporaryDirectory() as folder:
        store = random_store(Path(folder), BASE, options.adapters)
        suffix = ":gated" if options.gated else ""
        names = [f"a{seed}{suffix}" for seed in range(options.adapters)]
        flags: tuple[str, ...] = ("--model", str(BASE), "--adapters", str(store.root))
        flags += ("--dtype", "float32", "--max-num-seqs", "64", "--max-model-len", "512")
        cached = max(options.slots, options.adapters)
        flags += ("--max-loras", str(options.slots), "--max-cpu-loras", str(cached))
        with running_server(*flags) as server:
            result = asyncio.run(measure(server.url, names, options))
    print_table(["", ""], [[name, str(value)] for name, value in result.items()])
    save("capacity-gated" if options.gated else "capacity", result)
    return int(bool(result["failed"]))


if __name__ == "__main__":
    sys.exit(main())
