"""What a request took is given back when its answer is over, however it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serving.held import Holding, held

order: list[str] = []


def take(name: str) -> None:
    mine = held()
    assert mine is not None
    order.append(f"take {name}")
    mine.give_back.append(lambda: order.append(f"give {name}"))


async def stream(_: Any) -> StreamingResponse:
    take("slot")
    take("version")

    async def body() -> Any:
        for number in range(3):
            await asyncio.sleep(0)
            order.append(f"chunk {number}")
            yield str(number)

    return StreamingResponse(body())


async def fails(_: Any) -> JSONResponse:
    take("slot")
    raise RuntimeError("on the way")


async def full(_: Any) -> JSONResponse:
    mine = held()
    assert mine is not None
    mine.retry_after = 7
    return JSONResponse({}, status_code=503)


@pytest.fixture
def client() -> TestClient:
    order.clear()
    routes = [Route("/stream", stream), Route("/fails", fails), Route("/full", full)]
    return TestClient(Holding(Starlette(routes=routes)), raise_server_exceptions=False)


def test_a_stream_holds_to_its_last_chunk(client: TestClient) -> None:
    assert client.get("/stream").text == "012"
    assert order == [
        *("take slot", "take version", "chunk 0", "chunk 1", "chunk 2"),
        *("give version", "give slot"),
    ]
    assert held() is None


def test_a_failure_gives_back(client: TestClient) -> None:
    assert client.get("/fails").status_code == 500
    assert order == ["take slot", "give slot"]


def test_come_again_says_when(client: TestClient) -> None:
    assert client.get("/full").headers["Retry-After"] == "7"
    assert "Retry-After" not in client.get("/stream").headers
