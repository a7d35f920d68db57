"""What /metrics says is what happened: counted by hand, and against ten thousand answers."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import shutil
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from support import Server, run_command

from adapters.manifest import NAME_PATTERN
from serving import request
from serving.metrics import ALWAYS, BASE, GATED, UNKNOWN, Distribution, Labels, Metrics
from serving.metrics_page import without_what_is_gone
from serving.request import RequestContext
from vllm_gate.token_report import Sequence

PREFIX = "reasonmaxxer_"
REQUESTS = int(os.environ.get("REASONMAXXER_COUNTED_REQUESTS", "600"))
USERS = 48

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(page: str) -> Samples:
    """(sample, sorted labels) -> value, of our own families."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        if family.name.startswith(PREFIX)
        for sample in family.samples
    }


def scrape(server: Server) -> Samples:
    """The server's page."""
    return parse(server.page())


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of `name` with these labels."""
    wanted = set(labels.items())
    return sum(
        value
        for (sample, its), value in samples.items()
        if sample == PREFIX + name and wanted <= set(its)
    )


# ------------------------------------------------------------------------------------ by hand


def test_a_page_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    metrics = Metrics()
    monkeypatch.setattr(request, "METRICS", metrics)
    monkeypatch.setattr(request.time, "perf_counter", lambda: now[0])
    one = RequestContext(begun=now[0])
    one.bind("prod:gated", "math@0123456789ab", GATED)
    sequence = Sequence(one)
    for after, mark in (
        (0.3, {"gated": True, "entropy": 0.9, "rank": 2}),
        (0.004, None),
        (0.004, {"gated": False, "entropy": 0.1}),
        (0.02, {"gated": True, "entropy": 2.0, "rank": None}),
    ):
        now[0] += after
        one.tokens(sequence, 1, [mark] if mark else [])
    one.end(200, aborted=False, broken=False)
    other = RequestContext()
    other.end(404, aborted=False, broken=False)
    hasty = RequestContext()
    hasty.bind("tiny", None, BASE)
    hasty.end(200, aborted=True, broken=False)

    samples = parse(metrics.page())
    mine = {"adapter": "math", "version": "0123456789ab", "mode": "gated"}
    assert total(samples, "generated_tokens_total", **mine) == 4
    assert total(samples, "gated_tokens_total", **mine) == 2
    assert total(samples, "requests_total", outcome="ok", **mine) == 1
    assert total(samples, "requests_total", outcome="refused", adapter=UNKNOWN) == 1
    assert total(samples, "requests_total", outcome="aborted", adapter="base") == 1
    assert total(samples, "requests_total") == 3
    assert total(samples, "time_to_first_token_seconds_bucket", le="0.25", **mine) == 0
    assert total(samples, "time_to_first_token_seconds_bucket", le="0.5", **mine) == 1
    assert total(samples, "inter_token_latency_seconds_bucket", le="0.005", **mine) == 2
    assert total(samples, "inter_token_latency_seconds_count", **mine) == 3
    assert math.isclose(total(samples, "inter_token_latency_seconds_sum", **mine), 0.028)
    assert math.isclose(total(samples, "request_duration_seconds_sum", **mine), 0.328)
    assert total(samples, "request_duration_seconds_count", adapter="base") == 0
    assert total(samples, "decision_entropy_nats_bucket", le="1.0", **mine) == 1
    assert total(samples, "decision_entropy_nats_bucket", le="2.0", **mine) == 2
    assert total(samples, "gated_token_base_rank_bucket", le="2.0", **mine) == 1
    assert total(samples, "gated_token_base_rank_bucket", le="20.0", **mine) == 1
    assert total(samples, "gated_token_base_rank_count", **mine) == 2


@pytest.mark.parametrize(
    ("status", "aborted", "broken", "outcome"),
    [
        (200, False, False, "ok"),
        (200, True, False, "aborted"),
        (None, True, False, "aborted"),
        (200, False, True, "error"),
        (None, False, False, "error"),
        (500, False, False, "error"),
        (429, False, False, "shed"),
        (503, False, False, "shed"),
        (400, False, False, "refused"),
        (401, False, False, "refused"),
    ],
)
def test_outcomes(status: int | None, aborted: bool, broken: bool, outcome: str) -> None:
    one = RequestContext()
    one.bind("m", "outcomes@000000000000", ALWAYS)
    assert one.series is not None
    before = Counter(one.series.outcomes)
    one.end(status, aborted, broken)
    assert one.series.outcomes - before == {outcome: 1}


@given(st.lists(st.floats(0, 1e4), max_size=50))
def test_a_distribution_counts_as_prometheus_does(values: list[float]) -> None:
    bounds = (0.5, 1.0, 10.0)
    mine = Distribution("x", bounds, Labels("a", "b", "gated"))
    for value in values:
        mine.text()  # a scrape between any two
        mine.observe(value)
    assert mine.text() == mine.text()
    lines = [line.rsplit(" ", 1) for line in mine.text().splitlines()]
    wanted = [*(sum(v <= bound for v in values) for bound in bounds), len(values)]
    assert [int(n) for _, n in lines[:4]] == wanted
    assert math.isclose(float(lines[4][1]), sum(values), abs_tol=1e-6)
    assert int(lines[5][1]) == len(values)


@given(st.from_regex(NAME_PATTERN, fullmatch=True), st.from_regex(r"[0-9a-f]{12}", fullmatch=True))
def test_every_name_of_a_store_stands_in_a_page(name: str, content: str) -> None:
    metrics = Metrics()
    labels = Labels.of(f"{name}@{content}", GATED)
    metrics.series(labels).outcomes["ok"] += 1
    samples = parse(metrics.page())
    wanted = {"adapter": name, "version": content, "mode": "gated"}
    assert total(samples, "requests_total", **wanted) == 1


def of_the_same_samples(family: Metric) -> Metric:
    """A family that can lose samples without `family` losing them."""
    again = Metric(family.name, family.documentation, family.type)
    again.samples = list(family.samples)
    return again


def test_five_hundred_versions_leave_no_more_series_than_twenty() -> None:
    metrics = Metrics()
    live: set[str] = set()
    metrics.live = lambda: live
    replays = CounterMetricFamily("reasonmaxxer_replays", "", labels=("adapter", "version"))
    adapters = ("running_lora_adapters", "waiting_lora_adapters")
    loras = GaugeMetricFamily("vllm:lora_requests_info", "", labels=adapters)
    untouched = GaugeMetricFamily("vllm:num_requests_running", "", value=3)

    def size() -> int:
        """Series of the page, with those that are gathered from all processes."""
        gathered = map(of_the_same_samples, (replays, loras, untouched))
        families = {one.name: one for one in without_what_is_gone(gathered, metrics.versions())}
        assert [one.value for one in families["vllm:num_requests_running"].samples] == [3]
        assert "vllm:lora_requests_info" not in families  # serving/router_metrics.py has it
        mine = {
            f"{one.labels['adapter']}@{one.labels['version']}"
            for one in families["reasonmaxxer_replays"].samples
        }
        assert mine >= live
        lines = [line for line in metrics.page().splitlines() if not line.startswith("#")]
        return len(lines) + sum(len(one.samples) for one in families.values())

    stays = "stays@0123456789ab"
    replays.add_metric(stays.split("@"), 1)
    sizes: dict[int, int] = {}
    for number in range(1, 501):
        version = f"math@{number:012x}"
        live = {version, stays}  # the one before is retired
        for one in (stays, version):
            for mode in (ALWAYS, GATED):
                metrics.series(Labels.of(one, mode)).outcomes["ok"] += 1
        replays.add_metric(version.split("@"), 1)
        loras.add_metric([version, ""], number)
        sizes[number] = size()
    assert sizes[500] == sizes[20] == max(sizes.values())
    samples = parse(metrics.page())
    assert sizes[500] == size() > len(samples)  # each line is a series
    assert total(samples, "requests_total", adapter="stays") == 1000  # it lost nothing
    last = {"adapter": "math", "version": f"{499:012x}"}
    assert total(samples, "requests_total", **last) == 2  # what Prometheus may not have seen yet


# --------------------------------------------------------------------------------- by the server


def settled(server: Server, requests: float) -> Samples:
    """The page once all requests are over."""
    for _ in range(600):
        samples = scrape(server)
        idle = not total(samples, "adapter_requests_in_flight")
        if idle and total(samples, "requests_total") >= requests:
            return samples
    raise AssertionError("the server does not come to rest")


def preemptions(server: Server) -> float:
    """How many vLLM has counted."""
    found = re.search(r"^vllm:num_preemptions_total\{.*\} (\S+)$", server.page(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def logged(server: Server) -> list[dict[str, Any]]:
    """What the log says of requests."""
    lines = (line for line in server.log.splitlines() if line.startswith("{"))
    return [json.loads(line) for line in lines if '"message": "request"' in line]


async def one_request(client: httpx.AsyncClient, number: int) -> dict[str, Any]:
    """A random one; what the client has seen of it."""
    choose = random.Random(number)
    model = choose.choice(("tiny-qwen2", "alpha", "alpha:gated", "alpha:gated"))
    kind = choose.choices(("whole", "stream", "hang up", "stop", "bad"), (4, 4, 2, 1, 1))[0]
    body: dict[str, Any] = {
        "model": model,
        "prompt": f"What is {choose.randrange(100)}-11*7+{choose.randrange(20)}?",
        "max_tokens": choose.choice((1, 8, 24, 60)),
        "temperature": 1.0,
        "ignore_eos": choose.random() < 0.5,
        "n": choose.choice((1, 1, 2)),
    }
    if model.endswith(":gated"):
        body["vllm_xargs"] = {"gate_tau": choose.choice((0.0, 0.1, 0.5, 2.0))}
    if kind == "stop":
        body["stop"] = ["7", "So"]
    if kind == "bad":
        body["max_tokens"] = -1
    seen: dict[str, Any] = {"kind": kind, "model": model, "id": None, "usage": None}
    if kind in ("whole", "stop", "bad"):
        response = await client.post("/v1/completions", json=body)
        seen["status"] = response.status_code
        if response.status_code == 200:
            seen |= {"id": response.json()["id"], "usage": response.json()["usage"]}
        return seen
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    leave_after = choose.randrange(6) if kind == "hang up" else None
    async with client.stream("POST", "/v1/completions", json=body) as response:
        seen["status"] = response.status_code
        chunks = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            seen["id"] = chunk["id"]
            seen["usage"] = chunk.get("usage") or seen["usage"]
            chunks += 1
            if leave_after is not None and chunks > leave_after:
                break
    return seen


async def traffic(server: Server) -> list[dict[str, Any]]:
    """All requests, USERS at a time."""
    limits = httpx.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {server.key}"}
    numbers = iter(range(REQUESTS))
    results = []
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, limits=limits, timeout=300
    ) as client:

        async def user() -> None:
            for number in numbers:
                results.append(await one_request(client, number))

        await asyncio.gather(*(user() for _ in range(USERS)))
    return results


def test_counters_equal_the_answers(pressed: Server) -> None:
    """On a server that preempts; other tests may have asked it before."""
    before, lines = settled(pressed, 0), len(logged(pressed))
    preempted_before = preemptions(pressed)
    results = asyncio.run(traffic(pressed))
    now = settled(pressed, total(before, "requests_total") + REQUESTS)
    samples = {name: value - before.get(name, 0.0) for name, value in now.items()}
    log = logged(pressed)[lines:]
    # The engine's id has the number of the prompt behind the answer's.
    by_id = {(line["request_id"] or "").rpartition("-")[0]: line for line in log}
    kinds = Counter(one["kind"] for one in results)
    assert len(results) == REQUESTS
    assert all(kinds[kind] > 5 for kind in ("whole", "stream", "hang up", "stop", "bad")), kinds

    # Each answer and its line of the log say the same.
    for one in results:
        if one["kind"] == "bad":
            assert one["status"] == 400
            continue
        assert one["status"] == 200, one
        entry = by_id[one["id"]]
        if one["usage"] is not None:
            details = one["usage"].get("completion_tokens_details") or {}
            told = (one["usage"]["completion_tokens"], details.get("gated_tokens", 0))
            assert told == (entry["generated"], entry["gated"]), one
            assert entry["outcome"] in ("ok", "aborted")  # left with the last chunk
        elif one["kind"] != "hang up":
            raise AssertionError(f"no usage: {one}")

    # And the counters are their sum, exactly.
    for mode in (BASE, ALWAYS, GATED):
        mine = [entry for entry in log if entry["mode"] == mode]
        assert total(samples, "generated_tokens_total", mode=mode) == sum(
            entry["generated"] for entry in mine
        )
        for outcome in ("ok", "aborted"):
            assert total(samples, "requests_total", mode=mode, outcome=outcome) == sum(
                entry["outcome"] == outcome for entry in mine
            )
    gated = sum(entry["gated"] for entry in log)
    assert gated > 0
    assert total(samples, "gated_tokens_total") == gated
    assert total(samples, "decision_entropy_nats_count") == gated
    assert total(samples, "gated_token_base_rank_count") == gated
    # A client that hangs up, and a stop string, may leave a replay without its token.
    assert gated <= total(samples, "replays_total") <= gated + REQUESTS
    assert total(samples, "requests_total", outcome="refused") == kinds["bad"]
    assert total(samples, "requests_total", outcome="aborted") > 0
    assert total(samples, "gate_requests") == 0
    preempted = preemptions(pressed) - preempted_before
    assert preempted > 0
    print(f"{REQUESTS} requests, {kinds}, {gated} gated, {preempted:.0f} preemptions")


def test_hostile_names_add_no_series(pressed: Server) -> None:
    names = ["../../etc/passwd", 'x"} 1\nevil 1', "a" * 5000, "alpha@ffffffffffff", "", "ü", "{}"]
    names += [f"nobody-{number}" for number in range(100)]
    before = scrape(pressed)
    headers = {"Authorization": f"Bearer {pressed.key}"}
    with httpx.Client(base_url=pressed.url, headers=headers) as client:
        for name in names:
            body = {"model": name, "prompt": "1", "max_tokens": 1}
            assert client.post("/v1/completions", json=body).status_code in (200, 400, 404)
        client.headers["Authorization"] = "Bearer wrong"
        assert client.post("/v1/completions", json={}).status_code == 401
    after = scrape(pressed)
    assert set(after) - set(before) <= {key for key in after if ("outcome", "refused") in key[1]}
    refused = total(after, "requests_total", outcome="refused")
    assert refused - total(before, "requests_total", outcome="refused") == len(names) - 1 + 1


def test_promtool_finds_nothing_wrong(pressed: Server) -> None:
    if shutil.which("promtool") is None and "CI" not in os.environ:
        pytest.skip("promtool is not installed")
    lines = (one for one in pressed.page().splitlines() if re.match(rf"(# \w+ )?{PREFIX}", one))
    ours = "".join(line + "\n" for line in lines)
    assert ours.count("# TYPE") >= 20
    checked = run_command("promtool", "check", "metrics", input=ours)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
