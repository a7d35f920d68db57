"""No question asks for a metric that nobody has, and none of ours goes unasked."""

from __future__ import annotations

import re

import pytest

from dashboards.queries import Question, alerts, metrics, panels, recordings

COUNTERS = {
    *("generated_tokens", "gated_tokens", "replays", "requests"),
    *("adapter_loads", "alias_moves", "evictions", "store_polls", "store_requests"),
}
HISTOGRAMS = {
    *("decision_entropy_nats", "gated_token_base_rank"),
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_duration_seconds"),
    *("adapter_load_seconds", "alias_move_seconds", "queue_wait_seconds"),
}
GAUGES = {
    *("adapters", "adapter_info", "adapter_requests_in_flight", "adapter_tau_nats"),
    *("adapter_calibrated_gate_rate", "slots", "slots_busy", "queue_requests"),
    *("gate_requests", "gate_answers", "default_gate_rate", "default_gate_tokens"),
    *("store_age_seconds", "adapter_behind_seconds"),
}
OURS = (
    {f"reasonmaxxer_{name}_total" for name in COUNTERS}
    | {f"reasonmaxxer_{name}{end}" for name in HISTOGRAMS for end in ("_bucket", "_sum", "_count")}
    | {f"reasonmaxxer_{name}" for name in GAUGES}
)
QUESTIONS = [*panels(), *recordings(), *alerts()]
RECORDED = {question.expr for question in recordings() if question.where.startswith("record ")}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.where)
def test_names_are_known(question: Question) -> None:
    for name in metrics(question.expr):
        assert name in OURS | RECORDED | {"up", "ALERTS"} or re.match(r"vllm:[a-z_]+$", name), name


def test_every_metric_is_shown() -> None:
    used = set().union(*(metrics(question.expr) for question in QUESTIONS))
    sums = {f"reasonmaxxer_{name}{end}" for name in HISTOGRAMS for end in ("_sum", "_count")}
    assert OURS - sums <= used


def test_other_servers_and_alerts_are_left_out() -> None:
    """Of a Prometheus that watches plain vLLM too, or whose Watchdog always fires."""
    for where, expr in panels():
        ours = expr.count("and on (job, instance) reasonmaxxer_slots")
        assert ours == expr.count("vllm:"), where
        assert expr.count("ALERTS{") == expr.count('ALERTS{alertname=~"Reasonmaxxer.*"'), where


def test_names_are_found_in_an_expression() -> None:
    expr = """
      sum by (adapter, mode) (rate(a_total{x="b{c}", y=~"d|e"}[5m])) / on(job) group_left f:g:h > 2
        and max without (z) (vllm:i) == bool 0 or vector(0)
    """
    assert metrics(expr) - {"group_left"} == {"a_total", "f:g:h", "vllm:i"}
