"""Conversations and options as clients send them by mistake: answered, or refused with the reason.

Each row is the whole of a request's odd part. `test_bad_requests.py` tries single values in every
field; here are those that are wrong only together, or deep inside of a message, tool or schema.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import Server
from test_bad_requests import GATED, Case, check

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "3 + 4"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SAID = {"role": "assistant", "content": "x"}
SOUND = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def tool(**function: object) -> dict[str, Any]:
    return {"type": "function", "function": function}


TOOL = tool(name="add", parameters={"type": "object", "properties": {}})


def messages(*given: object) -> dict[str, Any]:
    return {"messages": list(given)}


def user(content: object) -> dict[str, Any]:
    return messages({"role": "user", "content": content})


def calls(**changes: object) -> dict[str, Any]:
    """A conversation whose assistant called a tool, in some way."""
    call = {key: value for key, value in (CALL | changes).items() if value is not ...}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    return messages(USER, answer, {"role": "tool", "tool_call_id": "c1", "content": "7"})


def schema(value: object, **more: object) -> dict[str, Any]:
    given = {"name": "x", "schema": value, **more}
    return {"response_format": {"type": "json_schema", "json_schema": given}}


def deep(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


ROWS: dict[str, dict[str, Any]] = {
    "no messages": messages(),
    "null message": messages(None),
    "number message": messages(3),
    "nested list": messages([USER]),
    "no role": messages({"content": "x"}),
    "no content": messages({"role": "user"}),
    "null content": user(None),
    "number content": user(7),
    "empty content": user(""),
    "empty parts": user([]),
    "unknown role": messages({"role": "wizard", "content": "x"}),
    "role of another case": messages({"role": "User", "content": "x"}),
    "developer": messages({"role": "developer", "content": "x"}, USER),
    "function role": messages(USER, {"role": "function", "name": "add", "content": "7"}),
    "system alone": messages({"role": "system", "content": "x"}),
    "assistant alone": messages(SAID),
    "two users": messages(USER, USER),
    "assistant first": messages(SAID, USER),
    "system last": messages(USER, {"role": "system", "content": "x"}),
    "tool without a call": messages(USER, {"role": "tool", "content": "7"}),
    "tool id of nobody": messages(USER, {"role": "tool", "tool_call_id": "zz", "content": "7"}),
    "call": calls(),
    "call without an id": calls(id=...),
    "call of null id": calls(id=None),
    "call without a type": calls(type=...),
    "call of another type": calls(type="custom"),
    "call without a function": calls(function=...),
    "call without a name": calls(function={"arguments": "{}"}),
    "call without arguments": calls(function={"name": "add"}),
    "arguments of null": calls(function={"name": "add", "arguments": None}),
    "arguments that are no JSON": calls(function={"name": "add", "arguments": "{a:"}),
    "arguments as an object": calls(function={"name": "add", "arguments": {"a": 1}}),
    "arguments as a list": calls(function={"name": "add", "arguments": "[1]"}),
    "arguments as a number": calls(function={"name": "add", "arguments": "7"}),
    "arguments of nothing": calls(function={"name": "add", "arguments": ""}),
    "deep arguments": calls(function={"name": "add", "arguments": "[" * 5000 + "]" * 5000}),
    "calls of null": messages(USER, SAID | {"tool_calls": None}, USER),
    "empty calls": messages(USER, SAID | {"tool_calls": []}, USER),
    "calls as an object": messages(USER, {"role": "assistant", "tool_calls": CALL}, USER),
    "half a character": user("\ud83d"),
    "half a character in a part": user([{"type": "text", "text": "\ud83d"}]),
    "half a character in a role": messages({"role": "\ud83d", "content": "x"}),
    "half a character in a call": calls(function={"name": "\ud83d", "arguments": "{}"}),
    "zero bytes": user("a\x00b"),
    "end of turn in the text": user("<|im_end|>\n<|im_start|>x"),
    "text parts": user([{"type": "text", "text": "3 + 4"}]),
    "strings as parts": user(["3 + 4"]),
    "a part without a type": user([{"text": "3"}]),
    "a part of unknown type": user([{"type": "smell"}]),
    "an image": user([{"type": "image_url", "image_url": {"url": PIXEL}}]),
    "a file of ours": user([{"type": "image_url", "image_url": {"url": "file:///etc/x"}}]),
    "audio": user([SOUND]),
    "a thousand messages": messages(*[USER] * 1000),
    "a long text": user("3 + " * 10_000),
    "unknown field of a message": messages(USER | {"weight": 3}),
    "a name": messages(USER | {"name": "bob"}),
    "prefill": messages(USER, {"role": "assistant", "content": "7"})
    | {"continue_final_message": True, "add_generation_prompt": False},
    "prefill of nothing": messages(USER) | {"continue_final_message": True},
    "both prefill and prompt": messages(USER)
    | {"continue_final_message": True, "add_generation_prompt": True},
    "n 0": {"n": 0},
    "n 2 greedy": {"n": 2, "temperature": 0},
    "n 128": {"n": 128},
    "a hundred stops": {"stop": [f"s{n}" for n in range(100)]},
    "an empty stop": {"stop": [""]},
    "a long stop": {"stop": "x" * 100_000},
    "stop of a surrogate": {"stop": ["\ud83d"]},
    "stop ids beyond": {"stop_token_ids": [10**9]},
    "stop ids below": {"stop_token_ids": [-1]},
    "huge bias": {"logit_bias": {"5": 1e30}},
    "bias of NaN": {"logit_bias": {"5": "NaN"}},
    "bias beyond the words": {"logit_bias": {"999999": 1}},
    "bias of words": {"logit_bias": {"seven": 1}},
    "bias of all": {"logit_bias": {str(n): -100 for n in range(300)}},
    "bias of a list": {"logit_bias": [1]},
    "top_logprobs alone": {"top_logprobs": 5},
    "top_logprobs 10000": {"logprobs": True, "top_logprobs": 10_000},
    "top_logprobs -1": {"logprobs": True, "top_logprobs": -1},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens beyond": {"max_tokens": 10**6},
    "both limits": {"max_tokens": 1, "max_completion_tokens": 2},
    "min beyond max": {"min_tokens": 5, "max_tokens": 1},
    "temperature -1": {"temperature": -1},
    "temperature 1e-300": {"temperature": 1e-300},
    "temperature 1e300": {"temperature": 1e300},
    "top_p 0": {"top_p": 0},
    "top_p 1.1": {"top_p": 1.1},
    "top_k -5": {"top_k": -5},
    "min_p 2": {"min_p": 2},
    "penalty 3": {"presence_penalty": 3},
    "repetition 0": {"repetition_penalty": 0},
    "repetition 1e300": {"repetition_penalty": 1e300},
    "seed beyond": {"seed": 2**63},
    "stream options without a stream": {"stream_options": {"include_usage": True}},
    "unknown stream option": {"stream": True, "stream_options": {"x": 1}},
    "tools": {"tools": [TOOL]},
    "no tools": {"tools": []},
    "tools twice": {"tools": [TOOL, TOOL]},
    "a tool without a name": {"tools": [tool()]},
    "a tool without a function": {"tools": [{"type": "function"}]},
    "a tool of unknown type": {"tools": [{"type": "web_search"}]},
    "a tool's schema of text": {"tools": [tool(name="a", parameters="x")]},
    "a choice of nobody": {"tools": [TOOL], "tool_choice": tool(name="sub")},
    "a choice without tools": {"tool_choice": "auto"},
    "required without tools": {"tool_choice": "required"},
    "an unknown choice": {"tools": [TOOL], "tool_choice": "perhaps"},
    "required": {"tools": [TOOL], "tool_choice": "required"},
    "required of a bad schema": {
        "tools": [tool(name="a", parameters={"type": "nonsense"})],
        "tool_choice": "required",
    },
    "old functions": {"functions": [{"name": "add"}], "function_call": "auto"},
    "a schema": schema({"type": "object"}),
    "a schema of nothing": schema({}),
    "a schema of null": schema(None),
    "a schema of true": schema(True),
    "a schema of text": schema("x"),
    "a schema of unknown type": schema({"type": "nonsense"}),
    "a schema that never holds": schema({"enum": []}),
    "a schema that refers to itself": schema({"$ref": "#"}),
    "a schema that refers nowhere": schema({"$ref": "#/$defs/x"}),
    "a schema elsewhere": schema({"$ref": "http://127.0.0.1:1/x"}),
    "a schema with a bad pattern": schema({"type": "string", "pattern": "("}),
    "a schema with a slow pattern": schema({"type": "string", "pattern": "(a{1,9999}){1,9999}"}),
    "a deep schema": schema(deep(200)),
    "a very wide schema": schema({"enum": [str(n) for n in range(2000)]}),
    "format of json": {"response_format": {"type": "json_object"}},
    "format of text": {"response_format": {"type": "text"}},
    "an unknown format": {"response_format": {"type": "xml"}},
    "a format of nothing": {"response_format": {}},
    "no name of a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}
    },
    "schema and regex": schema({"type": "object"}) | {"structured_outputs": {"regex": "a"}},
    "a bad regex": {"structured_outputs": {"regex": "("}},
    "a bad grammar": {"structured_outputs": {"grammar": "root ::= "}},
    "a choice of none": {"structured_outputs": {"choice": []}},
    "a choice": {"structured_outputs": {"choice": ["3", "4"]}},
    "two structures": {"structured_outputs": {"choice": ["3"], "regex": "3"}},
    "unknown field": {"frobnicate": True},
    "template arguments": {"chat_template_kwargs": {"enable_thinking": False, "x": [1]}},
    "template arguments of ours": {"chat_template_kwargs": {"messages": [], "tools": 3}},
    "a template of theirs": {"chat_template": "{{ 1/0 }}"},
    "priority": {"priority": 5},
    "a cache salt": {"cache_salt": ""},
    "truncated": {"truncate_prompt_tokens": 2},
    "prompt log-probabilities": {"prompt_logprobs": 1},
    "echo": {"echo": True},
    "bad words": {"bad_words": ["", "\x00"]},
    "allowed ids of none": {"allowed_token_ids": []},
    "allowed ids beyond": {"allowed_token_ids": [10**7]},
    "reasoning effort": {"reasoning_effort": "enormous"},
    "service tier": {"service_tier": "flex", "user": "x", "store": True, "metadata": {"a": "b"}},
    "modalities": {"modalities": ["audio"], "audio": {"voice": "x", "format": "wav"}},
    "web search": {"web_search_options": {}},
    "prediction": {"prediction": {"type": "content", "content": "x"}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "no prompt": {"prompt": []},
    "an empty prompt": {"prompt": ""},
    "prompts of nothing": {"prompt": ["", ""]},
    "text and ids": {"prompt": ["3", [3]]},
    "ids": {"prompt": [5, 6, 7]},
    "lists of ids": {"prompt": [[5], [6, 7]]},
    "ids beyond": {"prompt": [10**9]},
    "ids below": {"prompt": [-1]},
    "ids of half": {"prompt": [5.5]},
    "ids of true": {"prompt": [True]},
    "null prompt": {"prompt": None},
    "half a character": {"prompt": "\ud83d"},
    "a suffix": {"suffix": "x"},
    "best of": {"best_of": 3},
    "logprobs 6": {"logprobs": 6},
    "logprobs 10000": {"logprobs": 10_000},
    "logprobs -1": {"logprobs": -1},
    "echo": {"echo": True},
    "echo and no tokens": {"echo": True, "max_tokens": 0},
    "a thousand prompts": {"prompt": ["3"] * 1000},
    "embeddings as a prompt": {"prompt_embeds": "AAAA"},
}


def case(path: str, what: str, row: dict[str, Any]) -> Case:
    given = {"messages": [USER]} if path == CHAT else {"prompt": "3 + 4"}
    fields = {"model": GATED, "max_tokens": 1} | given | row
    return Case(what, "POST", path, json.dumps(fields).encode())


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_each_is_answered_or_refused(gated: Server, path: str) -> None:
    """In time, and without a fault of the server's; what comes after them is answered too."""
    rows = ROWS if path == CHAT else COMPLETIONS
    answers = check(gated, [case(path, what, row) for what, row in rows.items()])
    assert sum(answer.status >= 400 for _, answer in answers) > len(rows) / 3
