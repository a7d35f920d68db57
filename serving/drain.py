"""Shutting down: requests in flight finish, new ones are told to go elsewhere.

vLLM's server keeps accepting requests while its engine drains and answers them with 500. Here they
get 503 with Retry-After, and so does /health, so that a load balancer looks away. A second signal
ends what is still running at once.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from typing import Any

import psutil  # type: ignore[import-untyped]
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.engine.protocol import EngineClient

from vllm_gate import patches

logger = logging.getLogger(__name__)

# For what vLLM has already answered to reach slow clients, once its engine has stopped; seconds.
FLUSH_SECONDS = 5
_OPEN = frozenset({"/metrics", "/version"})


class Drain:
    """Whether the engine has been told to stop."""

    def __init__(self) -> None:
        self.begun = False

    def watch(self, engine: EngineClient) -> None:
        """Notice when vLLM's signal handler shuts `engine` down."""
        loop = asyncio.get_running_loop()
        shutdown = engine.shutdown

        @functools.wraps(shutdown)
        def noticing(*args: Any, **kwargs: Any) -> Any:  # in a thread of vLLM's
            if not self.begun:
                self.begun = True
                logger.info("shutting down: requests in flight finish, new ones are refused")
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.call_soon_threadsafe(loop.add_signal_handler, number, _end_now)
            return shutdown(*args, **kwargs)

        patches.wrap_instance("vllm.v1.engine.async_llm:AsyncLLM", "shutdown", engine, noticing)


def _end_now() -> None:
    logger.warning("second signal: ending the engine, requests in flight with it")
    for process in psutil.Process().children(recursive=True):
        process.kill()


class Draining:
    """ASGI middleware: 503 once the drain has begun."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if not self.drain.begun or scope["type"] != "http" or scope["path"] in _OPEN:
            return await self.app(scope, receive, send)
        refusal = JSONResponse(
            {
                "error": {
                    "message": "The server is shutting down; ask another one, or again later.",
                    "type": "ServiceUnavailableError",
                    "param": None,
                    "code": 503,
                }
            },
            status_code=503,
            headers={"Retry-After": "10"},
        )
        return await refusal(scope, receive, send)
