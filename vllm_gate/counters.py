"""What the scheduler's process counts for Prometheus; all else is counted where it goes out.

Workers would count once a tensor-parallel rank, and on a GPU also what is computed past a stop. The
gauges are 0 when no gated request is under way; anything else then is a leak
(`python -m tests.fuzz` looks).
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge

REPLAYS = Counter(
    "reasonmaxxer_replays",
    "Tokens that came from a replay: a position computed a second time, adapter on.",
    ["adapter", "version"],
)
# livesum: over the processes that live, one scheduler for each engine and one or more front ends.
HELD = Gauge(
    "reasonmaxxer_gate_requests",
    "Requests whose gate's state the scheduler holds.",
    multiprocess_mode="livesum",
)
ANSWERS = Gauge(
    "reasonmaxxer_gate_answers",
    "Gated answers that the front end is putting together.",
    multiprocess_mode="livesum",
)


@lru_cache(maxsize=1024)  # the look-up costs several times what the counting does
def _replays(adapter: str) -> Counter:
    name, _, version = adapter.partition("@")
    return REPLAYS.labels(name, version)


def count_replay(adapter: str) -> None:
    """One token from a replay of `adapter`, an engine name NAME@HASH or plain NAME."""
    _replays(adapter).inc()
