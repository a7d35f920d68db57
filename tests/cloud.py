"""A real S3 over HTTP (moto), and a proxy before it that can be told to fail.

The proxy hands requests on one at a time, as moto checks a condition and writes in two steps.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from adapters.bucket.store import BucketStore
from adapters.places import open_store

BUCKET = "adapters-of-tests"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


OWN_HEADERS = {"transfer-encoding", "connection", "content-length", "date", "server"}


@dataclass
class Asked:
    """A request, before or after it went to the storage."""

    method: str
    path: str
    headers: dict[str, str]
    answered: bool  # the storage has done it

    def is_write(self, key: str) -> bool:
        """Whether it writes the object `key` of any prefix."""
        return self.method == "PUT" and self.path.partition("?")[0].endswith(key)


# A machine by name, each with a cache of its own.
Machines = Callable[[str], BucketStore]
# What to do with a request: nothing (None), answer with a status, "cut" the connection, or cut it
# in the middle of the answer ("half").
Fault = Callable[[Asked], int | str | None]


@dataclass
class Cloud:
    """The storage, as tests see it."""

    endpoint: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # (method, path)

    def client(self) -> Any:
        """boto3's, past the proxy."""
        return boto3.client(
            "s3",
            endpoint_url=self.upstream,
            region_name=KEYS["AWS_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def store(self, prefix: str, cache: Path, gib: float = 1.0) -> BucketStore:
        """The store under a prefix, with a cache of its own: one machine's."""
        found = open_store(f"s3://{BUCKET}/{prefix}", cache, gib)
        assert isinstance(found, BucketStore)
        return found

    def keys(self, prefix: str) -> list[str]:
        """Every object under a prefix."""
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [one["Key"].removeprefix(f"{prefix}/") for one in found.get("Contents", [])]

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """With `fault` on every request."""
        self.faults.append(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)

    def away(self) -> Any:
        """With a storage that answers nobody."""
        return self.failing(lambda asked: "cut")


def once(fault: Fault, times: int = 1) -> Fault:
    """`fault`, for the first requests that it applies to."""
    left = [times]

    def limited(asked: Asked) -> int | str | None:
        found = fault(asked) if left[0] else None
        left[0] -= found is not None
        return found

    return limited


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one piece
    cloud: Cloud
    turn = threading.Lock()

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.cloud.asked.append((self.command, self.path))
        if self._fails(answered=False):
            return
        host = self.cloud.upstream.removeprefix("http://")
        with self.turn:
            connection = http.client.HTTPConnection(host, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        if self._fails(answered=True, content=content):
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in OWN_HEADERS:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(content)

    def _fails(self, answered: bool, content: bytes = b"") -> bool:
        asked = Asked(self.command, self.path, dict(self.headers.items()), answered)
        for fault in list(self.cloud.faults):
            found = fault(asked)
            if found == "half" and content:
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            if found in ("cut", "half"):
                with suppress(OSError):
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return True
            if isinstance(found, int):
                self.send_response(found)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
        return False

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@contextmanager
def running_cloud() -> Iterator[Cloud]:
    """The storage with an empty bucket, while this is open."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    upstream = f"http://{host}:{port}"

    class Handler(_Handler):
        cloud = Cloud("", upstream)
        turn = threading.Lock()

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    Handler.cloud.endpoint = f"http://127.0.0.1:{proxy.server_port}"
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        Handler.cloud.client().create_bucket(Bucket=BUCKET)
        yield Handler.cloud
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()
