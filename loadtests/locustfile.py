"""Streaming chat users against the base and its adapters.

    locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8000 --users 8 \\
        --run-time 30s --problems problems.jsonl --mix base=1,tiny-math=3

Besides each request as a whole (`POST`), three statistics of the stream are recorded under types of
their own, by model: `ttft` (ms to the first token), `inter-token` (mean ms between tokens) and
`tokens/s` (one request's decoding rate: the number in the column is a rate, not a time).
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import requests
from locust import HttpUser, constant, events, task
from locust.env import Environment

PERCENTILES = (0.5, 0.9, 0.99)


class Load:
    """What the users draw from; filled when the test starts."""

    problems: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    headers: dict[str, str] = {}  # noqa: RUF012


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our own flags, beside locust's."""
    parser.add_argument("--problems", required=True, help="JSONL with a field `problem`")
    parser.add_argument(
        "--mix",
        default="",
        help="shares of traffic, such as base=1,tiny-math=3; default: all models alike",
    )
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument(
        "--api-key",
        default=os.environ.get("REASONMAXXER_API_KEY", ""),
        help="default: the environment's REASONMAXXER_API_KEY",
        include_in_web_ui=False,
    )
    parser.add_argument("--results", default="runs/loadtest", help="folder for summary.json")


def shares(mix: str, models: list[str]) -> dict[str, float]:
    """Model -> share of traffic. `base` names the first of `models`, as the server lists them.

    Raises:
        ValueError: `mix` is not NAME=NUMBER,..., or names a model the server does not have.
    """
    if not mix:
        return dict.fromkeys(models, 1.0)
    found: dict[str, float] = {}
    for part in mix.split(","):
        name, _, weight = part.partition("=")
        name = models[0] if name == "base" else name
        if name not in models:
            raise ValueError(f"--mix: '{name}' is not served; there are: base, {', '.join(models)}")
        try:
            found[name] = float(weight)
        except ValueError:
            raise ValueError(f"--mix: '{part}' is not NAME=NUMBER") from None
    return found


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the problems, and ask the server for its models."""
    options = environment.parsed_options
    assert options is not None
    lines = Path(options.problems).read_text(encoding="utf-8").splitlines()
    Load.problems = tuple(json.loads(line)["problem"] for line in lines if line.strip())
    Load.headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    answer = requests.get(f"{environment.host}/v1/models", headers=Load.headers, timeout=30)
    answer.raise_for_status()
    mix = shares(options.mix, [card["id"] for card in answer.json()["data"]])
    Load.models, Load.weights = tuple(mix), tuple(mix.values())


class ChatUser(HttpUser):
    """Asks one problem after another and reads the answer as it is written."""

    wait_time = constant(0)

    @task
    def chat(self) -> None:
        """One streamed chat completion."""
        options = self.environment.parsed_options
        model = random.choices(Load.models, Load.weights)[0]
        body = {
            "model": model,
            "messages": [{"role": "user", "content": random.choice(Load.problems)}],
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        start = time.perf_counter()
        arrivals: list[float] = []
        tokens, finished = 0, False
        with self.client.post(
            "/v1/chat/completions",
            json=body,
            headers=Load.headers,
            name=model,
            stream=True,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}: {response.text[:200]}")
                return
            for line in response.iter_lines():
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                chunk = json.loads(line[len(b"data: ") :])
                if "error" in chunk:
                    response.failure(f"in the stream: {chunk['error']}")
                    return
                for choice in chunk["choices"]:
                    if choice["delta"].get("content"):
                        arrivals.append(time.perf_counter())
                    finished = finished or choice["finish_reason"] is not None
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            # locust stops its clock at the headers.
            response.request_meta["response_time"] = 1000 * (time.perf_counter() - start)
            if not finished:
                response.failure("the stream ended without a finish_reason")
                return
        if arrivals:
            self._record("ttft", model, 1000 * (arrivals[0] - start), tokens)
        if tokens > 1 and arrivals[-1:] > arrivals[:1]:
            seconds = arrivals[-1] - arrivals[0]
            self._record("inter-token", model, 1000 * seconds / (tokens - 1), tokens)
            self._record("tokens/s", model, (tokens - 1) / seconds, tokens)

    def _record(self, kind: str, model: str, value: float, tokens: int) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=model,
            response_time=value,
            response_length=tokens,
            exception=None,
            context={},
        )


@events.test_stop.add_listener
def summarize(environment: Environment, **_: Any) -> None:
    """Write summary.json: per model the requests, failures, throughput and the three statistics."""
    options = environment.parsed_options
    assert options is not None
    stats = environment.stats
    seconds = max(time.time() - stats.start_time, 1e-9)
    summary: dict[str, Any] = {"host": environment.host, "seconds": round(seconds, 2), "models": {}}
    for (name, kind), entry in sorted(stats.entries.items()):
        model = summary["models"].setdefault(name, {})
        if kind == "POST":
            model["requests"] = entry.num_requests
            model["failures"] = entry.num_failures
        if kind == "ttft":  # its response_length is the number of tokens
            model["tokens_per_second"] = round(entry.total_content_length / seconds, 1)
        key = {"POST": "request_ms", "ttft": "ttft_ms", "inter-token": "inter_token_ms"}.get(
            kind, "request_tokens_per_second"
        )
        model[key] = {"mean": round(entry.avg_response_time, 2)} | {
            f"p{share * 100:g}": entry.get_response_time_percentile(share) for share in PERCENTILES
        }
    path = Path(options.results, "summary.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
