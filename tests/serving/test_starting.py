"""While the server starts, every request gets 503; afterwards the real server has the socket."""

from __future__ import annotations

import asyncio
import socket
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from serving import starting
from serving.settings import SettingsError
from serving.starting import Ready, Starting, check_plugin

PLAIN: dict[str, Any] = {
    **{"ssl_keyfile": None, "ssl_certfile": None, "ssl_ca_certs": None},
    **{"ssl_cert_reqs": 0, "ssl_ciphers": None},
}
REQUESTS = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("POST", "/v1/completions"),
    ("POST", "/admin/adapters/alpha/load"),
    ("POST", "/admin/adapters/alpha/alias"),
]


@pytest.fixture
def bound() -> Iterator[socket.socket]:
    """A socket as vLLM binds it: nobody listens yet."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()  # else a request may come before the thread listens
        yield sock


def ask(sock: socket.socket, method: str, path: str) -> tuple[int, Any, Any]:
    """(status, headers, body)."""
    url = f"http://127.0.0.1:{sock.getsockname()[1]}{path}"
    answer = httpx.request(method, url, json={} if method == "POST" else None, timeout=30)
    return answer.status_code, answer.headers, answer.json()


def test_every_request_gets_503_with_retry_after(bound: socket.socket) -> None:
    with Starting(bound, Namespace(**PLAIN)):
        for method, path in REQUESTS:
            status, headers, body = ask(bound, method, path)
            assert (status, headers["Retry-After"]) == (503, "5"), path
            assert body["error"]["type"] == "ServiceUnavailableError"
            assert "starting" in body["error"]["message"]


def test_the_socket_goes_on_and_connections_in_between_wait(bound: socket.socket) -> None:
    with Starting(bound, Namespace(**PLAIN)) as first:
        ask(bound, "GET", "/health")
        first.end()
        first.end()
        with socket.create_connection(bound.getsockname(), timeout=30) as client:
            client.sendall(b"hello")  # nobody listens just now
            accepted, _ = bound.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"


def test_a_client_that_sends_half_a_request_does_not_keep_the_server_from_starting(
    bound: socket.socket,
) -> None:
    half = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
    with (
        Starting(bound, Namespace(**PLAIN)) as answering,
        socket.create_connection(bound.getsockname(), timeout=30) as client,
    ):
        client.sendall(half)
        ask(bound, "GET", "/health")
        answering.end()


def test_a_certificate_that_cannot_be_used_is_named(bound: socket.socket, tmp_path: Path) -> None:
    bad = tmp_path / "key.pem"
    bad.write_text("not a key")
    for file in (bad, tmp_path / "absent.pem"):
        names = {"ssl_keyfile": str(file), "ssl_certfile": str(file)}
        with pytest.raises(SettingsError, match="--ssl-certfile"):
            Starting(bound, Namespace(**PLAIN | names))


@pytest.mark.parametrize("there", [True, False])
def test_the_server_listens_only_with_our_plugin(there: bool) -> None:
    """Without it, there would be no adapters, and nobody would ask for the key."""
    sent: list[Any] = []
    ended: list[bool] = []
    state = SimpleNamespace(
        args=SimpleNamespace(starting=SimpleNamespace(end=lambda: ended.append(True), ready=False)),
        endpoint_plugins=[SimpleNamespace(name=starting.PLUGIN)] if there else [],
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "lifespan", "app": SimpleNamespace(state=state)}
    asyncio.run(Ready(app)(scope, receive, send))
    assert sent == [f"lifespan.startup.{'complete' if there else 'failed'}"]
    assert state.args.starting.ready == there
    assert ended


def test_a_plugin_that_is_missing_or_broken_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> None:
        raise ImportError("no module named x")

    plugin = SimpleNamespace(name=starting.PLUGIN, load=broken)
    monkeypatch.setattr(starting, "entry_points", lambda group: [plugin])
    with pytest.raises(SettingsError, match=r"cannot be loaded \(ImportError: no module named x\)"):
        check_plugin()
    monkeypatch.setattr(starting, "entry_points", lambda group: [])
    with pytest.raises(SettingsError, match="vLLM finds no plugin 'reasonmaxxer_models'"):
        check_plugin()
