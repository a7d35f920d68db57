"""The server's vital signs: what /metrics says it holds, and what its processes take.

Leaks show in two ways: something is still held when nothing is asked, or the processes grow while
the traffic stays the same.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

# All of them are 0 on a server that nobody asks anything.
HELD = {
    "vllm:num_requests_running": "requests running",
    "vllm:num_requests_waiting": "requests waiting",
    "vllm:kv_cache_usage_perc": "share of KV blocks in use",
    "reasonmaxxer_gate_requests": "requests' gates in the scheduler",
    "reasonmaxxer_gate_answers": "gated answers in the front end",
}
# Those that must have risen under traffic; one that never moves proves nothing when it is 0.
MOVING = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc")
MOVING_GATED = ("reasonmaxxer_gate_requests", "reasonmaxxer_gate_answers")
PREEMPTIONS = "vllm:num_preemptions_total"
GATED, GENERATED = "reasonmaxxer_gated_tokens_total", "reasonmaxxer_generated_tokens_total"
SNAPSHOTS = "reasonmaxxer-*"  # the server's temporary folders

# Growth of memory from the middle third of the run to its last that counts as a leak.
GROWTH = 0.02
# Below this many seconds the thirds are still warming up: pools fill, allocators settle.
JUDGED = 600
# Samples that a verdict needs.
FEWEST = 6
# Files and threads opened once and for all by whoever needs them first.
ONCE = 16


def read(page: str) -> dict[str, float]:
    """A Prometheus page: the sum over labels of each metric."""
    values: dict[str, float] = {}
    for match in re.finditer(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)", page, re.MULTILINE):
        values[match[1]] = values.get(match[1], 0.0) + float(match[2])
    return values


def leaks(metrics: dict[str, float]) -> list[str]:
    """What an idle server still holds; a metric that is not there is no proof of anything."""
    found = []
    for name, what in HELD.items():
        if name not in metrics:
            found.append(f"{name} is not on /metrics")
        elif metrics[name] != 0:
            found.append(f"{metrics[name]:g} {what}")
    return found


def still(most: dict[str, float], gated: bool) -> list[str]:
    """Gauges whose highest value under traffic is 0; `gated`: there were gated requests."""
    names = MOVING + (MOVING_GATED if gated else ())
    return [f"{name} never rose" for name in names if not most.get(name)]


class Sample(NamedTuple):
    """The processes of the server at one moment."""

    seconds: float  # since the traffic began
    requests: int  # ended until then
    rss: float  # MiB, all processes together
    files: int  # open descriptors
    threads: int
    frozen: int  # files in the server's temporary folders


def sample(pid: int, seconds: float, requests: int) -> Sample:
    """Look at the process `pid` and all below it.

    Raises:
        psutil.NoSuchProcess: it has ended.
    """
    root = psutil.Process(pid)
    rss = files = threads = 0
    for process in (root, *root.children(recursive=True)):
        try:
            rss += process.memory_info().rss
            files += process.num_fds()
            threads += process.num_threads()
        except psutil.NoSuchProcess:
            if process.pid == pid:
                raise
    folder = Path(root.environ().get("TMPDIR", "/tmp"))
    # os.walk passes over folders that go while it looks: versions come and go under traffic.
    found = (walked for top in folder.glob(SNAPSHOTS) for walked in os.walk(top))
    frozen = sum(
        len(folders) + sum(not name.endswith(".db") for name in names)
        for _, folders, names in found
    )
    return Sample(seconds, requests, rss / 2**20, files, threads, frozen)


class Memory(NamedTuple):
    """How memory went; MiB."""

    start: float
    middle: float  # median of the middle third
    end: float  # median of the last third
    per_1000: float  # growth by 1,000 requests, fitted over the last two thirds
    flat: bool | None  # None: too short a run to say

    @property
    def growth(self) -> float:
        """Of the last third over the middle one, as a share."""
        return self.end / self.middle - 1


def memory(samples: Sequence[Sample]) -> Memory:
    """The verdict on a run; at least FEWEST samples, in order of time."""
    third = len(samples) // 3
    middle = statistics.median(s.rss for s in samples[third : 2 * third])
    end = statistics.median(s.rss for s in samples[2 * third :])
    later = samples[third:]
    span = later[-1].requests - later[0].requests
    slope = (
        statistics.linear_regression([s.requests for s in later], [s.rss for s in later]).slope
        if span
        else 0.0
    )
    long = samples[-1].seconds - samples[0].seconds >= JUDGED
    flat = end / middle - 1 < GROWTH if long else None
    return Memory(samples[0].rss, middle, end, 1000 * slope, flat)


def opened(before: Sample, after: Sample) -> list[str]:
    """What an idle server has more of than it had when it was idle before."""
    found = []
    for what, allowed in (("files", ONCE), ("threads", ONCE), ("frozen", 0)):
        more = getattr(after, what) - getattr(before, what)
        if more > allowed:
            found.append(f"{more} more {'files in its folders' if what == 'frozen' else what}")
    return found
