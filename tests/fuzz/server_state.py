"""What the server holds by its /metrics, and what its processes take.

A leak shows in three ways: a gauge that is not 0 on an idle server, files or threads that stay
open, or processes that grow while the traffic stays the same (report.py looks at that).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

# Each of these is 0 on an idle server.
HELD = {
    "vllm:num_requests_running": "requests running",
    "vllm:num_requests_waiting": "requests waiting",
    "vllm:kv_cache_usage_perc": "share of KV blocks in use",
    "reasonmaxxer_gate_requests": "requests' gates in the scheduler",
    "reasonmaxxer_gate_answers": "gated answers in the front end",
}
# These must have risen under traffic: a gauge that never moves proves nothing when it is 0.
MOVING = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc")
MOVING_GATED = ("reasonmaxxer_gate_requests", "reasonmaxxer_gate_answers")
PREEMPTIONS = "vllm:num_preemptions_total"
GATED, GENERATED = "reasonmaxxer_gated_tokens_total", "reasonmaxxer_generated_tokens_total"

TEMPORARY_FOLDERS = "reasonmaxxer-*"  # those of the server, under its TMPDIR
# Files and threads that are opened once, by the first request that needs them.
OPENED_ONCE = 16


def read_metrics(exposition: str) -> dict[str, float]:
    """Read a page in Prometheus' text format: sample name -> sum over its labels."""
    values: Counter[str] = Counter()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            values[sample.name] += sample.value
    return dict(values)


def still_held(metrics: dict[str, float]) -> list[str]:
    """List what an idle server still holds; a missing metric is a fault too."""
    found = []
    for name, what in HELD.items():
        if name not in metrics:
            found.append(f"{name} is not on /metrics")
        elif metrics[name] != 0:
            found.append(f"{metrics[name]:g} {what}")
    return found


def never_rose(highest: dict[str, float], gated: bool) -> list[str]:
    """List gauges that stayed 0 under traffic; `gated` says that there were gated requests."""
    names = MOVING + (MOVING_GATED if gated else ())
    return [f"{name} never rose" for name in names if not highest.get(name)]


class Sample(NamedTuple):
    """The server's processes at one moment."""

    seconds: float  # since the traffic began
    requests: int  # ended until then
    rss: float  # MiB, all processes together
    files: int  # open descriptors
    threads: int
    frozen: int  # files in the server's temporary folders


def take_sample(pid: int, seconds: float, requests: int) -> Sample:
    """Sample the process `pid` and all of its children.

    Raises:
        psutil.NoSuchProcess: `pid` has ended.
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
    # os.walk skips folders that vanish while it looks: versions come and go under traffic.
    walked = (one for top in folder.glob(TEMPORARY_FOLDERS) for one in os.walk(top))
    frozen = sum(
        len(folders) + sum(not name.endswith(".db") for name in names)
        for _, folders, names in walked
    )
    return Sample(seconds, requests, rss / 2**20, files, threads, frozen)


def left_open(before: Sample, after: Sample) -> list[str]:
    """List what an idle server has more of `after` the traffic than `before`."""
    found = []
    for what, allowed in (("files", OPENED_ONCE), ("threads", OPENED_ONCE), ("frozen", 0)):
        more = getattr(after, what) - getattr(before, what)
        if more > allowed:
            found.append(f"{more} more {'files in its folders' if what == 'frozen' else what}")
    return found
