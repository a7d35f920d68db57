"""What the server tells Prometheus, beside vLLM's own series: tokens, latencies, decision points.

By adapter, version and mode (base, always, gated), names that only the store can make: whatever a
client calls a model, it adds no series. Everything is counted where it goes out to the client.
Series of versions that are neither served nor loaded go, but for the last few of them.

A token costs a few list operations here and no lock, since all of them pass through one event loop.
The page is joined from lines whose names and labels are already text, and what has not changed
since the last scrape is kept whole: with 200 adapters there are 24,000 lines, for which
prometheus_client takes a quarter of a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import NamedTuple

import prometheus_client
from prometheus_client.utils import floatToGoString

PREFIX = "reasonmaxxer_"
BASE, ALWAYS, GATED = "base", "always", "gated"
UNKNOWN = "unknown"
KEPT = 8  # versions that are gone, whose last counts Prometheus may not have fetched yet
OUTCOMES = ("ok", "aborted", "refused", "shed", "error")

FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
DURATION = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ENTROPY = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0)
RANK = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

# What happens seldom is left to prometheus_client.
LOADS = prometheus_client.Counter(
    "reasonmaxxer_adapter_loads", "Versions that were to be loaded, by outcome.", ["outcome"]
)
LOAD_SECONDS = prometheus_client.Histogram(
    "reasonmaxxer_adapter_load_seconds",
    "To check and load a version.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
MOVES = prometheus_client.Counter(
    "reasonmaxxer_alias_moves", "Names that went over to another version."
)
MOVE_SECONDS = prometheus_client.Histogram(
    "reasonmaxxer_alias_move_seconds",
    "From the look at a moved alias until its new version serves.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
EVICTIONS = prometheus_client.Counter(
    "reasonmaxxer_evictions", "Versions taken out of the engine, by reason.", ["reason"]
)
QUEUE_SECONDS = prometheus_client.Histogram(
    "reasonmaxxer_queue_wait_seconds",
    "Waits of requests for their adapter's slot.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
POLLS = prometheus_client.Counter(
    "reasonmaxxer_store_polls", "Looks at the store for moved aliases, by outcome.", ["outcome"]
)
for _outcome in ("ok", "failed"):
    POLLS.labels(_outcome)
for _outcome in ("loaded", "refused"):
    LOADS.labels(_outcome)
for _reason in ("capacity", "retired"):
    EVICTIONS.labels(_reason)


class Labels(NamedTuple):
    """Of a series."""

    adapter: str
    version: str
    mode: str

    def text(self, *more: str) -> str:
        """As they stand between the braces, `more` behind them; they need no escaping."""
        own = [f'{name}="{value}"' for name, value in zip(self._fields, self, strict=True)]
        return ",".join([*own, *more])

    @property
    def of_a_version(self) -> bool:
        """Whether an adapter answered."""
        return self.mode in (ALWAYS, GATED)

    @property
    def id(self) -> str:
        """NAME@HASH of the version that answered."""
        return f"{self.adapter}@{self.version}"

    @classmethod
    def of(cls, version: str | None, mode: str) -> Labels:
        """Of a request that `version` (NAME@HASH) answers; None: the base, or nothing."""
        if version is None:
            return cls(mode, mode, mode)
        name, _, content = version.partition("@")
        return cls(name, content, mode)


class Distribution:
    """How often a value fell between two bounds, and the sum of all."""

    __slots__ = ("_buckets", "_count", "_sum", "_text", "bounds", "counts", "total")

    def __init__(self, name: str, bounds: tuple[float, ...], labels: Labels) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        limits = [*map(floatToGoString, bounds), "+Inf"]
        les = [labels.text(f'le="{limit}"') for limit in limits]
        self._buckets = [f"{PREFIX}{name}_bucket{{{le}}} " for le in les]
        self._sum = f"{PREFIX}{name}_sum{{{labels.text()}}} "
        self._count = f"{PREFIX}{name}_count{{{labels.text()}}} "
        self._text = (-1, "")  # the observations it tells of, and the samples as text

    def observe(self, value: float) -> None:
        """One more."""
        # The sum first: a scrape between the two lines must not keep an older sum for this count.
        self.total += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def text(self) -> str:
        """Its samples; made anew only if something was observed since the last scrape."""
        count = sum(self.counts)
        if self._text[0] != count:
            sums = list(accumulate(self.counts))
            lines = [f"{bucket}{n}\n" for bucket, n in zip(self._buckets, sums, strict=True)]
            lines += [f"{self._sum}{self.total}\n", f"{self._count}{sums[-1]}\n"]
            self._text = (sums[-1], "".join(lines))
        return self._text[1]


class Series:
    """What one version has answered in one mode."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.generated = 0  # tokens
        self.gated = 0  # of them
        # HTTP requests; zeros too, or Prometheus could not see a first one as a rise.
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        own = labels.text()  # of each counter's sample, all but the value
        self.tokens_head = f"{PREFIX}generated_tokens_total{{{own}}} "
        self.gated_head = f"{PREFIX}gated_tokens_total{{{own}}} "
        self.outcome_heads = {
            outcome: f'{PREFIX}requests_total{{{own},outcome="{outcome}"}} ' for outcome in OUTCOMES
        }
        self.first_token = Distribution("time_to_first_token_seconds", FIRST_TOKEN, labels)
        self.between_tokens = Distribution("inter_token_latency_seconds", BETWEEN_TOKENS, labels)
        self.duration = Distribution("request_duration_seconds", DURATION, labels)
        self.entropy = Distribution("decision_entropy_nats", ENTROPY, labels)
        self.rank = Distribution("gated_token_base_rank", RANK, labels)


# (attribute of Series, name, help)
DISTRIBUTIONS = (
    ("first_token", "time_to_first_token_seconds", "From a request to its first token."),
    ("between_tokens", "inter_token_latency_seconds", "Between two tokens of a sequence."),
    ("duration", "request_duration_seconds", "Answered requests, from end to end."),
)
DECISIONS = (
    ("entropy", "decision_entropy_nats", "Entropy of the base at decision points."),
    ("rank", "gated_token_base_rank", "Rank the base gives to the token taken at one."),
)


class Metrics:
    """All series of a server."""

    def __init__(self) -> None:
        self.live: Callable[[], Collection[str]] = tuple  # versions served or loaded, NAME@HASH
        self._series: dict[Labels, Series] = {}
        self.series(Labels.of(None, UNKNOWN))

    def series(self, labels: Labels) -> Series:
        """The one of these labels."""
        if labels not in self._series:
            self._forget_what_is_gone()
            self._series[labels] = Series(labels)
        return self._series[labels]

    def versions(self) -> set[str]:
        """Versions that have series, NAME@HASH."""
        return {one.id for one in list(self._series) if one.of_a_version}

    def _forget_what_is_gone(self) -> None:
        live = self.live()
        known = dict.fromkeys(one.id for one in self._series if one.of_a_version)
        gone = [version for version in known if version not in live]
        for version in gone[:-KEPT]:
            for mode in (ALWAYS, GATED):
                self._series.pop(Labels.of(version, mode), None)

    def page(self) -> str:
        """In Prometheus' text format; called at each scrape, in a thread of its own."""
        served = list(self._series.values())
        answered = [one for one in served if one.labels.mode != UNKNOWN]
        gated = [one for one in served if one.labels.mode == GATED]
        parts = [head("generated_tokens_total", "counter", "Tokens sent out.")]
        parts += [f"{one.tokens_head}{one.generated}\n" for one in answered]
        parts.append(head("gated_tokens_total", "counter", "Those sampled through the open gate."))
        parts += [f"{one.gated_head}{one.gated}\n" for one in gated]
        parts.append(head("requests_total", "counter", "HTTP requests, by outcome."))
        for one in served:
            counts = one.outcomes.items()
            parts += [f"{one.outcome_heads[outcome]}{count}\n" for outcome, count in counts]
        for rows, distributions in ((answered, DISTRIBUTIONS), (gated, DECISIONS)):
            for attribute, name, text in distributions:
                parts.append(head(name, "histogram", text))
                parts += [getattr(one, attribute).text() for one in rows]
        return "".join(parts)


def head(name: str, kind: str, text: str) -> str:
    """The two lines above the samples of a metric."""
    return f"# HELP {PREFIX}{name} {text}\n# TYPE {PREFIX}{name} {kind}\n"


METRICS = Metrics()
