"""GET /metrics: what all processes counted, and what the server holds at this moment.

Versions by state, slots and the queue are read when Prometheus asks, so none of it can drift from
the truth. Only what else the store has is as of some seconds ago: looking through a large one takes
longer than all the rest.

Prometheus' client cannot take a series back that another process may have written too. So what
vLLM and the scheduler count by adapter is left out here, once the adapter's version is gone.
What routers read of adapters has the names of clients in place of vLLM's (router_metrics.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.responses import Response

from serving.aliases import Aliases
from serving.follower import Follower
from serving.metrics import METRICS, PREFIX, UNKNOWN, Labels, head
from serving.router_metrics import REPLACED, RouterSeries

LOOK_SECONDS = 15  # between two looks at the store
STATES = ("available", "loading", "resident", "draining", "refused")

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What all processes counted, and how this one, the front end, is doing.

    vLLM's own leaves out the process_* and python_* series once there are several processes.
    """
    state = request.app.state
    await state.router_series.look()
    text = await run_in_threadpool(page, state.gauges, state.router_series)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def page(gauges: Gauges, router_series: RouterSeries) -> bytes:
    """All series in Prometheus' text format. Call from a thread: it looks at the store."""
    registry = CollectorRegistry()
    registry.register(Counted())
    registry.register(router_series)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return generate_latest(registry) + (gauges.page() + METRICS.page()).encode()


class Counted:
    """What all processes counted, as prometheus_client collects it."""

    def collect(self) -> Iterator[Metric]:
        """Every family, without what is of versions that are gone."""
        families = MultiProcessCollector(CollectorRegistry()).collect()
        return without_what_is_gone(families, METRICS.versions())


def without_what_is_gone(families: Iterable[Metric], versions: Collection[str]) -> Iterator[Metric]:
    """`families` without samples that are of none of `versions` (NAME@HASH), or that we replace."""
    for family in families:
        if family.name in REPLACED:
            continue
        if family.name == "reasonmaxxer_replays":
            family.samples = [
                one
                for one in family.samples
                if f"{one.labels['adapter']}@{one.labels['version']}" in versions
            ]
        yield family


class Gauge:
    """One metric: its samples in Prometheus' text format."""

    def __init__(self, name: str, text: str, kind: str = "gauge") -> None:
        self.name = name
        self.parts = [head(name, kind, text)]

    def add(self, labels: str, value: float) -> None:
        """One more sample; `labels` as between the braces, of names that need no escaping."""
        self.parts.append(f"{PREFIX}{self.name}{{{labels}}} {value}\n")

    def set(self, value: float) -> Gauge:
        """Its only sample."""
        self.parts.append(f"{PREFIX}{self.name} {value}\n")
        return self


class Gauges:
    """The server's gauges."""

    def __init__(self, aliases: Aliases, follower: Follower | None = None) -> None:
        self.aliases = aliases
        self.follower = follower
        self._names: list[str] = []
        self._looked = -float(LOOK_SECONDS)

    def names(self) -> list[str]:
        """The store's, as of the last look."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._names, self._looked = self.aliases.names(), time.monotonic()
        return self._names

    def _default_gate(self) -> tuple[Gauge, ...]:
        """The gate of adapters that bring none (--default-gate-rate)."""
        default = self.aliases.default_gate
        rate = Gauge("default_gate_rate", "Wanted gate rate of adapters that bring none; 0: none.")
        tokens = Gauge("default_gate_tokens", "Tokens whose entropies the default gate rests on.")
        return (
            rate.set(default.rate if default else 0),
            tokens.set(default.sample.seen if default else 0),
        )

    def _store(self) -> tuple[Gauge, ...]:
        """How the server follows its store."""
        calls = Gauge("store_requests_total", "Requests to the bucket, by kind.", "counter")
        for kind, count in sorted(self.aliases.store.calls.items()):
            calls.add(f'kind="{kind}"', count)
        if self.follower is None:
            return (calls,)
        age = Gauge("store_age_seconds", "Since the last good look at the store.")
        behind = Gauge("adapter_behind_seconds", "For which another version serves than aliased.")
        late = self.follower.behind()
        for name in self.aliases.served():
            behind.add(f'adapter="{name}"', late.get(name, 0))
        return calls, age.set(self.follower.age), behind

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
            found = aliases.threshold(name, one.gate)
            if found.tau is not None:
                tau.add(f'{own},source="{found.source}"', found.tau)
            if found.gate is not None:
                rate.add(own, found.gate.rate)
        there = set(self.names())
        refused = [name for name in aliases.refused() if name.partition("@")[0] in there]
        for state, names in (("loading", aliases.loading()), ("refused", refused)):
            states[state] += len(names)
            seen.update(names)
            for name in names:
                adapter, _, content = name.partition("@")
                own = f'adapter="{adapter}",version="{content or UNKNOWN}"'
                info.add(f'{own},state="{state}"', 1)
        states["available"] = sum(name not in seen for name in there)
        adapters = Gauge("adapters", "Names of the store and versions in the engine.")
        for state in STATES:
            adapters.add(f'state="{state}"', states[state])
        waiting = aliases.slots.waiting + aliases.host_slots.waiting
        gauges = (
            *(info, flying, tau, rate, adapters),
            *self._default_gate(),
            *self._store(),
            Gauge("slots", "LoRA slots of all engines (--max-loras).").set(aliases.slots.total),
            Gauge("slots_busy", "Slots whose version answers, or is pinned.").set(
                aliases.slots.in_use
            ),
            Gauge("queue_requests", "Requests that wait for a slot.").set(waiting),
        )
        return "".join(part for gauge in gauges for part in gauge.parts)
