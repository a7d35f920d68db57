"""Streams against a running server, as the serving benchmarks ask them."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Answer:
    """One streamed completion."""

    version: str = ""  # that answered, NAME@HASH; of the base, its name
    text: str = ""
    status: int = 0
    error: str = ""
    arrivals: list[float] = field(default_factory=list)  # seconds since the request, of each token

    def whole(self) -> str:
        """The text. Raises RuntimeError where there was an error."""
        if self.error:
            raise RuntimeError(self.error)
        return self.text

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def stream(
    client: httpx.AsyncClient, model: str, prompt: str, tokens: int, **more: Any
) -> Answer:
    """A greedy completion of exactly `tokens` tokens."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **more,
    }
    answer = Answer()
    start = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            answer.status = response.status_code
            if response.status_code != 200:
                answer.error = (await response.aread()).decode()[:300]
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    answer.error = str(chunk["error"])
                    return answer
                answer.version = chunk.get("system_fingerprint") or chunk["model"]
                texts = [one["text"] for one in chunk["choices"] if "text" in one]
                if texts:  # LiteLLM ends with a chunk that has none
                    answer.text += texts[0] or ""
                    answer.arrivals.append(time.perf_counter() - start)
    except httpx.HTTPError as error:
        answer.error = repr(error)
    return answer


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_mib(pid: int) -> float:
    """Memory of a process and its children, MiB."""
    import psutil

    parent = psutil.Process(pid)
    return float(
        sum(one.memory_info().rss for one in [parent, *parent.children(recursive=True)]) / 2**20
    )


def environment(**keys: str) -> None:
    """What the server started by a benchmark finds in its environment."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.update(keys)
