"""The report in OpenAI answers: whole, streamed, fetched later; others pass untouched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from vllm_gate.answers import GateAnswers
from vllm_gate.counters import ANSWERS
from vllm_gate.token_report import ANSWER, AnswerContext, GateReport

ENTRY = {"position": 3, "gated": True, "entropy": 1.2, "rank": 2}
LATER = {"position": 5, "gated": True, "entropy": 1.1, "rank": 1}


def report(name: str, *entries: dict[str, Any], index: int = 0, n: int = 1, trace: int = 0) -> None:
    """What vLLM's front end does for a sequence of the request being answered."""
    answer = ANSWER.get()
    assert answer is not None
    answer.gated, answer.trace = True, trace
    parent = SimpleNamespace(n=n) if n > 1 else None
    state = SimpleNamespace(external_req_id=name, parent_req=parent, request_index=index)
    answer.add(state, GateReport(len(entries), list(entries)))


def chat(choices: int = 1, **more: Any) -> dict[str, Any]:
    """A whole answer, as vLLM makes it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": index, "message": {"content": "é"}} for index in range(choices)],
        "usage": {"completion_tokens": 9},
    } | more


async def whole(request: Request) -> Response:
    trace = int(request.query_params.get("trace", 0))
    report("chatcmpl-1", ENTRY, trace=trace)
    params = {"gate": {"0": {"gated_tokens": 1, "trace": [ENTRY]}}}
    return JSONResponse(chat(kv_transfer_params=params))


async def several(_: Request) -> Response:
    for prompt in (0, 1):
        for index in (0, 1):
            entries = [ENTRY] * (2 * prompt + index)
            report(f"cmpl-a_b-7-{prompt}", *entries, index=index, n=2, trace=1)
    return JSONResponse(chat(choices=4, object="text_completion"))


async def base(_: Request) -> Response:
    return JSONResponse(chat(kv_transfer_params={"theirs": 1}), headers={"X-Theirs": "1"})


async def fails(_: Request) -> Response:
    report("chatcmpl-1")
    return JSONResponse({"error": {"message": "usage"}}, status_code=400)


async def messages(_: Request) -> Response:
    report("chatcmpl-1", ENTRY)
    return JSONResponse({"type": "message", "usage": {"output_tokens": 9}})


async def streamed(request: Request) -> Response:
    trace = int(request.query_params.get("trace", 0))

    async def body() -> AsyncIterator[str]:
        answer = ANSWER.get()
        assert answer is not None
        report("chatcmpl-1", ENTRY, trace=trace)
        delta = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}}]}

        def dumped(value: Any) -> str:
            return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"

        yield dumped(delta)
        answer.reports[0].add([LATER])
        yield dumped(delta | {"choices": [{"index": 0, "finish_reason": "stop"}]})
        yield dumped(delta | {"choices": [], "usage": {"completion_tokens": 9}})
        yield "data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


RESPONSE = {"id": "resp_1", "object": "response", "background": True, "usage": None}
DONE = RESPONSE | {"usage": {"output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 0}}}


async def respond(request: Request) -> Response:
    """As the Responses API does: in the background or not, streamed or not."""
    asked = await request.json()
    report("resp_1_0", ENTRY, trace=1)
    report("resp_1_1", LATER, trace=1)
    begun = RESPONSE | {"status": "queued", "background": asked["background"]}
    if not asked["stream"]:
        return JSONResponse(begun if asked["background"] else DONE)

    async def body() -> AsyncIterator[str]:
        for kind, response in (("created", begun), ("completed", DONE)):
            event = {"response": response, "type": f"response.{kind}"}
            dumped = json.dumps(event, separators=(",", ":"))
            yield f"event: response.{kind}\ndata: {dumped}\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


async def later(_: Request) -> Response:
    return JSONResponse(DONE | {"kv_transfer_params": {"gate": {}}})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
    routes = [
        Route(f"/{one.__name__}", one) for one in (whole, several, base, fails, messages, streamed)
    ]
    routes.append(Route("/v1/responses", respond, methods=["POST"]))
    routes.append(Route("/v1/responses/{id}", later))
    routes.append(Route("/v1/responses/{id}/cancel", later, methods=["POST"]))
    return TestClient(GateAnswers(Starlette(routes=routes)))


def gated(answer: dict[str, Any], details: str = "completion_tokens_details") -> int:
    return int(answer["usage"][details]["gated_tokens"])


def events(text: str) -> list[dict[str, Any]]:
    """What a stream brought, before its end."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_whole_answer(client: TestClient) -> None:
    answer = client.get("/whole")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert gated(answer.json()) == 1
    assert "gate_trace" not in answer.json()["choices"][0]
    assert answer.json()["kv_transfer_params"] is None  # it says the same again
    assert client.get("/whole?trace=1").json()["choices"][0]["gate_trace"] == [ENTRY]


def test_prompts_and_sequences_are_told_apart(client: TestClient) -> None:
    answer = client.get("/several").json()
    assert gated(answer) == 6
    assert [len(choice["gate_trace"]) for choice in answer["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cmpl-a_b-7-12", 12),
        ("resp_0123abcd_3", 3),
        # Clients may choose the id of a response, and the middle of the others.
        ("cmpl-mine_0", 0),
        ("cmpl-7-2_4", 4),
        ("cmpl-mine", 0),
        ("resp", 0),
        ("mine_2", 2),
        ("a\nb_2", 2),
        ("chatcmpl-mine_7", 0),
        ("generate-tokens-mine_" + "9" * 5000, 0),
        ("cmpl-mine-\u0663", 0),
    ],
)
def test_an_id_that_a_client_chose_ends_nothing(name: str, place: int) -> None:
    answer = AnswerContext()
    state: Any = SimpleNamespace(external_req_id=name, parent_req=None, request_index=0)
    answer.add(state, GateReport(1, []))
    assert list(answer.reports) == [place]


def test_what_is_not_gated_passes_untouched(client: TestClient) -> None:
    answer = client.get("/base")
    assert answer.json() == chat(kv_transfer_params={"theirs": 1})
    assert answer.headers["x-theirs"] == "1"
    failed = client.get("/fails")
    assert (failed.status_code, failed.json()) == (400, {"error": {"message": "usage"}})
    assert client.get("/messages").json()["usage"] == {"output_tokens": 9}


def test_streams(client: TestClient) -> None:
    assert [gated(one) for one in events(client.get("/streamed").text) if one.get("usage")] == [2]
    first, end, usage = events(client.get("/streamed?trace=1").text)
    assert "gate_trace" not in first["choices"][0]
    assert end["choices"][0]["gate_trace"] == [ENTRY, LATER]
    assert gated(usage) == 2
    first, end, _ = events(client.get("/streamed?trace=2").text)  # as it grows
    assert [one["choices"][0]["gate_trace"] for one in (first, end)] == [[ENTRY], [LATER]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("background", [False, True], ids=["at once", "in the background"])
def test_a_stored_response_is_completed_whoever_asks_for_it(
    client: TestClient, stream: bool, background: bool
) -> None:
    made = client.post("/v1/responses", json={"stream": stream, "background": background})
    assert made.text.count("gated_tokens") == (0 if background and not stream else 1)
    for method, path in (("GET", ""), ("GET", ""), ("POST", "/cancel")):
        answer = client.request(method, f"/v1/responses/resp_1{path}").json()
        assert gated(answer, "output_tokens_details") == 2
        assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == 0
        assert answer["gate_trace"] == [ENTRY, LATER]
        assert answer["kv_transfer_params"] is None
    assert "gated_tokens" not in client.get("/v1/responses/resp_2").text


def test_what_vllm_does_not_store_is_not_kept(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app: Any = client.app
    for stream in (False, True):
        client.post("/v1/responses", json={"stream": stream, "background": False})
    assert list(app._stored) == ["resp_1"]
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "0")
    app = GateAnswers(app.app)
    TestClient(app).post("/v1/responses", json={"stream": True, "background": False})
    assert not app._stored


def test_no_answer_is_left_in_the_gauge(client: TestClient) -> None:
    client.get("/whole")
    client.get("/streamed")
    client.get("/fails")
    assert ANSWERS._value.get() == 0
