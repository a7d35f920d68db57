"""GET /health: vLLM's own answer, and in its body how the store is.

    {"status": "ok", "store": {"reached": false, "age_seconds": 41.5, "behind": 0}}

The status is the engine's alone: a server whose store is away serves on, and must not be ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Route

PATH = "/health"
Answer = Callable[[Request], Awaitable[Response]]


def install(app: FastAPI) -> None:
    """Put our route in the place of vLLM's, which it asks."""
    for number, route in enumerate(app.router.routes):
        if isinstance(route, Route) and route.path == PATH:
            app.router.routes[number] = Route(PATH, _with_store(route.endpoint), methods=["GET"])


def _with_store(engine: Answer) -> Answer:
    async def health(request: Request) -> Response:
        """Whether the engine is alive, and how the store is."""
        answer = await engine(request)
        if answer.status_code != 200:
            return answer
        return JSONResponse({"status": "ok", "store": request.app.state.follower.facts()})

    return health
