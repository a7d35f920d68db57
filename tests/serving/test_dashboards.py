"""Every question of dashboards/ to a real Prometheus that watches the real server under load."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import ROOT, Server

from dashboards.queries import Question, alerts, panels, recordings
from demo.server import free_port

DEADLINE = 120  # seconds; a busy machine takes a third of them
MESSAGES = [{"role": "user", "content": "What is 9-11*7+12+9?"}]
ENDLESS = {"ignore_eos": True}
# Without loads, moves and waits within the minute there is no quantile of them.
SELDOM = re.compile("adapter_load_seconds|alias_move_seconds|queue_wait_seconds")
# Asked of a store in a bucket alone: test_follower.py has their data.
BUCKET = re.compile("store_requests_total")
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None and not os.environ.get("CI"),
    reason="prometheus is not installed",
)


class Prometheus:
    """Its query API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **arguments: str) -> Any:
        """The data of an answer; an expression it cannot read raises."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=arguments, timeout=10)
        return answer.raise_for_status().json()["data"]

    def values(self, expr: str) -> list[float]:
        """What it answers now."""
        return [float(one["value"][1]) for one in self.get("query", query=expr)["result"]]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with the shipped configuration and rules; it looks every second."""
    shutil.copytree(ROOT / "dashboards" / "rules", folder / "rules")
    shipped = (ROOT / "dashboards" / "prometheus.yml").read_text()
    (folder / "prometheus.yml").write_text(re.sub(r"(_interval:) 5s", r"\1 1s", shipped))
    (folder / "targets.yml").write_text(json.dumps([{"targets": [target]}]))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], cwd=folder, stdout=log, stderr=log
        )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(20)


def traffic(server: Server) -> None:
    """One request of every kind: each mode, streams, one refused, one whose client hangs up."""
    import openai

    client = server.client()
    for model in (server.base.name, "alpha", "alpha:gated"):
        asked = {"model": model, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
        client.chat.completions.create(**asked)
        list(client.chat.completions.create(**asked, stream=True))
    with suppress(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    endless = client.chat.completions.create(
        model="alpha", messages=MESSAGES, max_tokens=400, stream=True, extra_body=ENDLESS
    )
    next(iter(endless))
    endless.close()


def with_bool(question: Question) -> Question:
    """An alert whose comparisons give 0 or 1, so that it answers while nothing is wrong too."""
    return Question(question.where, re.sub(r"(==|>=|<=|>|<)", r"\1 bool", question.expr))


def answered(prometheus: Prometheus, question: Question) -> bool:
    """Whether it has data; without a number only where that may be."""
    values = prometheus.values(question.expr)
    return any(not math.isnan(v) for v in values) or bool(values and SELDOM.search(question.expr))


@needs_prometheus
def test_every_question_has_an_answer(gated: Server, tmp_path: Path) -> None:
    questions = [*panels(), *recordings(), *map(with_bool, alerts())]
    assert len(questions) > 80
    open_ = [question for question in questions if not BUCKET.search(question.expr)]
    assert len(questions) - len(open_) == 1
    with prometheus(tmp_path, urllib.parse.urlsplit(gated.url).netloc) as asked:
        deadline = time.monotonic() + DEADLINE
        while open_ and time.monotonic() < deadline:
            traffic(gated)
            with suppress(httpx.HTTPError):  # it starts
                asked.values("vector(1)")
                open_ = [question for question in open_ if not answered(asked, question)]
        assert not open_, "\n".join(map(str, open_))

        for question in alerts():
            asked.values(question.expr)  # as they are: valid
        rules = [r for group in asked.get("rules")["groups"] for r in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        for variable, expected in (("adapter", "alpha"), ("mode", "gated")):
            values = asked.get(
                f"label/{variable}/values", **{"match[]": "reasonmaxxer_requests_total"}
            )
            assert {expected, "base", "unknown"} <= set(values)
        outcomes = 'sum by (outcome) (reasonmaxxer_requests_total{adapter=~"alpha|unknown"})'
        assert {"ok", "refused", "aborted"} <= {
            one["metric"]["outcome"] for one in asked.get("query", query=outcomes)["result"]
        }
