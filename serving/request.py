"""One object follows a request from its admission to its line in the log.

    {"message": "request", "request_id": "chatcmpl-...", "model": "tiny-math:gated",
     "mode": "gated", "version": "tiny-math@f317e0480061", "outcome": "ok", "status": 200,
     "generated": 71, "gated": 4, "first_token_seconds": 0.021, "seconds": 0.43}

The middleware makes the object and sets it as the context of the answer. Admission binds a version
to it, and lays down there what has to be given back. vLLM's outputs tell it of every token. When
the answer is over, or its client gone, it gives back what it holds and writes the line. What is
counted for the log is counted for the metrics at the same moment, so both agree.

The answer names the model as the client did. The version stands in the header
X-ReasonMaxxer-Version, and in `system_fingerprint` where the answer has that field.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from serving.metrics import METRICS, UNKNOWN, Labels, Series
from vllm_gate.answers import GateAnswers
from vllm_gate.base_top_tokens import DEPTH
from vllm_gate.token_report import ANSWER, AnswerContext, Sequence, TracedToken

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

logger = logging.getLogger("serving.requests")

LOGGED = ("/v1/", "/inference/")  # paths that ask for an answer
# Ends of paths that ask for no token: texts become tokens or prompts, or the other way round.
WITHOUT_TOKENS = ("/tokenize", "/detokenize", "/count_tokens", "/render", "/derender")
SHED = (429, 503)  # come again later
ERRORS = (b'data: {"error"', b"event: error\n")  # events of a stream that cannot go on
VERSION_HEADER = "X-ReasonMaxxer-Version"
ENGINE_HEADER = "X-data-parallel-rank"  # vLLM's: the engine that is to answer
LONGEST_RANK = 10  # digits; int() fails at some thousand
_COMPLETION = re.compile(rb'"object":"(?:chat\.completion|text_completion)')
_FINGERPRINT = re.compile(rb'"system_fingerprint":(?:null|"(?:[^"\\]|\\.)*")')


@dataclass
class RequestContext(AnswerContext):
    """What is known of one HTTP request, and what it holds."""

    generates: bool = True  # whether it asks for tokens
    begun: float = field(default_factory=time.perf_counter)
    model: str | None = None  # as the client calls it
    version: str | None = None  # NAME@HASH that answers; None: the base
    series: Series | None = None  # of the version and its mode, from the admission on
    held: ExitStack = field(default_factory=ExitStack)  # slot and version, until the end
    background: asyncio.Task[object] | None = None  # that makes a response after its POST
    asked_engine: int | None = None  # that the client asks for
    engine: int | None = None  # that has the request's slot; None: vLLM chooses
    watched: bool | None = None  # of the base: whether the server measures entropies at it
    retry_after: int | None = None  # seconds, where the answer is "come again"
    request_id: str | None = None
    generated: int = 0  # tokens that have gone out
    first_token: float | None = None  # seconds
    renames: list[tuple[bytes, bytes]] = field(default_factory=list)  # `model` as JSON

    @classmethod
    def current(cls) -> RequestContext | None:
        """The request that the running task answers; None outside of one."""
        found = ANSWER.get()
        return found if isinstance(found, cls) else None

    # ------------------------------------------------------------------------------- admission

    def bind(self, model: str | None, version: str | None, mode: str, *engine_names: str) -> None:
        """The request has been admitted.

        Args:
            model: as the client calls it.
            version: that answers; None: the base.
            engine_names: what vLLM calls the same model in its answers.
        """
        self.model, self.version = model, version
        self.series = METRICS.series(Labels.of(version, mode))
        if model:
            self.renames = [(_model(name), _model(model)) for name in engine_names]

    def end(self, status: int | None, aborted: bool, broken: bool) -> None:
        """The answer is over: count it and log it.

        Args:
            status: HTTP, if anything was sent.
            aborted: the client hung up before the end.
            broken: an error was sent in the stream, or the answer has no end.
        """
        seconds = time.perf_counter() - self.begun
        outcome = _outcome(status, aborted, broken)
        series = self.series or METRICS.series(Labels.of(None, UNKNOWN))
        series.outcomes[outcome] += 1
        if outcome == "ok":
            series.duration.observe(seconds)
        first = self.first_token
        logger.info(
            "request",
            extra={
                "request_id": self.request_id,
                "model": self.model,
                "mode": series.labels.mode,
                "version": self.version,
                "outcome": outcome,
                "status": status,
                "generated": self.generated,
                "gated": self.gated_tokens,
                "first_token_seconds": None if first is None else round(first, 4),
                "seconds": round(seconds, 4),
            },
        )

    # --------------------------------------------------------------------------------- tokens

    def begin(self, request: EngineCoreRequest) -> Sequence | None:
        """A sequence of the answer begins, and goes to the engine that has its slot."""
        if self.engine is not None:
            request.data_parallel_rank = self.engine
        gated = super().begin(request)
        if self.series is None:
            return gated
        self.request_id = self.request_id or request.external_req_id
        return gated or Sequence(self)

    def tokens(self, sequence: Sequence, count: int, marks: list[TracedToken]) -> None:
        """Count tokens that go out now."""
        series = self.series
        if series is None:
            return
        now = time.perf_counter()
        self.generated += count
        series.generated += count
        if sequence.last is not None:
            series.between_tokens.observe(now - sequence.last)
        elif self.first_token is None:
            self.first_token = now - self.begun
            series.first_token.observe(self.first_token)
        sequence.last = now
        for mark in marks:
            if mark["gated"]:
                series.gated += 1
                if "entropy" in mark:
                    series.entropy.observe(mark["entropy"])
                if "rank" in mark:
                    series.rank.observe(mark["rank"] or DEPTH + 1)

    # --------------------------------------------------------------------------- the answer

    def headers(self, headers: MutableHeaders) -> None:
        """Say which version answers, and when to come again."""
        if self.version is not None:
            headers[VERSION_HEADER] = self.version
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)

    def edit(self, body: bytes) -> bytes:
        """Name the model as the client did, and the version as the system's fingerprint.

        The pieces that are replaced hold quotes, which text inside of JSON escapes. So no text of
        an answer is taken for one of them.
        """
        for theirs, asked in self.renames:
            body = body.replace(theirs, asked)
        if self.version is None or not _COMPLETION.search(body):
            return body
        fingerprint = b'"system_fingerprint":"' + self.version.encode() + b'"'
        if b'"system_fingerprint":' in body:
            return _FINGERPRINT.sub(fingerprint, body)
        asked = self.renames[0][1]
        return body.replace(asked, asked + b"," + fingerprint)  # vLLM's chunks have none


def _model(name: str) -> bytes:
    return b'"model":' + json.dumps(name, ensure_ascii=False).encode()


def _outcome(status: int | None, aborted: bool, broken: bool) -> str:
    """One of metrics.OUTCOMES."""
    if aborted:
        return "aborted"
    if status is None or broken:
        return "error"
    if status in SHED:
        return "shed"
    if status < 400:
        return "ok"
    return "refused" if status < 500 else "error"


class BackgroundTasks(dict[str, "asyncio.Task[object]"]):
    """vLLM's table of responses that it makes in the background, by their ids.

    Such a request is over when its task is done; its POST is so long before.
    """

    def __setitem__(self, response: str, task: asyncio.Task[object]) -> None:
        super().__setitem__(response, task)
        mine = RequestContext.current()
        if mine is not None:
            mine.background = task


class RequestMiddleware(GateAnswers):
    """ASGI middleware: follows each request, and completes its answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        mine = RequestContext(generates=not get_route_path(scope).endswith(WITHOUT_TOKENS))
        asked = Headers(scope=scope).get(ENGINE_HEADER, "")
        if asked.isdecimal() and len(asked) < LONGEST_RANK:
            mine.asked_engine = int(asked)
        status: int | None = None
        complete = broken = gone = False

        async def receiving() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not complete)
            return message

        async def sending(message: Message) -> None:
            nonlocal status, complete, broken
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                complete = not message.get("more_body", False)
                broken = broken or message.get("body", b"").startswith(ERRORS)
            await send(message)

        try:
            return await self.follow(mine, scope, receiving, sending)
        finally:
            logged = scope["method"] == "POST" and get_route_path(scope).startswith(LOGGED)

            def over(aborted: bool, broken: bool) -> None:
                mine.held.close()
                if logged:
                    mine.end(status, aborted, broken)

            def made(task: asyncio.Task[object]) -> None:
                error = None if task.cancelled() else task.exception()
                if error is not None:
                    logger.error("%s could not be made", task.get_name(), exc_info=error)
                over(task.cancelling() > 0, error is not None)  # vLLM ends a cancelled task itself

            if mine.background is None:
                over(gone, broken or not complete)
            else:
                mine.background.add_done_callback(made)
