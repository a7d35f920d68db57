"""Streams against a running server, as the serving benchmarks ask them."""

from __future__ import annotations

import json
import math
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
    arrivals: list[float] = field(default_factory=list)  # seconds since the request, of each piece

    def whole(self) -> str:
        """The text. Raises RuntimeError where there was an error."""
        if self.error:
            raise RuntimeError(self.error)
        return self.text

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces of text: tokens, or several together where the client is late."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def stream(
    client: httpx.AsyncClient, model: str, prompt: str, tokens: int, chat: bool = False, **more: Any
) -> Answer:
    """A greedy completion of exactly `tokens` tokens; with `chat`, of a message."""
    asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body = {
        "model": model,
        **asked,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        **more,
    }
    answer = Answer()
    start = time.perf_counter()
    try:
        async with client.stream("POST", path, json=body) as response:
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
                texts = [text for one in chunk["choices"] if (text := _text(one)) is not None]
                if texts:
                    answer.text += texts[0] or ""
                    answer.arrivals.append(time.perf_counter() - start)
    except httpx.HTTPError as error:
        answer.error = repr(error)
    return answer


def _text(choice: dict[str, Any]) -> str | None:
    """The text of a piece; the first piece of a chat has none, and the last one of LiteLLM's."""
    if "delta" in choice:
        return choice["delta"].get("content") or None
    return choice.get("text")


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


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
