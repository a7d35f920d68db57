"""Prometheus counters of generated and gated tokens, by adapter.

They stand in the scheduler: workers would count once a tensor-parallel rank, and on a GPU also the
tokens computed past a stop.
"""

from __future__ import annotations

from prometheus_client import Counter

GENERATED = Counter(
    "reasonmaxxer_generated_tokens", "Tokens that gated requests have generated.", ["adapter"]
)
GATED = Counter(
    "reasonmaxxer_gated_tokens", "Those of them sampled through the open gate.", ["adapter"]
)


def count(adapter: str, gated: bool) -> None:
    """One token of `adapter`, an engine name NAME@HASH or plain NAME."""
    name = adapter.partition("@")[0]
    GENERATED.labels(name).inc()
    if gated:
        GATED.labels(name).inc()
