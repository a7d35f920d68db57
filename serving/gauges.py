"""What the server holds at the moment of a scrape: versions by state, slots, the queue.

Read off the registry when Prometheus asks, so none of it can drift from the truth. Only what else
the store has is as of some seconds ago: looking through a large one takes longer than all the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from serving.metrics import UNKNOWN, Labels
from serving.registry import Registry

LOOK_SECONDS = 15  # between two looks at the store
STATES = ("available", "loading", "resident", "draining", "refused")


class Gauges:
    """A collector of prometheus_client."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._names: list[str] = []
        self._looked = -float(LOOK_SECONDS)

    def names(self) -> list[str]:
        """The store's, as of the last look."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._names, self._looked = self.registry.store.names(), time.monotonic()
        return self._names

    def collect(self) -> Iterator[Metric]:
        """The server's gauges."""
        registry = self.registry
        version = ("adapter", "version")
        info = _gauge("adapter_info", "1 for each version and its state.", *version, "state")
        flying = _gauge("adapter_requests_in_flight", "Requests it answers now.", *version)
        tau = _gauge("adapter_tau_nats", "Threshold of the gate in force.", *version)
        rate = _gauge(
            "adapter_calibrated_gate_rate", "Gate rate that its calibration promises.", *version
        )
        states: Counter[str] = Counter()
        seen = set()
        for one in registry.residents:
            name, content, _ = Labels.of(one.version, "")
            seen.add(name)
            state = "draining" if one.retired else "resident"
            states[state] += 1
            info.add_metric([name, content, state], 1)
            flying.add_metric([name, content], one.in_flight)
            if one.gate is not None:
                tau.add_metric([name, content], registry.gate(name, one.gate).tau)
                rate.add_metric([name, content], one.gate.rate)
        for state, names in (("loading", registry.loading()), ("refused", registry.refused())):
            states[state] += len(names)
            seen.update(names)
            for name in names:
                info.add_metric([name, UNKNOWN, state], 1)
        states["available"] = sum(name not in seen for name in self.names())
        adapters = _gauge("adapters", "Names of the store and versions in the engine.", "state")
        for state in STATES:
            adapters.add_metric([state], states[state])
        yield from (info, flying, tau, rate, adapters)
        yield _gauge("slots", "LoRA slots of the engine (--max-loras).", value=registry.slots.count)
        busy = len(registry.slots.pinned | set(registry.slots.busy))
        yield _gauge("slots_busy", "Slots whose version answers, or is pinned.", value=busy)
        waiting = registry.slots.waiting + registry.places.waiting
        yield _gauge("queue_requests", "Requests that wait for a slot.", value=waiting)


def _gauge(name: str, text: str, *labels: str, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"reasonmaxxer_{name}", text, value=value, labels=labels or None)
