"""What a request took is given back when its answer is over; the answer names model and version."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from serving.metrics import ALWAYS, BASE, GATED
from serving.request import (
    VERSION_HEADER,
    BackgroundTasks,
    RequestContext,
    RequestMiddleware,
)

VERSION = "math@0123456789ab"
NAMES = (VERSION, f"{VERSION}:gated")  # as vLLM knows it
# What a model may write: it must reach the client as it is.
TEXT = f'"model":"{VERSION}","system_fingerprint":"x" \\ é'
order: list[str] = []


def current() -> RequestContext:
    mine = RequestContext.current()
    assert mine is not None
    return mine


def take(name: str) -> None:
    order.append(f"take {name}")
    current().held.callback(lambda: order.append(f"give {name}"))


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


async def cut(_: Any) -> StreamingResponse:
    async def body() -> Any:
        yield "data: {}\n\n"
        raise RuntimeError("on the way")

    return StreamingResponse(body(), media_type="text/event-stream")


async def told(_: Any) -> StreamingResponse:
    async def body() -> Any:  # as /v1/messages tells of an error
        yield 'event: error\ndata: {"type":"error"}\n\n'

    return StreamingResponse(body(), media_type="text/event-stream")


async def full(_: Any) -> JSONResponse:
    current().retry_after = 7
    return JSONResponse({}, status_code=503)


def choices(kind: str, **more: Any) -> dict[str, Any]:
    """An answer of vLLM's, in the name that the engine has for the version."""
    answer = {"id": "1", "object": kind, "model": VERSION, "choices": [{"text": TEXT}]}
    return answer | more


def chat(model: str, version: str | None = VERSION) -> Any:
    """A route that answers a request for `model`, whole."""

    async def answer(_: Any) -> Response:
        if version is None:
            current().bind(model, None, BASE, "tiny")
            return JSONResponse(choices("chat.completion", model="tiny", system_fingerprint="v"))
        current().bind(model, version, GATED if model.endswith("gated") else ALWAYS, *NAMES)
        return JSONResponse(choices("chat.completion", system_fingerprint="vllm-0.32"))

    return answer


async def completion_stream(_: Any) -> Response:
    current().bind("prod:gated", VERSION, GATED, *NAMES)

    async def body() -> Any:
        for more in ({}, {"system_fingerprint": None}, {"choices": [], "usage": {}}):
            chunk = json.dumps(
                choices("text_completion", **more), ensure_ascii=False, separators=(",", ":")
            )
            yield f"data: {chunk}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


async def response(_: Any) -> Response:
    current().bind("prod", VERSION, ALWAYS, *NAMES)
    return JSONResponse({"object": "response", "model": f"{VERSION}:gated", "output": [TEXT]})


async def background(request: Any) -> Response:
    """As /v1/responses does: the response is made by a task, which vLLM's table holds."""
    take("slot")
    current().bind("prod", VERSION, ALWAYS, *NAMES)
    begin, mine = request.app.state.begin, current()

    async def make() -> None:
        try:
            await begin.wait()
        except asyncio.CancelledError:
            return  # as vLLM does
        mine.generated += 7
        if "fails" in request.query_params:
            raise RuntimeError("on the way")

    BackgroundTasks()["resp_1"] = request.app.state.task = asyncio.create_task(make())
    return JSONResponse({"object": "response", "status": "queued"})


ASKED = {"name": "math", "gated": "math:gated", "alias": "prod", "version": f"{VERSION}:gated"}


@pytest.fixture
def client() -> TestClient:
    order.clear()
    routes = [
        *(Route(f"/{one.__name__}", one) for one in (stream, fails, full, response)),
        *(Route(f"/chat/{way}", chat(model)) for way, model in ASKED.items()),
        Route("/chat/base", chat("models/tiny", None)),
        Route("/completion_stream", completion_stream),
        *(Route(f"/v1/{one.__name__}", one, methods=["POST"]) for one in (cut, told, response)),
    ]
    return TestClient(RequestMiddleware(Starlette(routes=routes)), raise_server_exceptions=False)


def test_a_stream_holds_to_its_last_chunk(client: TestClient) -> None:
    assert client.get("/stream").text == "012"
    assert order == [
        *("take slot", "take version", "chunk 0", "chunk 1", "chunk 2"),
        *("give version", "give slot"),
    ]
    assert RequestContext.current() is None


def test_a_failure_gives_back(client: TestClient) -> None:
    assert client.get("/fails").status_code == 500
    assert order == ["take slot", "give slot"]


@pytest.mark.parametrize(
    ("way", "outcome"), [("cut", "error"), ("told", "error"), ("response", "ok")]
)
@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
def test_an_answer_without_its_end_is_an_error(
    client: TestClient, caplog: pytest.LogCaptureFixture, way: str, outcome: str, root_path: str
) -> None:
    caplog.set_level(logging.INFO, "serving.requests")
    behind = TestClient(client.app, raise_server_exceptions=False, root_path=root_path)
    with suppress(RuntimeError):  # the rest of the stream never comes
        behind.post(f"{root_path}/v1/{way}", headers={"X-data-parallel-rank": "9" * 5000})
    (line,) = [one for one in caplog.records if one.name == "serving.requests"]
    assert vars(line)["outcome"] == outcome


@pytest.mark.parametrize(
    ("way", "outcome"), [("", "ok"), ("?fails", "error"), ("cancel", "aborted")]
)
async def test_a_response_in_the_background_is_over_when_it_is_made(
    caplog: pytest.LogCaptureFixture, way: str, outcome: str
) -> None:
    caplog.set_level(logging.INFO, "serving.requests")
    order.clear()
    app = Starlette(routes=[Route("/v1/background", background, methods=["POST"])])
    app.state.begin = asyncio.Event()
    transport = httpx.ASGITransport(RequestMiddleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert (await client.post(f"/v1/background{way.removeprefix('cancel')}")).is_success
    assert order == ["take slot"] and not caplog.records
    task = app.state.task
    if way == "cancel":
        task.cancel()
    app.state.begin.set()
    await asyncio.wait([task])
    await asyncio.sleep(0)  # what hangs on the task comes after it
    assert order == ["take slot", "give slot"]
    (line,) = [vars(one) for one in caplog.records if one.message == "request"]
    assert (line["outcome"], line["generated"]) == (outcome, 0 if way == "cancel" else 7)


def test_come_again_says_when(client: TestClient) -> None:
    assert client.get("/full").headers["Retry-After"] == "7"
    assert "Retry-After" not in client.get("/stream").headers


@pytest.mark.parametrize("way", ASKED)
def test_an_answer_names_what_was_asked_for_and_its_version(client: TestClient, way: str) -> None:
    answer = client.get(f"/chat/{way}")
    body = answer.json()
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert (body["model"], body["system_fingerprint"]) == (ASKED[way], VERSION)
    assert answer.headers[VERSION_HEADER] == VERSION
    assert body["choices"] == [{"text": TEXT}]


def test_the_base_has_no_version(client: TestClient) -> None:
    answer = client.get("/chat/base")
    assert VERSION_HEADER not in answer.headers
    body = answer.json()
    assert (body["model"], body["system_fingerprint"]) == ("models/tiny", "v")


def test_every_chunk_of_a_stream_says_the_same(client: TestClient) -> None:
    answer = client.get("/completion_stream")
    assert answer.headers[VERSION_HEADER] == VERSION
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert [one["model"] for one in chunks] == ["prod:gated"] * 3
    assert [one["system_fingerprint"] for one in chunks] == [VERSION] * 3
    assert chunks[0]["choices"] == [{"text": TEXT}]


def test_answers_without_that_field_get_none(client: TestClient) -> None:
    answer = client.get("/response")
    assert answer.json() == {"object": "response", "model": "prod", "output": [TEXT]}
    assert answer.headers[VERSION_HEADER] == VERSION
