"""Gated tokens in the answer: `usage.completion_tokens_details.gated_tokens`, and the trace.

In the Responses API: `usage.output_tokens_details.gated_tokens`, and the trace in the response.

vLLM builds its answers out of reach of a plugin, so they are completed on their way out: around the
methods in `install` (vllm/entrypoints/openai/*/serving.py). A request and its sequences find each
other by a number in the sampling parameters.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import CompletionTokenUsageInfo

from vllm_gate.counters import ANSWERS
from vllm_gate.engine import TRACE
from vllm_gate.step_plan import TALLY
from vllm_gate.token_report import TALLIES, Tally

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
    ANSWERS.set(len(TALLIES))
    return {TALLY: number}


def _details(usage: dict[str, Any], tally: Tally) -> None:
    details = usage.get("completion_tokens_details") or {}
    usage["completion_tokens_details"] = details | {"gated_tokens": tally.gated}


def _complete(answer: Any, tally: Tally, trace: int) -> Any:
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
    chunks: AsyncGenerator[str, None], tally: Tally, trace: int
) -> AsyncGenerator[str, None]:
    """The chunks of a streamed answer; without a trace of all tokens, only some are looked into."""
    told: Counter[int] = Counter()  # by choice: entries that have gone out
    async for chunk in chunks:
        usage = '"usage":{' in chunk
        traced = trace > 1 or (trace and '"finish_reason":"' in chunk)
        if not (usage or traced) or not chunk.startswith("data: {"):
            yield chunk
            continue
        answer = json.loads(chunk.removeprefix("data: "))
        if answer.get("usage"):
            _details(answer["usage"], tally)
        for choice in answer.get("choices", []):
            index = choice.get("index", 0)
            if trace > 1:  # as it grows
                choice["gate_trace"] = tally.trace(index)[told[index] :]
                told[index] += len(choice["gate_trace"])
            elif trace and choice.get("finish_reason"):
                choice["gate_trace"] = tally.trace(index)
        yield f"data: {json.dumps(answer, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _whole_or_streamed(answer: Any, tally: Tally, trace: int) -> Any:
    """What chat and completion endpoints give."""
    if hasattr(answer, "__aiter__"):
        return _stream(answer, tally, trace)
    return _complete(answer, tally, trace)


async def _held(events: AsyncGenerator[Any, None], tally: Tally) -> AsyncGenerator[Any, None]:
    """The same events; the tally lives as long as they are streamed."""
    async for event in events:
        yield event
    del tally


def _kept(answer: Any, tally: Tally, trace: int) -> Any:  # noqa: ARG001
    """What the Responses API gives; `_response` has completed it, or will when the stream ends."""
    return _held(answer, tally) if hasattr(answer, "__aiter__") else answer


def _tallied(
    stock: Callable[..., Any],
    separator: str | None = None,
    finish: Callable[[Any, Tally, int], Any] = _whole_or_streamed,
) -> Callable[..., Any]:
    @wraps(stock)
    async def create(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        # Here and not where a tally ends: the garbage collector ends it, perhaps within
        # prometheus_client, whose lock would then be taken twice.
        ANSWERS.set(len(TALLIES))
        tally = Tally(separator, getattr(request, "n", None) or 1)
        token = _current.set(tally)
        try:
            answer = await stock(self, request, *args, **kwargs)
        finally:
            _current.reset(token)
        if not tally.open:
            return answer
        return finish(answer, tally, int((request.vllm_xargs or {}).get(TRACE) or 0))

    create.reasonmaxxer = True  # type: ignore[attr-defined]
    return create


def _response(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The Responses API makes its answer in one place: streamed, whole or in the background."""

    @wraps(stock)
    async def full(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        answer = await stock(self, request, *args, **kwargs)
        arguments = request.vllm_xargs or {}
        tally = TALLIES.get(arguments.get(TALLY, 0))
        usage = getattr(answer, "usage", None)
        if tally is not None and usage is not None:
            usage.output_tokens_details.gated_tokens = tally.gated
            if arguments.get(TRACE):
                answer.gate_trace = [
                    entry for turn in tally.reports.values() for entry in turn.trace
                ]
        return answer

    full.reasonmaxxer = True  # type: ignore[attr-defined]
    return full


def install() -> None:
    """Complete the answers of this process's server; again is harmless."""
    doors: tuple[tuple[type, str, Callable[..., Any]], ...] = (
        (OpenAIServingChat, "create_chat_completion", _tallied),
        (OpenAIServingCompletion, "create_completion", partial(_tallied, separator="-")),
        (
            OpenAIServingResponses,
            "create_responses",
            partial(_tallied, separator="_", finish=_kept),
        ),
        (OpenAIServingResponses, "responses_full_generator", _response),
    )
    for owner, name, wrap in doors:
        stock = getattr(owner, name)
        if not hasattr(stock, "reasonmaxxer"):
            setattr(owner, name, wrap(stock))
