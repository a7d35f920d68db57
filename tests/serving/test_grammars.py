"""Schemas and grammars that would hold up every request, or end one with HTTP 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_well_formed import ask

from serving import grammars


def refusal(body: dict[str, Any]) -> str:
    """Why the body is refused; empty where it is not."""
    raw = json.dumps(body).encode()
    try:
        grammars.check(json.loads(raw), raw)
    except ValueError as error:
        return str(error)
    return ""


def schema(value: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


TREE = {
    "anyOf": [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/node"}, {"type": "null"}],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"left": {"$ref": "#"}, "right": {"anyOf": [{"$ref": "#/$defs/node"}]}},
        }
    },
}


@pytest.mark.parametrize(
    "body",
    [
        {},
        schema({"type": "string", "pattern": "^[a-z]{1,64}$"}),
        schema({"type": "string", "pattern": r"a\{9999\}"}),
        schema({"type": "string", "pattern": "a{5,}"}),
        schema({"type": "string", "maxLength": 10**9}),
        schema({"type": "object", "properties": {"pattern": {"type": "string"}}}),
        schema(TREE),
        schema({"$ref": "#/nowhere"}),
        schema({"$ref": "http://elsewhere/"}),
        schema({"type": "array", "items": {"$ref": "#"}}),
        schema({"anyOf": "$ref", "pattern": 7, "patternProperties": ["a{9999}"]}),
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
        {"structured_outputs": {"grammar": 'start: "a" | "b"'}},
        {"structured_outputs": {"grammar": 7}},
        {"structured_outputs": {"json": '{"$ref": '}},
        {"messages": [{"content": "the pattern a{9999}"}], "tools": ["pattern", None]},
    ],
)
def test_what_is_left_to_vllm(body: dict[str, Any]) -> None:
    assert refusal(body) == ""


REPEATS = "its patterns repeat up to 9999 times in all, more than 2000"
ITSELF = "a schema refers to itself with nothing between"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (schema({"pattern": "a{1,9999}"}), f"response_format: {REPEATS}"),
        (schema({"pattern": "a{9999}"}), REPEATS),
        (schema({"pattern": "a{9999,}"}), REPEATS),
        (schema({"pattern": "a{ 1 , 9999 }"}), REPEATS),
        (schema({"items": [{"patternProperties": {"a{9999}": {}}}]}), REPEATS),
        (schema({"allOf": [{"pattern": "a{999}b{999}"}, {"pattern": "a{9}"}]}), "up to 2007 times"),
        (schema({"pattern": "a{" + "9" * 5000 + "}"}), "up to 999999999 times"),
        (
            {"structured_outputs": {"json": {"pattern": "a{9999}"}}},
            f"structured_outputs: {REPEATS}",
        ),
        ({"structured_outputs": {"json": '{"pattern": "a{9999}"}'}}, REPEATS),
        ({"text": {"format": {"schema": {"pattern": "a{9999}"}}}}, f"text: {REPEATS}"),
        ({"tools": [{"function": {"parameters": {"pattern": "a{9999}"}}}]}, f"tools: {REPEATS}"),
        ({"tools": [{"input_schema": {"pattern": "a{9999}"}}]}, f"tools: {REPEATS}"),
        (schema({"$ref": "#"}), f"response_format: {ITSELF}"),
        (schema({"anyOf": [{"type": "null"}, {"$ref": "#"}]}), ITSELF),
        (schema({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}}), ITSELF),
        (schema({"$ref": "#/a~1b", "a/b": {"allOf": [{"oneOf": [{"$ref": "#/a~1b"}]}]}}), ITSELF),
        ({"structured_outputs": {"grammar": "root ::= "}}, "structured_outputs.grammar: .*EBNF"),
    ],
)
def test_what_is_refused_with_its_field(body: dict[str, Any], reason: str) -> None:
    import re

    assert re.search(reason, refusal(body))
    answer = asyncio.run(ask("/take", body))
    assert answer.status_code == 400
    assert re.search(reason, answer.json()["detail"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-le"])
@pytest.mark.parametrize(
    "text",
    [
        r'{"text": {"format": {"schema": {"p\u0061ttern": "a{9999}"}}}}',
        r'{"structured_outputs": {"json": "{\u0022pattern\u0022: \"a{9999}\"}"}}',
        '{"text": {"format": {"schema": {"pattern": "a{9999}"}}}}',
    ],
)
def test_no_spelling_hides_a_word(text: str, encoding: str) -> None:
    answer = asyncio.run(ask("/take", text.encode(encoding)))
    assert answer.status_code == 400
    assert REPEATS in answer.json()["detail"]


SCHEMAS = st.recursive(
    st.none() | st.sampled_from(["#", "#/a", "#/a/b", "a{3}", "{", 7, True]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$ref", "anyOf", "pattern", "patternProperties", "a", "b"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(SCHEMAS)
def test_any_schema_is_looked_at(value: object) -> None:
    assert isinstance(refusal(schema(value)), str)
    assert isinstance(refusal({"structured_outputs": value, "tools": value, "text": value}), str)
