"""What a request holds while it is answered, given back when its answer is over or its client gone.

An adapter's slot and version are taken deep inside vLLM's handlers, where the end of a stream is
not seen; here it is. So here a request's watch (serving/watch.py) ends, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.watch import Stream, Watch
from vllm_gate.token_report import Follower

WATCHED = ("/v1/", "/inference/")  # what asks for an answer
ERROR = b'data: {"error"'  # an event of a stream that cannot go on

_current: ContextVar[Held | None] = ContextVar("held", default=None)


@dataclass
class Held:
    """Of one HTTP request."""

    watch: Watch = field(default_factory=Watch)
    version: str | None = None  # NAME@HASH that answers it
    watched: bool | None = None  # of the base: whether the server measures entropies at it
    give_back: list[Callable[[], None]] = field(default_factory=list)
    retry_after: int | None = None  # seconds, where the answer is "come again"


def held() -> Held | None:
    """Of the request being answered; None outside of one."""
    return _current.get()


def follow(request: Any) -> Follower | None:
    """Who follows a sequence that the engine is asked for: the watch of its HTTP request."""
    mine = _current.get()
    if mine is None or mine.watch.series is None:
        return None
    mine.watch.request_id = mine.watch.request_id or request.external_req_id
    return Stream(mine.watch, mine.watch.series)


class Holding:
    """ASGI middleware: opens a Held for each request and gives back what it gathered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        mine = Held()
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
                if mine.retry_after is not None:
                    MutableHeaders(scope=message)["Retry-After"] = str(mine.retry_after)
            else:
                complete = not message.get("more_body", False)
                broken = broken or message.get("body", b"").startswith(ERROR)
            await send(message)

        token = _current.set(mine)
        try:
            await self.app(scope, receiving, sending)
        finally:
            _current.reset(token)
            for give_back in reversed(mine.give_back):
                give_back()
            if scope["method"] == "POST" and scope["path"].startswith(WATCHED):
                mine.watch.end(status, aborted=gone, broken=broken)
