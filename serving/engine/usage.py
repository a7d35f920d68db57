"""Gated tokens in the answer: `usage.completion_tokens_details.gated_tokens`, and the trace.

vLLM builds its answers out of reach of a plugin, so they are completed on their way out: around
`create_chat_completion` and `create_completion` (vllm/entrypoints/openai/*/serving.py). A request
and its sequences find each other by a number in the sampling parameters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any

from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo

from serving.engine.plan import TALLY, TRACE
from serving.engine.report import TALLIES, Tally

_numbers = itertools.count(1)
_current: ContextVar[Tally | None] = ContextVar("gate_tally", default=None)


def ticket() -> dict[str, int]:
    """For the sampling parameters of the request being answered; empty elsewhere."""
    tally = _current.get()
    if tally is None:
        return {}
    number = next(_numbers)
    TALLIES[number] = tally
    tally.open = True
    return {TALLY: number}


def _details(usage: dict[str, Any], tally: Tally) -> None:
    details = usage.get("completion_tokens_details") or {}
    usage["completion_tokens_details"] = details | {"gated_tokens": tally.gated}


def _complete(answer: Any, tally: Tally, trace: bool) -> Any:
    """A whole answer."""
    usage = getattr(answer, "usage", None)
    if usage is None:
        return answer  # an error
    details = usage.completion_tokens_details or CompletionTokenUsageInfo()
    details.gated_tokens = tally.gated
    usage.completion_tokens_details = details
    if trace:
        for choice in answer.choices:
            choice.gate_trace = tally.trace(choice.index)
    return answer


async def _stream(
    chunks: AsyncGenerator[str, None], tally: Tally, trace: bool
) -> AsyncGenerator[str, None]:
    """The chunks of a streamed answer; only those with usage or an end are looked into."""
    async for chunk in chunks:
        usage = '"usage":{' in chunk
        ends = trace and '"finish_reason":"' in chunk
        if not (usage or ends) or not chunk.startswith("data: {"):
            yield chunk
            continue
        answer = json.loads(chunk.removeprefix("data: "))
        if answer.get("usage"):
            _details(answer["usage"], tally)
        for choice in answer.get("choices", []):
            if trace and choice.get("finish_reason"):
                choice["gate_trace"] = tally.trace(choice.get("index", 0))
        yield f"data: {json.dumps(answer, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _completed(stock: Callable[..., Any], many_prompts: bool) -> Callable[..., Any]:
    @wraps(stock)
    async def create(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        tally = Tally(many_prompts, getattr(request, "n", None) or 1)
        token = _current.set(tally)
        try:
            answer = await stock(self, request, *args, **kwargs)
        finally:
            _current.reset(token)
        if not tally.open:
            return answer
        trace = bool((request.vllm_xargs or {}).get(TRACE))
        if hasattr(answer, "__aiter__"):
            return _stream(answer, tally, trace)
        return _complete(answer, tally, trace)

    create.reasonmaxxer = True  # type: ignore[attr-defined]
    return create


def install() -> None:
    """Complete the answers of this process's server; again is harmless."""
    for owner, name in (
        (OpenAIServingChat, "create_chat_completion"),
        (OpenAIServingCompletion, "create_completion"),
    ):
        stock = getattr(owner, name)
        if not hasattr(stock, "reasonmaxxer"):
            setattr(owner, name, _completed(stock, many_prompts=name == "create_completion"))
