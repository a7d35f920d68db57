"""What stands before every route: the API key, and the refusals of a server that shuts down.

vLLM's own check of the key covers /v1 and leaves the same model open under other paths. Its server
also keeps accepting requests while its engine drains and answers them with 500. Here they get 503
with Retry-After, and so does /health, so that a load balancer looks away. A second signal ends what
is still running at once.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import secrets
import signal
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import psutil  # type: ignore[import-untyped]
from fastapi import Request
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.engine.protocol import EngineClient

from serving import engines, playground
from vllm_gate import patches

logger = logging.getLogger(__name__)

# For what vLLM has already answered to reach slow clients, once its engine has stopped; seconds.
FLUSH_SECONDS = 5
MACHINES = frozenset({"/metrics", "/version"})  # read by machines, also while the server drains
# The playground is files alone: what it asks the API for takes the key.
OPEN = MACHINES | {"/health", "/ping"} | playground.PATHS
ADMIN = "/admin/"  # asks for a key of its own
SHUTS_DOWN = "The server is shutting down; ask another one, or again later."
SHUT_RETRY_AFTER = 10  # seconds


def error_response(
    status: int,
    message: str,
    kind: str,
    headers: Mapping[str, str] | None = None,
    param: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    body = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": body}, status_code=status, headers=headers)


async def http_error(_: Request, caught: HTTPException) -> JSONResponse:
    """FastAPI's own refusals (unknown path, unreadable body) in OpenAI's error shape."""
    status = HTTPStatus(caught.status_code)
    return error_response(status, str(caught.detail), status.phrase, caught.headers)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class ApiKey:
    """ASGI middleware: a bearer token equal to `key`, or 401.

    Args:
        also: paths with a key of their own: another that opens them too, or None where the route
            asks for it.
    """

    def __init__(
        self, app: ASGIApp, key: str, also: Mapping[str, str | None] | None = None
    ) -> None:
        self.app = app
        self._digest = _digest(key)
        self._also = {path: _digest(one) if one else None for path, one in (also or {}).items()}

    def _admits(self, scope: Scope) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return True  # OPTIONS: a browser's preflight carries no key
        path = get_route_path(scope)  # as routes are found, with --root-path too
        if path in OPEN or path.startswith(ADMIN) or self._also.get(path, b"") is None:
            return True
        scheme, _, token = Headers(scope=scope).get("Authorization", "").partition(" ")
        keys = [self._digest, *filter(None, [self._also.get(path)])]
        fits = [secrets.compare_digest(_digest(token), key) for key in keys]
        return scheme.lower() == "bearer" and any(fits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if self._admits(scope):
            return await self.app(scope, receive, send)
        message = "The API key is missing or wrong; send 'Authorization: Bearer KEY'."
        refusal = error_response(
            401, message, "AuthenticationError", {"WWW-Authenticate": "Bearer"}
        )
        return await refusal(scope, receive, send)


class Drain:
    """Whether the engine has been told to stop, or has ended by itself."""

    def __init__(self) -> None:
        self.begun = False
        self.failure: str | None = None

    def watch(self, engine: EngineClient) -> None:
        """Notice when vLLM's signal handler shuts `engine` down, and give it nothing new then.

        It would answer that with an empty text, as if it had ended.
        """
        loop = asyncio.get_running_loop()
        shutdown = engine.shutdown
        # Elsewhere Python takes no handlers, and whoever runs the loop there ends it.
        signals = (signal.SIGTERM, signal.SIGINT) if _in_main_thread() else ()

        @functools.wraps(shutdown)
        def noticing(*args: Any, **kwargs: Any) -> Any:  # in a thread of vLLM's
            if not self.begun:
                self.begun, self.failure = True, engines.failure(engine)
                if self.failure is None:
                    logger.info("shutting down: requests in flight finish, new ones are refused")
                for number in signals:
                    loop.call_soon_threadsafe(loop.add_signal_handler, number, _end_now)
            return shutdown(*args, **kwargs)

        owner = "vllm.v1.engine.async_llm:AsyncLLM"
        patches.wrap_instance(owner, "shutdown", engine, noticing)
        admits = getattr(engine, "check_admission", None)
        if admits is None:
            return  # another vLLM

        @functools.wraps(admits)
        def admitting(*args: Any, **kwargs: Any) -> None:
            if self.begun:
                from vllm.exceptions import GracefulHTTPError

                raise GracefulHTTPError(SHUTS_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
            admits(*args, **kwargs)

        patches.wrap_instance(owner, "check_admission", engine, admitting)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


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
        passes = not self.drain.begun or scope["type"] != "http"
        if passes or get_route_path(scope) in MACHINES:
            return await self.app(scope, receive, send)
        headers = {"Retry-After": str(SHUT_RETRY_AFTER)}
        refusal = error_response(503, SHUTS_DOWN, "ServiceUnavailableError", headers)
        return await refusal(scope, receive, send)
