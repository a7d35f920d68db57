"""What a request holds while it is answered, given back when its answer is over or its client gone.

An adapter's slot and version are taken deep inside vLLM's handlers, where the end of a stream is
not seen; here it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_current: ContextVar[Held | None] = ContextVar("held", default=None)


@dataclass
class Held:
    """Of one HTTP request."""

    version: str | None = None  # NAME@HASH that answers it
    give_back: list[Callable[[], None]] = field(default_factory=list)
    retry_after: int | None = None  # seconds, where the answer is "come again"


def held() -> Held | None:
    """Of the request being answered; None outside of one."""
    return _current.get()


class Holding:
    """ASGI middleware: opens a Held for each request and gives back what it gathered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        mine = Held()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and mine.retry_after is not None:
                MutableHeaders(scope=message)["Retry-After"] = str(mine.retry_after)
            await send(message)

        token = _current.set(mine)
        try:
            await self.app(scope, receive, sending)
        finally:
            _current.reset(token)
            for give_back in reversed(mine.give_back):
                give_back()
