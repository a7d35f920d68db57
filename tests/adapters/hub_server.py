"""A stand-in for the hub: what huggingface_hub asks of it to make, fill and read a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Repositories = dict[str, dict[str, bytes]]  # OWNER/NAME -> file -> content


def commit_of(files: dict[str, bytes]) -> str:
    """Forty hexadecimal digits that change with the content."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The hub's answers."""

    repositories: Repositories
    metadata: list[str]  # front matter that was to be validated
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self) -> None:
        self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.metadata.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+?)/preupload/main.*", self.path):
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer({"files": modes})
        elif match := re.fullmatch(r"/api/models/(.+?)/commit/main.*", self.path):
            files = self.repositories[match[1]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{commit_of(files)}"
            self.answer({"commitUrl": url, "commitOid": commit_of(files), "success": True})
        else:
            self.missing()

    def do_GET(self) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", self.path):
            files = self.repositories.get(match[1])
            if files is None:
                self.missing()
            elif (match[2] or "").startswith("/tree"):
                self.answer([self.entry(path, files[path]) for path in files])
            else:
                siblings = [{"rfilename": path} for path in files]
                self.answer({"id": match[1], "sha": commit_of(files), "siblings": siblings})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
            files = self.repositories.get(match[1], {})
            if match[2] not in files:
                self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                return
            content = files[match[2]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content, ETag=etag, X_Repo_Commit=commit_of(files))
        else:
            self.missing()

    def do_HEAD(self) -> None:
        self.do_GET()

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}


class Hub(NamedTuple):
    """A hub that is running."""

    url: str
    repositories: Repositories
    metadata: list[str]  # that it was asked to validate


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    handler = type("Handler", (Handler,), {"repositories": {}, "metadata": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield Hub(url, handler.repositories, handler.metadata)
        server.shutdown()
        thread.join()
