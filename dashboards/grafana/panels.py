"""What the dashboard shows: rows and panels, top to bottom as they stand on the screen.

`$adapter` and `$mode` are the dashboard's variables; a panel whose metric has no such label takes
no part in them. After a change here: python -m dashboards.grafana.build
"""

from __future__ import annotations

from dataclasses import dataclass, field

Step = tuple[float | None, str]  # a value, and the colour of what is above it
GREEN: Step = (None, "green")


@dataclass(frozen=True)
class Query:
    """One expression and the name of its series in the legend."""

    expr: str
    legend: str
    instant: bool = False
    heatmap: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A panel as it is written below; `kind` is Grafana's name of the plugin."""

    title: str
    description: str
    unit: str
    queries: list[Query]
    width: int = 6  # of 24 columns
    kind: str = "timeseries"
    height: int = 8
    stacked: bool = False
    max: float | None = None
    steps: list[Step] = field(default_factory=lambda: [GREEN])


P = "reasonmaxxer_"
LABELS = 'adapter=~"$adapter", mode=~"$mode"'
ADAPTER = 'adapter=~"$adapter"'
GATED = 'adapter=~"$adapter", mode="gated"'
NOT_OK = 'outcome!="ok"'
FAILED = 'outcome="failed"'
# Legends.
IN_MODE = "{{adapter}} {{mode}}"
VERSION = "{{adapter}}@{{version}}"


def rate(metric: str, labels: str = "") -> str:
    """Per second, over what Grafana finds right for the zoom."""
    selector = f"{{{labels}}}" if labels else ""
    return f"rate({P}{metric}{selector}[$__rate_interval])"


def increase(metric: str) -> str:
    """In each interval, however long it is."""
    return f"increase({P}{metric}[$__rate_interval])"


def vllm(series: str) -> str:
    """A series of vLLM's, from our servers alone: Prometheus may watch other ones."""
    return f"{series} and on (job, instance) {P}slots"


def quantiles(metric: str, by: str = "", labels: str = "", legend: str = "") -> list[Query]:
    """The median, 95th and 99th percentile of a histogram."""
    group = ", ".join(filter(None, [by, "le"]))
    buckets = f"sum by ({group}) ({rate(f'{metric}_bucket', labels)})"
    return [
        Query(f"histogram_quantile({q}, {buckets})", f"p{int(q * 100)} {legend}".strip())
        for q in (0.5, 0.95, 0.99)
    ]


def latency(title: str, metric: str, description: str) -> Panel:
    """Percentiles by adapter and mode."""
    queries = quantiles(metric, "adapter, mode", LABELS, IN_MODE)
    return Panel(title, description, "s", queries, width=8, height=9)


def heat(title: str, metric: str, description: str, unit: str) -> Panel:
    """How many values a second fell into each bucket, over time."""
    query = Query(f"sum by (le) ({rate(f'{metric}_bucket', ADAPTER)})", "{{le}}", heatmap=True)
    return Panel(title, description, unit, [query], width=12, kind="heatmap")


def stat(title: str, description: str, unit: str, query: Query, *steps: Step) -> Panel:
    """One figure of the top row; above each of `steps` it has another colour."""
    colours = [GREEN, *steps]
    return Panel(title, description, unit, [query], width=4, height=4, kind="stat", steps=colours)


OVERVIEW = [
    stat(
        "Requests",
        "HTTP requests a second that ended, however they ended.",
        "reqps",
        Query(f"sum({rate('requests_total', LABELS)})", "requests"),
    ),
    stat(
        "Tokens",
        "Tokens a second sent out to clients.",
        "cps",
        Query(f"sum({rate('generated_tokens_total', LABELS)})", "tokens"),
    ),
    stat(
        "Gate rate",
        "Gated tokens per generated token, of gated requests alone.",
        "percentunit",
        Query(
            f"sum({rate('gated_tokens_total', ADAPTER)}) / "
            f"sum({rate('generated_tokens_total', GATED)})",
            "gate rate",
        ),
    ),
    stat(
        "Error ratio",
        "Share of requests that ended with 5xx or were broken off by the server, over five "
        "minutes. All adapters: a request that fails early has none.",
        "percentunit",
        Query("max(job:reasonmaxxer_requests:error_ratio_rate5m)", "errors"),
        (0.001, "yellow"),
        (0.01, "red"),
    ),
    stat(
        "First token, p95",
        "95th percentile of the time from a request to its first token.",
        "s",
        Query(
            "histogram_quantile(0.95, sum by (le) "
            f"({rate('time_to_first_token_seconds_bucket', LABELS)}))",
            "p95",
        ),
        (1, "yellow"),
        (2.5, "red"),
    ),
    stat(
        "Alerts",
        "Alerts that fire now; docs/operations.md says what to do about each.",
        "none",
        Query(
            'count(ALERTS{alertname=~"Reasonmaxxer.*", alertstate="firing"}) or vector(0)',
            "firing",
            instant=True,
        ),
        (1, "red"),
    ),
]

LATENCY = [
    latency(
        "Time to first token",
        "time_to_first_token_seconds",
        "From the arrival of a request to its first token, waits for a slot included. Rises first "
        "when the server has too much to do.",
    ),
    latency(
        "Between tokens",
        "inter_token_latency_seconds",
        "Between two tokens of one sequence. Gated requests wait a little longer where the gate "
        "opens, since that position is computed twice.",
    ),
    latency(
        "End to end",
        "request_duration_seconds",
        "From the arrival of a request to the end of its answer, of those answered in full.",
    ),
]

THROUGHPUT = [
    Panel(
        "Tokens by adapter and mode",
        "Tokens a second sent out to clients.",
        "cps",
        [Query(f"sum by (adapter, mode) ({rate('generated_tokens_total', LABELS)})", IN_MODE)],
        width=12,
        stacked=True,
    ),
    Panel(
        "Requests by adapter and mode",
        "HTTP requests a second that ended, however they ended.",
        "reqps",
        [Query(f"sum by (adapter, mode) ({rate('requests_total', LABELS)})", IN_MODE)],
        width=12,
        stacked=True,
    ),
]

GATE = [
    Panel(
        "Gate rate and calibration",
        "Solid: how often the gate opens. Dashed: how often the calibration promises it to. Apart "
        "for long means traffic unlike that of the calibration, or thresholds set by hand.",
        "percentunit",
        [
            Query(
                'adapter_version:reasonmaxxer_gate_rate:ratio_rate5m{adapter=~"$adapter"}', VERSION
            ),
            Query(
                f"max by (adapter, version) ({P}adapter_calibrated_gate_rate{{{ADAPTER}}})",
                "{{adapter}}@{{version}} calibrated",
                dashed=True,
            ),
            Query(f"max({P}default_gate_rate)", "wanted of the default gate", dashed=True),
        ],
        width=12,
    ),
    Panel(
        "Gate rate over its calibration",
        "1: as promised. Under 0.5 or over 2 for ten minutes is an alert.",
        "none",
        [
            Query(
                "adapter_version:reasonmaxxer_gate_rate:calibrated_ratio_rate5m"
                '{adapter=~"$adapter"}',
                VERSION,
            )
        ],
        steps=[(None, "red"), (0.5, "green"), (2, "red")],
    ),
    Panel(
        "Threshold",
        "Tau in force, in nats: the gate opens where the base's entropy exceeds it. Requests may "
        "name their own.",
        "suffix: nat",
        [Query(f"max by (adapter, version) ({P}adapter_tau_nats{{{ADAPTER}}})", VERSION)],
    ),
    heat(
        "Entropy at decision points",
        "decision_entropy_nats",
        "The base's entropy where the gate opened. Nothing lies below tau; a cloud that moves up "
        "means questions the base finds harder.",
        "suffix: nat",
    ),
    heat(
        "Base rank of gated tokens",
        "gated_token_base_rank",
        "Rank that the base gives to the token taken at a decision point. 1: the correction "
        "changed nothing; much over 5: the adapter says what the base would hardly say.",
        "none",
    ),
    Panel(
        "Replays and gated tokens",
        "Positions the engine computed a second time, and the gated tokens that clients got of "
        "them. The difference was lost to stop strings, hang-ups and the like.",
        "cps",
        [
            Query(f"sum by (adapter) ({rate('replays_total', ADAPTER)})", "replays {{adapter}}"),
            Query(
                f"sum by (adapter) ({rate('gated_tokens_total', ADAPTER)})",
                "gated tokens {{adapter}}",
                dashed=True,
            ),
        ],
        width=18,
    ),
    Panel(
        "Tokens behind the default gate",
        "Tokens whose entropies gave the threshold of adapters that bring none "
        "(--default-gate-rate). 0: nothing was measured, or the setting is off.",
        "short",
        [Query(f"sum({P}default_gate_tokens)", "tokens")],
    ),
]

SWAPS = [
    Panel(
        "Loads",
        "Versions loaded into the engine, and refused, in each interval.",
        "short",
        [Query(f"sum by (outcome) ({increase('adapter_loads_total')})", "{{outcome}}")],
    ),
    Panel(
        "Moves and evictions",
        "Names that went over to another version; versions taken out, because room was needed "
        "(capacity) or no name serves them any more (retired).",
        "short",
        [
            Query(f"sum({increase('alias_moves_total')})", "moves"),
            Query(f"sum by (reason) ({increase('evictions_total')})", "evicted: {{reason}}"),
        ],
    ),
    Panel(
        "Seconds of a load",
        "Time to check, copy and load a version.",
        "s",
        quantiles("adapter_load_seconds"),
    ),
    Panel(
        "Seconds of a move",
        "From noticing that a name points at another version until that one serves. The version "
        "before answers meanwhile.",
        "s",
        quantiles("alias_move_seconds"),
    ),
]

STORE = [
    Panel(
        "Last look at the store",
        "Seconds since each server last saw where the aliases point. It looks each second; more "
        "than half a minute is an alert. What it serves goes on meanwhile.",
        "s",
        [Query(f"max by (instance) ({P}store_age_seconds)", "{{instance}}")],
        steps=[GREEN, (5, "yellow"), (30, "red")],
    ),
    Panel(
        "Behind the store",
        "For how many seconds a server has served another version than the alias points at, by "
        "server and adapter. Short peaks are loads.",
        "s",
        [
            Query(
                f"max by (instance, adapter) ({P}adapter_behind_seconds{{{ADAPTER}}})",
                "{{instance}} {{adapter}}",
            )
        ],
        steps=[GREEN, (2, "yellow"), (30, "red")],
    ),
    Panel(
        "Requests to the bucket",
        "Requests a second of each server by kind: one get while nothing moves. Repetitions after "
        "an error are not counted. A store in a folder makes none.",
        "reqps",
        [
            Query(
                f"sum by (instance, kind) ({rate('store_requests_total')})", "{{instance}} {{kind}}"
            )
        ],
    ),
    Panel(
        "Looks that failed",
        "Looks at the store a second that could not reach it.",
        "reqps",
        [Query(f"sum by (instance) ({rate('store_polls_total', FAILED)})", "{{instance}}")],
        steps=[GREEN, (0.1, "red")],
    ),
]

SLOTS = [
    Panel(
        "Slots",
        "LoRA slots (--max-loras) and those whose version answers or is pinned. All busy for long, "
        "with a queue: raise --max-loras.",
        "short",
        [Query(f"sum({P}slots_busy)", "busy"), Query(f"sum({P}slots)", "slots", dashed=True)],
        width=8,
    ),
    Panel(
        "Queue",
        "Requests that wait for their adapter's slot. New ones are sent away at --max-waiting.",
        "short",
        [Query(f"sum({P}queue_requests)", "waiting")],
        width=8,
    ),
    Panel(
        "Wait for a slot",
        "How long requests waited for their adapter's slot.",
        "s",
        quantiles("queue_wait_seconds"),
        width=8,
    ),
    Panel(
        "Requests in flight",
        "Requests that each version in the engine answers now.",
        "short",
        [Query(f"sum by (adapter, version) ({P}adapter_requests_in_flight{{{ADAPTER}}})", VERSION)],
        width=8,
    ),
    Panel(
        "Adapters by state",
        "Available: in the store, not in the engine. Resident: in the engine. Draining: finishes "
        "its requests and goes. Refused: does not load; the log has the reason.",
        "short",
        [Query(f"sum by (state) ({P}adapters)", "{{state}}")],
        width=8,
    ),
    Panel(
        "Adapters",
        "Every version in the engine, loading or refused (its version then unknown).",
        "none",
        [
            Query(
                f"max by (adapter, version, state) ({P}adapter_info{{{ADAPTER}}})",
                "{{adapter}}",
                instant=True,
            )
        ],
        width=8,
        kind="table",
    ),
]

ERRORS = [
    Panel(
        "Requests by outcome",
        "ok; aborted: the client hung up; refused: 4xx; shed: 429 or 503, come again later; error: "
        "5xx. All adapters: a request refused early has none.",
        "reqps",
        [Query(f"sum by (outcome) ({rate('requests_total')})", "{{outcome}}")],
        width=12,
        stacked=True,
    ),
    Panel(
        "What did not end well",
        "Requests not answered in full, by adapter and mode; unknown: none was found for them.",
        "reqps",
        [
            Query(
                f"sum by (adapter, mode, outcome) ({rate('requests_total', NOT_OK)})",
                "{{outcome}} {{adapter}} {{mode}}",
            )
        ],
        width=12,
    ),
]

ENGINE = [
    Panel(
        "Running and waiting",
        "Sequences in vLLM's batch, and those it has no room for. These hold a slot already; the "
        "queue for slots is counted above.",
        "short",
        [
            Query(f"sum({vllm('vllm:num_requests_running')})", "running"),
            Query(f"sum({vllm('vllm:num_requests_waiting')})", "waiting"),
        ],
        width=8,
    ),
    Panel(
        "KV cache",
        "Share of the KV blocks in use. Near 100 % vLLM preempts.",
        "percentunit",
        [Query(f"max({vllm('vllm:kv_cache_usage_perc')})", "in use")],
        width=8,
        max=1,
    ),
    Panel(
        "Preemptions",
        "Sequences a second put aside for want of KV blocks; their work is done again.",
        "cps",
        [
            Query(
                f"sum({vllm('rate(vllm:num_preemptions_total[$__rate_interval])')})", "preemptions"
            )
        ],
        width=8,
    ),
    Panel(
        "Prefix cache",
        "Share of prompt tokens found in the cache. Gated requests of all adapters share the "
        "base's.",
        "percentunit",
        [
            Query(
                f"sum({vllm('rate(vllm:prefix_cache_hits_total[$__rate_interval])')}) / "
                f"sum({vllm('rate(vllm:prefix_cache_queries_total[$__rate_interval])')})",
                "hits",
            )
        ],
        width=12,
        max=1,
    ),
    Panel(
        "Held for gated requests",
        "Gates the scheduler holds and answers the front end puts together. Both are 0 on an idle "
        "server; anything else there is a leak.",
        "short",
        [Query(f"sum({P}gate_requests)", "gates"), Query(f"sum({P}gate_answers)", "answers")],
        width=12,
    ),
]

ROWS = {
    "Overview": OVERVIEW,
    "Latency": LATENCY,
    "Throughput": THROUGHPUT,
    "The gate": GATE,
    "Swaps": SWAPS,
    "Store": STORE,
    "Slots, queue and adapters": SLOTS,
    "Errors": ERRORS,
    "vLLM": ENGINE,
}
