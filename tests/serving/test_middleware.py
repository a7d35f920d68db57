"""What stands before every route finds paths as the routes do, also behind a proxy's prefix."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from serving.middleware import ApiKey, Drain, Draining

ROOT = "/behind/a/proxy"  # vLLM's --root-path


def client(drain: Drain | None = None) -> TestClient:
    """Every path answers, if it is let through."""
    app = FastAPI(root_path=ROOT)

    @app.get("/{path:path}")
    async def answer() -> PlainTextResponse:
        return PlainTextResponse("answered")

    app.add_middleware(Draining, drain=drain or Drain())
    app.add_middleware(ApiKey, key="a client's key")
    return TestClient(app)


@pytest.mark.parametrize("prefix", ["", ROOT])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/health", 200), ("/metrics", 200), ("/gate", 200)),
        ("/admin/adapters", 200),  # asks for a key of its own
        *(("/v1/models", 401), ("/behind", 401), ("/healthy", 401), ("/v1/health", 401)),
    ],
)
def test_what_takes_no_key(prefix: str, path: str, status: int) -> None:
    assert client().get(prefix + path).status_code == status


@pytest.mark.parametrize("prefix", ["", ROOT])
def test_a_server_that_shuts_down_still_tells_its_metrics(prefix: str) -> None:
    drain = Drain()
    drain.begun = True
    assert client(drain).get(f"{prefix}/metrics").status_code == 200
    assert client(drain).get(f"{prefix}/health").status_code == 503
