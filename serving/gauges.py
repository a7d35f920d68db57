"""What the server holds at the moment of a scrape: versions by state, slots, the queue.

Read off the aliases when Prometheus asks, so none of it can drift from the truth. Only what else
the store has is as of some seconds ago: looking through a large one takes longer than all the rest.
"""

from __future__ import annotations

import time
from collections import Counter

from serving.aliases import Aliases
from serving.metrics import PREFIX, UNKNOWN, Labels, head

LOOK_SECONDS = 15  # between two looks at the store
STATES = ("available", "loading", "resident", "draining", "refused")


class Gauge:
    """One metric: its samples in Prometheus' text format."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.parts = [head(name, "gauge", text)]

    def add(self, labels: str, value: float) -> None:
        """One more sample; `labels` as between the braces, of names that need no escaping."""
        self.parts.append(f"{PREFIX}{self.name}{{{labels}}} {value}\n")

    def set(self, value: float) -> Gauge:
        """Its only sample."""
        self.parts.append(f"{PREFIX}{self.name} {value}\n")
        return self


class Gauges:
    """The server's gauges."""

    def __init__(self, aliases: Aliases) -> None:
        self.aliases = aliases
        self._names: list[str] = []
        self._looked = -float(LOOK_SECONDS)

    def names(self) -> list[str]:
        """The store's, as of the last look."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._names, self._looked = self.aliases.store.names(), time.monotonic()
        return self._names

    def page(self) -> str:
        """All of them as they are now."""
        aliases = self.aliases
        info = Gauge("adapter_info", "1 for each version and its state.")
        flying = Gauge("adapter_requests_in_flight", "Requests it answers now.")
        tau = Gauge("adapter_tau_nats", "Threshold of the gate in force.")
        rate = Gauge("adapter_calibrated_gate_rate", "Gate rate that its calibration promises.")
        states: Counter[str] = Counter()
        seen = set()
        for one in aliases.cache:
            name, content, _ = Labels.of(one.version, "")
            seen.add(name)
            state = "draining" if one.retired else "resident"
            states[state] += 1
            own = f'adapter="{name}",version="{content}"'
            info.add(f'{own},state="{state}"', 1)
            flying.add(own, one.in_flight)
            if one.gate is not None:
                tau.add(own, aliases.gate(name, one.gate).tau)
                rate.add(own, one.gate.rate)
        for state, names in (("loading", aliases.loading()), ("refused", aliases.refused())):
            states[state] += len(names)
            seen.update(names)
            for name in names:
                info.add(f'adapter="{name}",version="{UNKNOWN}",state="{state}"', 1)
        states["available"] = sum(name not in seen for name in self.names())
        adapters = Gauge("adapters", "Names of the store and versions in the engine.")
        for state in STATES:
            adapters.add(f'state="{state}"', states[state])
        busy = len(aliases.slots.pinned | set(aliases.slots.busy))
        waiting = aliases.slots.waiting + aliases.host_slots.waiting
        gauges = (
            *(info, flying, tau, rate, adapters),
            Gauge("slots", "LoRA slots of the engine (--max-loras).").set(aliases.slots.count),
            Gauge("slots_busy", "Slots whose version answers, or is pinned.").set(busy),
            Gauge("queue_requests", "Requests that wait for a slot.").set(waiting),
        )
        return "".join(part for gauge in gauges for part in gauge.parts)
