"""ASGI middleware: gated tokens in OpenAI answers.

    usage.completion_tokens_details.gated_tokens   chat and completions
    usage.output_tokens_details.gated_tokens       the Responses API

A request with `gate_trace` also gets `gate_trace` in each choice, or in the response; a stream
brings it with the end of a choice, with `gate_trace: 2` as it grows.

Our server adds this middleware itself; `vllm serve` does with --middleware:

    vllm serve ... --middleware vllm_gate.answers.GateAnswers

vLLM's handlers run inside the middleware's task or copies of its context, so the sequences of an
answer find it by a context variable (token_report.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs

from vllm_gate import token_report
from vllm_gate.counters import ANSWERS
from vllm_gate.token_report import ANSWER, REPORT, AnswerContext

RESPONSES = re.compile(r"/v1/responses/([^/]+)(?:/cancel)?$")
CREATED = b"event: response.created\ndata: "  # how the stream of a response begins
COMPLETIONS = ("chat.completion", "chat.completion.chunk", "text_completion")  # with such a usage
KEPT = 1024  # stored responses whose reports are kept, the newest


class GateAnswers:
    """Completes the answers of gated requests; all others pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # By id: vLLM keeps such responses, and clients fetch them later.
        self._stored: OrderedDict[str, AnswerContext] = OrderedDict()
        self._keeps = envs.VLLM_ENABLE_RESPONSES_API_STORE
        token_report.install()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        return await self.follow(AnswerContext(), scope, receive, send)

    async def follow(
        self, context: AnswerContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Make `context` that of the answer while it is made."""
        fetched = RESPONSES.search(scope["path"])
        made_by = self._stored.get(fetched[1], context) if fetched else context
        keep = self._keep if self._keeps and fetched is None else None
        answer = _Answer(made_by, send, keep)
        token = ANSWER.set(context)
        try:
            await self.app(scope, receive, answer.send)
        finally:
            ANSWER.reset(token)
            answer.close()

    def _keep(self, response: str, context: AnswerContext) -> None:
        self._stored[response] = context
        if len(self._stored) > KEPT:
            self._stored.popitem(last=False)


@dataclass
class _Answer:
    """One answer on its way out."""

    context: AnswerContext
    out: Send
    keep: Callable[[str, AnswerContext], None] | None  # for who asks for the response later
    start: Message | None = None  # of a JSON answer, whose length is known at its end
    body: bytearray = field(default_factory=bytearray)
    told: Counter[int] = field(default_factory=Counter)  # by choice: entries that have gone out
    counted: bool = False
    streamed: bool = False

    async def send(self, message: Message) -> None:
        """One message of the answer."""
        if self.context.gated and not self.counted:
            self.counted = True
            ANSWERS.inc()
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            self.context.headers(headers)
            kind = headers.get("content-type", "")
            self.streamed = kind.startswith("text/event-stream")
            if kind.startswith("application/json") and message["status"] < 400:
                self.start = message
                return
        elif message["type"] == "http.response.body":
            if self.start is not None:
                self.body += message.get("body", b"")
                if message.get("more_body"):
                    return
                await self._send_json(self.start)
                return
            if self.streamed and message.get("body"):
                if self.keep is not None and message["body"].startswith(CREATED):
                    event = message["body"].removeprefix(CREATED).partition(b"\n")[0]
                    self.keep(json.loads(event)["response"]["id"], self.context)
                body = self._chunk(message["body"]) if self.context.gated else message["body"]
                message = {**message, "body": self.context.edit(body)}
        await self.out(message)

    async def _send_json(self, start: Message) -> None:
        body = bytes(self.body)
        if self.context.gated or (self.keep is not None and b'"object":"response"' in body):
            body = self._completed(body)
        body = self.context.edit(body)
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await self.out(start)
        await self.out({"type": "http.response.body", "body": body})

    def close(self) -> None:
        """The answer is over."""
        if self.counted:
            ANSWERS.dec()

    # ------------------------------------------------------------------------ what is completed

    def _completed(self, body: bytes) -> bytes:
        """A whole answer."""
        answer = json.loads(body)
        if not isinstance(answer, dict):
            return body
        if self.keep is not None and answer.get("object") == "response":
            self.keep(answer["id"], self.context)
        if not self.context.gated or not answer.get("usage"):
            return body  # not the answer yet, or none that has tokens
        _take_out(answer)
        if answer.get("object") == "response":
            self._complete_response(answer)
        elif answer.get("object") in COMPLETIONS:
            self._add_usage(answer["usage"], "completion_tokens_details")
            if self.context.trace:
                for choice in answer.get("choices", []):
                    choice["gate_trace"] = self.context.trace_of(choice["index"])
        return _dumped(answer)

    def _chunk(self, body: bytes) -> bytes:
        """A chunk of a stream; without a trace of all tokens, only some are looked into."""
        traced = self.context.trace
        looked_into = b'"usage":{' in body or (
            traced and (traced > 1 or b'"finish_reason":"' in body)
        )
        if not looked_into or not body.endswith(b"\n"):
            return body
        return b"".join(self._lines(body))

    def _lines(self, body: bytes) -> Iterator[bytes]:
        for line in body.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            if text.startswith(b"data: {"):
                event = json.loads(text.removeprefix(b"data: "))
                self._complete_event(event)
                yield b"data: " + _dumped(event) + line[len(text) :]
            else:
                yield line

    def _complete_event(self, event: dict[str, Any]) -> None:
        response = event.get("response")
        if isinstance(response, dict):  # the Responses API
            _take_out(response)
            if response.get("usage"):
                self._complete_response(response)
            return
        if event.get("object") not in COMPLETIONS:
            return  # /v1/messages has no place for it
        if event.get("usage"):
            self._add_usage(event["usage"], "completion_tokens_details")
        for choice in event.get("choices", []):
            index = choice.get("index", 0)
            if self.context.trace > 1:  # as it grows
                choice["gate_trace"] = self.context.trace_of(index)[self.told[index] :]
                self.told[index] += len(choice["gate_trace"])
            elif self.context.trace and choice.get("finish_reason"):
                choice["gate_trace"] = self.context.trace_of(index)

    def _complete_response(self, response: dict[str, Any]) -> None:
        self._add_usage(response["usage"], "output_tokens_details")
        if self.context.trace:
            turns = sorted(self.context.reports)
            response["gate_trace"] = [
                entry for turn in turns for entry in self.context.trace_of(turn)
            ]

    def _add_usage(self, usage: dict[str, Any], details: str) -> None:
        usage[details] = (usage.get(details) or {}) | {"gated_tokens": self.context.gated_tokens}


def _take_out(answer: dict[str, Any]) -> None:
    """Take the plain report away, which vLLM passes on; it says the same again."""
    params = answer.get("kv_transfer_params")
    if isinstance(params, dict) and params.pop(REPORT, None) is not None and not params:
        answer["kv_transfer_params"] = None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
