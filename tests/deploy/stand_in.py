"""A replica without an engine: it answers completions at once, and can drain, end and start.

For real replicas, a store with an adapter that has two versions.
"""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support import ROOT, make_adapter

from adapters.store import Store
from demo.server import free_port


def moving_store(work: Path, base: Path) -> Path:
    """A store with `tiny-math`, and `moving` in two versions."""
    store = work / "store"
    shutil.copytree(ROOT / "adapters" / "store" / "tiny-math", store / "tiny-math")
    for seed in range(2):
        Store(store).publish(make_adapter(work, f"v{seed}", base, seed=seed), "moving")
    return store


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class StandIn:
    """Answers like a server of ours as far as a router can tell."""

    def __init__(self) -> None:
        self.port = free_port()
        self.answered = 0
        self.busy = False  # 503 with Retry-After, as while it starts and while it drains
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Listen."""
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

            def do_GET(self) -> None:
                stand_in._answer(self)

            do_POST = do_GET  # noqa: N815

        self._server = _Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        model = json.loads(body).get("model") if body else None
        choice = {"index": 0, "text": "2", "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        said: dict[str, Any] = {"id": "cmpl-1", "object": "text_completion", "created": 1}
        said |= {"model": model, "choices": [choice], "usage": usage}
        if self.busy:
            error = {"message": "shutting down", "type": "ServiceUnavailableError", "code": 503}
            said = {"error": error | {"param": None}}
        elif model is not None:
            self.answered += 1
        text = json.dumps(said).encode()
        handler.send_response(503 if self.busy else 200)
        if self.busy:
            handler.send_header("Retry-After", "10")
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        # One that is down must not go on answering on connections that it has kept.
        handler.send_header("Connection", "close")
        handler.close_connection = True
        handler.end_headers()
        handler.wfile.write(text)
