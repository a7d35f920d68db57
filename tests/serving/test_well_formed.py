"""Values that the engine cannot take, and validators that fail in their own way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, field_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from serving import well_formed

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=MESSAGES, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": ["é", "😀", "\x00"], "user": "ü", "top_k": 7, "seed": -(2**63)},
        {"logit_bias": {"20": 1.5}, "vllm_xargs": {"gate_tau": 0.5}, "metadata": {"a": "b"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1]}}}]},
    ],
)
def test_good_requests_are_let_through(fields: dict[str, Any]) -> None:
    well_formed.check(chat(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop": "\ud800"}, "stop: has half a character"),
        ({"stop": ["x", "a\udfffb"]}, "stop: has half a character"),
        ({"request_id": "\ud800"}, "request_id: "),
        ({"vllm_xargs": {"x": "\ud800"}}, r"vllm_xargs\.x: "),
        ({"kv_transfer_params": {"\ud800": 1}}, "kv_transfer_params: "),
        ({"kv_transfer_params": {"a": [{"b": 2**64}]}}, r"kv_transfer_params\.a\.b: integers"),
        ({"top_k": 2**64}, "top_k: integers must have at most 64 bits"),
        ({"top_k": -(2**63) - 1}, "top_k: integers"),
        ({"theirs": {"deep": ["\ud800"]}}, r"theirs\.deep: "),  # no field of vLLM's
    ],
)
def test_what_the_engine_cannot_take_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        well_formed.check(chat(**fields))


def test_what_is_rendered_first_is_left_to_vllm() -> None:
    """It may be long, and its own refusals are good."""
    well_formed.check(CompletionRequest(prompt=[2**64]))


class Body(BaseModel):
    """One whose validator fails as vLLM's do."""

    value: Any = None

    @field_validator("value", mode="before")
    @classmethod
    def _get(cls, value: Any) -> Any:
        return value.get("x")


async def ask(
    path: str, body: dict[str, Any] | bytes, content_type: str = "application/json"
) -> httpx.Response:
    app = FastAPI()

    @app.post("/read")
    async def read(body: Body) -> None:
        return None

    @app.post("/fail")
    async def fail(body: dict[str, Any]) -> None:
        raise KeyError("a fault of the server")

    @app.post("/deep")
    async def deep(body: dict[str, Any]) -> Any:
        return json.loads("[" * 10**5)

    @app.post("/bodiless")
    async def bodiless() -> None:
        return None

    @app.post("/take")
    async def take(body: dict[str, Any]) -> None:
        return None

    well_formed.install(app)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        return await client.post(path, content=content, headers=headers)


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/read", 400, "BadRequestError"),
        ("/fail", 500, "InternalServerError"),
        ("/deep", 400, "BadRequestError"),
    ],
)
def test_a_validator_that_breaks_is_the_requests_fault_and_nothing_else_is(
    path: str, status: int, kind: str
) -> None:
    answer = asyncio.run(ask(path, {"value": 7}))
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"vllm_xargs": {"gate_tau": True}}, 400),
        ({"vllm_xargs": {"correction_temperature": False}}, 400),
        ({"vllm_xargs": {"gate_tau": 1, "theirs": True}}, 200),
        ({"vllm_xargs": [True]}, 200),  # vLLM's class refuses it
        ({"vllm_xargs": None}, 200),
        ({}, 200),
    ],
)
def test_no_truth_value_is_taken_for_a_number(body: dict[str, Any], status: int) -> None:
    answer = asyncio.run(ask("/take", body))
    assert answer.status_code == status, answer.text
    assert status == 200 or "must be a number" in answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "a\ud83d"}, "prompt"),
        ({"prompt": ["a", "\udc00b"]}, "prompt"),
        (
            {"messages": [{"role": "user", "content": [{"text": "\ud83d"}]}]},
            "messages.content.text",
        ),
        ({"messages": [{"\ud83d": 1}]}, "messages"),
        ({"input": [{"content": "\ud83d\ud83d"}]}, "input.content"),
        (b'{"prompt": "\xed\xa0\x80"}', "prompt"),
        ({"prompt": "\U0001f600 \u00e9", "messages": [{"content": "\U0001f600"}]}, None),
        ({"prompt": "\\ud83d", "theirs": "\ud83d"}, None),
    ],
)
def test_half_a_character_in_a_prompt_is_named(body: dict[str, Any] | bytes, field: str) -> None:
    answer = asyncio.run(ask("/take", body))
    assert answer.status_code == (400 if field else 200), answer.text
    if field:
        assert answer.json()["detail"].startswith(f"{field}: has half a character")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("Application/JSON", 400),
        ("application/json ; charset=utf-8", 400),
        ("application/vnd.theirs+json", 400),
        ("text/plain", 422),  # no JSON to FastAPI
        ("", 422),
    ],
)
def test_every_type_that_is_read_as_json_is_looked_at(content_type: str, status: int) -> None:
    answer = asyncio.run(ask("/take", {"prompt": "\ud83d"}, content_type))
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-be"])
def test_half_a_character_is_found_in_any_encoding(encoding: str) -> None:
    body = json.dumps({"prompt": "\ud83d"}).encode(encoding)
    assert asyncio.run(ask("/take", body)).status_code == 400


def test_a_request_without_a_body_may_name_its_type() -> None:
    """As openai's client does where it cancels a response."""
    assert asyncio.run(ask("/bodiless", b"")).status_code == 200
    assert asyncio.run(ask("/take", b"")).status_code == 422
