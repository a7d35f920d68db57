"""--api-key: every path but the machine-read ones asks for the key.

vLLM's own check covers /v1 and leaves the same model open under other paths.
"""

from __future__ import annotations

import hashlib
import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import page

# The page is files alone: what it asks the API for takes the key.
OPEN = frozenset({"/health", "/ping", "/metrics", "/version"}) | page.PATHS
ADMIN = "/admin/"  # asks for a key of its own


class Guard:
    """ASGI middleware: a bearer token equal to `key`, or 401 in OpenAI's error shape."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._digest = hashlib.sha256(key.encode()).digest()

    def _admits(self, scope: Scope) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return True  # OPTIONS: a browser's preflight carries no key
        if scope["path"] in OPEN or scope["path"].startswith(ADMIN):
            return True
        scheme, _, token = Headers(scope=scope).get("Authorization", "").partition(" ")
        digest = hashlib.sha256(token.encode()).digest()
        return scheme.lower() == "bearer" and secrets.compare_digest(digest, self._digest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if self._admits(scope):
            return await self.app(scope, receive, send)
        refusal = JSONResponse(
            {
                "error": {
                    "message": "The API key is missing or wrong; send 'Authorization: Bearer KEY'.",
                    "type": "AuthenticationError",
                    "param": None,
                    "code": 401,
                }
            },
            status_code=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
        return await refusal(scope, receive, send)
