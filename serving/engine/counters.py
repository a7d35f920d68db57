"""Prometheus counters of generated and gated tokens, by adapter, and gauges of what is held.

They stand in the scheduler: workers would count once a tensor-parallel rank, and on a GPU also the
tokens computed past a stop. The gauges are 0 when no gated request is under way; anything else then
is a leak (`python -m loadtests.soak` looks).
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Gauge

GENERATED = Counter(
    "reasonmaxxer_generated_tokens", "Tokens that gated requests have generated.", ["adapter"]
)
GATED = Counter(
    "reasonmaxxer_gated_tokens", "Those of them sampled through the open gate.", ["adapter"]
)
# livesum: over the processes that live, one scheduler for each engine and one or more front ends.
HELD = Gauge(
    "reasonmaxxer_gate_requests",
    "Requests whose gate's state the scheduler holds.",
    multiprocess_mode="livesum",
)
ANSWERS = Gauge(
    "reasonmaxxer_gate_answers",
    "Gated answers that the front end was putting together when the latest request came.",
    multiprocess_mode="livesum",
)


@lru_cache(maxsize=1024)  # the look-up costs several times what the counting does
def _counters(adapter: str) -> tuple[Counter, Counter]:
    name = adapter.partition("@")[0]
    return GENERATED.labels(name), GATED.labels(name)


def count(adapter: str, gated: bool) -> None:
    """One token of `adapter`, an engine name NAME@HASH or plain NAME."""
    generated, of_which_gated = _counters(adapter)
    generated.inc()
    if gated:
        of_which_gated.inc()
