"""Schemas and grammars of a request that vLLM would choke on, refused before it gets them.

    {"type": "string", "pattern": "a{1,9999}"}    vLLM's own check takes minutes, for all requests
    {"$ref": "#"}                                 no answer is ever one; the request ends with 500
    {"grammar": "root ::= "}                      passes one check, then fails in the engine: 500

Only what is cheap to see is looked at. All else is vLLM's to refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

MOST_REPEATS = 2000  # of all patterns of a schema; xgrammar's time grows with their square
_REPEAT = re.compile(r"\{\s*(\d+)?\s*(?:,\s*(\d+)?\s*)?\}")
_SAME_PLACE = ("anyOf", "oneOf", "allOf")  # schemas of the very value that has the keyword
ZERO = b"\0"  # in JSON of UTF-16 or UTF-32, which is read too
# The words that matter; or an escaped letter, which may be one of theirs.
_WORDS = re.compile(
    rb'"(?:pattern|patternProperties|\$ref|grammar)"|\\"(?:pattern|\$ref)|\\u00|' + ZERO
)


def check(body: dict[str, Any], raw: bytes) -> None:
    """Look at a request's schemas and grammar.

    Args:
        raw: the JSON that `body` was read from.

    Raises:
        ValueError: one cannot be used; the message begins with the field.
    """
    if not _WORDS.search(raw):
        return
    for field, schema in _schemas(body):
        repeats = sum(_repeats(pattern) for pattern in _patterns(schema))
        if repeats > MOST_REPEATS:
            raise ValueError(
                f"{field}: its patterns repeat up to {repeats} times in all, more than "
                f"{MOST_REPEATS}, which takes too long; use maxLength, or smaller counts"
            )
        if _refers_to_itself(schema):
            raise ValueError(f"{field}: a schema refers to itself with nothing between ($ref)")
    structured = body.get("structured_outputs")
    grammar = structured.get("grammar") if isinstance(structured, dict) else None
    if isinstance(grammar, str):
        _check_grammar(grammar)


def _schemas(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(field, JSON schema) of every schema of a request."""
    paths = {
        "response_format": ("json_schema", "schema"),
        "structured_outputs": ("json",),
        "text": ("format", "schema"),
    }
    for field, path in paths.items():
        yield field, _at(body.get(field), path)
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        for path in (("function", "parameters"), ("parameters",), ("input_schema",)):
            yield "tools", _at(tool, path)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    """What lies there; a text is read as JSON."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every object within a schema."""
    rest = [schema]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            yield one
            rest += one.values()
        elif isinstance(one, list):
            rest += one


def _patterns(schema: Any) -> Iterator[str]:
    """Every regular expression within a schema."""
    for node in _nodes(schema):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        named = node.get("patternProperties")
        if isinstance(named, dict):
            yield from named


def _repeats(pattern: str) -> int:
    """The counts of all repetitions, added up: 7 of `a{2}b{1,5}`."""
    found = _REPEAT.findall(re.sub(r"\\.", "", pattern))
    return sum(max(int(count[:9]) for count in (*counts, "0") if count) for counts in found)


def _refers_to_itself(schema: Any) -> bool:
    """Whether references lead back to a schema without a step into the value."""
    graph = {
        id(node): [id(one) for one in _of_the_same_value(node, schema)] for node in _nodes(schema)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _of_the_same_value(node: dict[str, Any], root: Any) -> Iterator[dict[str, Any]]:
    """The schemas that the value of `node` must fit, beside `node` itself."""
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target = _resolved(reference, root)
        if isinstance(target, dict):
            yield target
    for keyword in _SAME_PLACE:
        parts = node.get(keyword)
        parts = parts if isinstance(parts, list) else []
        yield from (part for part in parts if isinstance(part, dict))


def _resolved(reference: str, root: Any) -> Any:
    """What `#/$defs/x` points at; None: nothing."""
    value = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check_grammar(grammar: str) -> None:
    """Raise ValueError where the engine's own parser of grammars does not take it."""
    try:
        import xgrammar
        from vllm.v1.structured_output.utils import grammar_is_likely_lark
    except ImportError:
        return  # another vLLM, or without xgrammar; its own check stands alone
    if grammar_is_likely_lark(grammar):
        return
    try:
        xgrammar.Grammar.from_ebnf(grammar)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"structured_outputs.grammar: {reason[0][:300]}") from error
