"""A stream of chat, read as it comes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from loadtests.answers import Answer


def listen(
    answer: Answer,
    start: float,
    read: Callable[[bytes], bytes],
    heard: Callable[[float], None] | None = None,
) -> None:
    """Read to the end, and note in `answer` what came when.

    Args:
        start: perf_counter when the request was sent.
        read: up to a separator and with it; empty at the end.
        heard: told the perf_counter of each piece of text.

    Raises:
        ValueError: it is broken off, or not what a stream of chat is.
    """
    before, finished = start, False
    while event := read(b"\n\n"):
        if not event.startswith(b"data: "):
            continue
        if event.startswith(b"data: [DONE]"):
            break
        now = time.perf_counter()
        chunk = json.loads(event[len(b"data: ") :])
        if "error" in chunk:
            raise ValueError(f"in the stream: {chunk['error']}")
        for choice in chunk["choices"]:
            if choice["delta"].get("content"):
                passed = 1000 * (now - before)
                if answer.ttft is None:
                    answer.ttft = passed
                else:
                    answer.gaps.append(passed)
                before = now
                if heard is not None:
                    heard(now)
            finished = finished or choice["finish_reason"] is not None
        answer.served = chunk.get("model") or answer.served
        if usage := chunk.get("usage"):
            answer.tokens, answer.prompt = usage["completion_tokens"], usage["prompt_tokens"]
            answer.gated = (usage.get("completion_tokens_details") or {}).get("gated_tokens")
    if not finished:
        raise ValueError("the stream ended without a finish_reason")
    while read(b"\n\n"):  # the end of the body, so that the connection is used again
        pass
