"""Ill-formed requests of every field end in 4xx, in OpenAI's error shape, and harm nobody else.

The fields are those of vLLM's own request classes, so a field of a newer vLLM is tried as well.
Each gets every odd value in turn, beside an otherwise good request of one token. Where a value
happens to be good for a field, the answer is 200.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import httpx
import pytest
from support import ADMIN, Server

GATED = "alpha:gated"
DEEP = "[" * 2_000 + "]" * 2_000  # JSON that a recursive parser may not survive
# As they stand in a body: some of them no JSON library would write.
ODD = (
    *("null", "true", "-1", "0", "1.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity"),
    *("9007199254740993", "18446744073709551616", "1" + "0" * 400, "-" + "9" * 30),
    *('""', '"x"', '"\\u0000"', '"\\ud800"', '"\\uffff"', '"' + "x" * 10_000 + '"'),
    *("[]", "[null]", "[1e999]", '["x", 1, null]', "[[]]", "[-1]", "[18446744073709551616]", DEEP),
    *("{}", '{"x": null}', '{"": {"": []}}', '{"type": "x"}', '{"\\u0000": "\\ud800"}'),
    *('{"1": 1e999}', '{"-1": 1}', '{"99999999999999999999": 1}'),
)
IN_FLIGHT = 8
SECONDS = 60


class Case(NamedTuple):
    """One request."""

    what: str
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str] = MappingProxyType({})


class Answer(NamedTuple):
    """What came back."""

    status: int
    text: str


def good(path: str, model: str = GATED) -> dict[str, str]:
    """Field -> JSON of a request that is answered with one token."""
    name = {"model": json.dumps(model)}
    if path in ("/v1/chat/completions", "/v1/messages"):
        message = '[{"role": "user", "content": "3 + 4"}]'
        return name | {"messages": message, "max_tokens": "1"}
    if path == "/v1/completions":
        return name | {"prompt": '"3 + 4"', "max_tokens": "1"}
    if path == "/v1/responses":
        return name | {"input": '"3 + 4"', "max_output_tokens": "1", "store": "false"}
    if path == "/detokenize":
        return name | {"tokens": "[1]"}
    return name | {"prompt": '"3 + 4"'}


def body(fields: dict[str, str]) -> bytes:
    """JSON of fields that are JSON already."""
    parts = (f"{json.dumps(name)}: {value}" for name, value in fields.items())
    return ("{" + ", ".join(parts) + "}").encode("utf-8", "surrogatepass")


def fields_of(path: str) -> list[str]:
    """The fields of an endpoint's request class."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import (
        DetokenizeRequest,
        TokenizeCompletionRequest,
    )

    return sorted(
        {
            "/v1/chat/completions": ChatCompletionRequest,
            "/v1/completions": CompletionRequest,
            "/v1/responses": ResponsesRequest,
            "/v1/messages": AnthropicMessagesRequest,
            "/tokenize": TokenizeCompletionRequest,
            "/detokenize": DetokenizeRequest,
        }[path].model_fields
    )


async def _ask_all(server: Server, cases: Iterable[Case]) -> list[tuple[Case, Answer]]:
    turns = asyncio.Semaphore(IN_FLIGHT)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}

    async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as client:

        async def ask(case: Case) -> tuple[Case, Answer]:
            async with turns:
                try:
                    answer = await client.request(
                        case.method,
                        case.path,
                        content=case.body,
                        headers=headers | dict(case.headers),
                    )
                except httpx.HTTPError as error:  # a connection that was dropped, or no answer
                    return case, Answer(599, repr(error))
                return case, Answer(answer.status_code, answer.text)

        return await asyncio.gather(*map(ask, cases))


def wrong(answer: Answer) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.status >= 500:
        return f"{answer.status}: {answer.text[:300]}"
    if answer.status < 400:
        # An error in a stream that has begun has no status of its own.
        return f"200, then {answer.text[:300]}" if '"code":5' in answer.text else ""
    try:
        error = json.loads(answer.text)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status} in another shape: {answer.text[:300]}"
    if not (isinstance(error.get("message"), str) and error["message"] and error.get("type")):
        return f"{answer.status} without a message or type: {answer.text[:300]}"
    return ""


def check(server: Server, cases: Iterable[Case]) -> list[tuple[Case, Answer]]:
    """Ask all; each answer is good, and the server goes on answering."""
    answers = asyncio.run(_ask_all(server, cases))
    bad = [f"{case.what}: {wrong(answer)}" for case, answer in answers if wrong(answer)]
    assert not bad, f"{len(bad)} of {len(answers)}:\n" + "\n".join(bad[:60])
    after = server.client().completions.create(model=GATED, prompt="3 + 4", max_tokens=1)
    assert after.usage.completion_tokens == 1
    return answers


PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/tokenize",
    "/detokenize",
)
SHARED = PATHS[:3]  # mostly the same fields: each takes a third of the values


@pytest.mark.parametrize("path", PATHS)
def test_every_field_with_every_odd_value(gated: Server, path: str) -> None:
    share = 3 if path in SHARED else 1
    cases = [
        Case(f"{path} {field}={value[:40]}", "POST", path, body(good(path) | {field: value}))
        for column, field in enumerate(fields_of(path))
        for row, value in enumerate(ODD)
        if (row + column + PATHS.index(path)) % share == 0
    ]
    answers = check(gated, cases)
    refused = [answer for _, answer in answers if answer.status >= 400]
    assert len(refused) > len(cases) / 4


LEGAL = {
    "gate_tau": {"0", "1.5", "1e308", "9007199254740993"},
    "gate_rate": {"0"},
    "gate_trace": {"0"},
    "correction_temperature": {"1.5"},
    "gate_temperature": {"1.5"},
    "guidance_scale": {"0", "1.5"},
    "guidance_prompt": set(),  # goes with a scale
}


@pytest.mark.parametrize("path", PATHS[:3])
def test_every_argument_of_the_gate_with_every_odd_value(gated: Server, path: str) -> None:
    cases = [
        Case(
            f"{path} {name}={value[:40]}",
            "POST",
            path,
            body(good(path) | {"vllm_xargs": body({name: value}).decode("utf-8", "surrogatepass")}),
        )
        for name in (*LEGAL, "gate_nonsense")
        for value in ODD
    ]
    taken = [case.what for case, answer in check(gated, cases) if answer.status < 400]
    legal = [f"{path} {name}={value}" for name in LEGAL for value in ODD if value in LEGAL[name]]
    assert taken == legal


BODIES = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "half an object": b'{"model": "alpha"',
    "two objects": b"{}{}",
    "no UTF-8": b'{"model": "\xff"}',
    "UTF-16": json.dumps({"model": "alpha"}).encode("utf-16"),
    "a BOM": b"\xef\xbb\xbf{}",
    "zeros": bytes(1000),
    "deep lists": DEEP.encode(),
    "very deep lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "a field twice": b'{"model": "alpha", "model": 7}',
}


@pytest.mark.parametrize("path", PATHS)
def test_bodies(gated: Server, path: str) -> None:
    cases = [Case(f"{path}: {what}", "POST", path, raw) for what, raw in BODIES.items()]
    for case, answer in check(gated, cases):
        assert 400 <= answer.status < 500, (case.what, answer)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Type", "multipart/form-data; boundary=x"),
        ("Content-Type", "application/json; charset=utf-16"),
        ("Content-Type", ""),
        ("Content-Encoding", "gzip"),
        ("X-Request-Id", "a" * 5_000),
        ("X-data-parallel-rank", "one"),
        ("X-data-parallel-rank", "7"),
        ("Accept", "image/png"),
    ],
)
def test_headers(gated: Server, path: str, name: str, value: str) -> None:
    check(
        gated, [Case(f"{path} {name}: {value[:20]}", "POST", path, body(good(path)), {name: value})]
    )


NAMES = [
    *("%00", "%ff", "alpha%00", "..%2f..%2fetc%2fpasswd", "%2e%2e", "alpha:gated:gated", ":gated"),
    *("alpha@", "@", "alpha@000000000000", "alpha%0a", "%F0%9F%98%80", "a" * 5_000, "%25", "%"),
    *("alpha/", "/", "alpha?x=1%00", "alpha;x", "%ed%a0%80", "alpha%20", "*", "[", "{x}", "<b>"),
]


def test_unknown_models_are_not_found(gated: Server) -> None:
    cases = [Case(f"GET {name[:40]}", "GET", f"/v1/models/{name}", None) for name in NAMES]
    for case, answer in check(gated, cases):
        assert answer.status in (200, 307, 400, 404), (case.what, answer)
        assert "passwd" not in case.what or answer.status == 404


def test_other_paths_and_methods(gated: Server) -> None:
    cases = [
        Case(f"{method} {path}", method, path, None)
        for path in (*PATHS, "/v1/embeddings", "/v1/nothing", "/v1/responses/x", "/metrics/x", "/")
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")
    ]
    check(gated, cases)
    cases = [
        Case(f"POST {path}", "POST", path, b'{"model": "alpha", "input": "x"}')
        for path in ("/v1/embeddings", "/v1/rerank", "/v1/score", "/pooling", "/classify")
    ]
    for case, answer in check(gated, cases):
        assert answer.status == 404, (case.what, answer)


def test_more_sequences_than_anybody_needs(gated: Server) -> None:
    """`n` has an upper limit, before anything is made for each sequence."""
    for path in PATHS[:2]:
        cases = [
            Case(f"{path} {field}={count}", "POST", path, body(good(path) | {field: count}))
            for field in ("n", "best_of")
            for count in ("100000", "2147483647", "9223372036854775807")
        ]
        for case, answer in check(gated, cases):
            assert answer.status == 400 or "best_of" in case.what, (case.what, answer)


def test_the_admin_api(gated: Server) -> None:
    """Its own bodies and names, with the admin key."""
    for path, field in (
        ("/admin/adapters/alpha/load", "version"),
        ("/admin/adapters/alpha/alias", "version"),
        ("/admin/adapters/alpha/pin", "pinned"),
    ):
        cases = [
            Case(f"{path} {field}={value[:40]}", "POST", path, body({field: value}), ADMIN)
            for value in ODD
            # These are good there: the first loads the alias, the other pins.
            if (field, value) not in {("version", "null"), ("pinned", "true")}
        ]
        cases += [
            Case(f"{path}: {what}", "POST", path, raw, ADMIN)
            for what, raw in BODIES.items()
            if what != "a BOM"  # an empty object behind it, which is good for load and pin
        ]
        for case, answer in check(gated, cases):
            assert 400 <= answer.status < 500, (case.what, answer)
    names = ("%00", "%ff", "..", "a" * 500, "ALPHA", "alpha@x", "%2e%2e%2f")
    check(gated, [Case(name, "GET", f"/admin/adapters/{name}", None, ADMIN) for name in names])


def test_an_admin_sets_no_odd_tau(gated: Server) -> None:
    path = "/admin/adapters/alpha/tau"
    # null puts the manifest's back.
    odd = [one for one in ODD if one != "null" and not one.lstrip("-")[0].isdigit()]
    cases = [
        Case(f"tau={value[:40]}", "PUT", path, body({"tau": value}), ADMIN)
        for value in (*odd, "-1", "1e999")
    ]
    for case, answer in check(gated, cases):
        assert 400 <= answer.status < 500, (case.what, answer)
