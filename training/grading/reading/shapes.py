r"""What an answer is made of: a list, a set, a tuple, an interval, a matrix, or an equation.

3, -3 and 5          list       order does not matter
\{1, 2\}             set        neither do order and repetition
(1, 2)               tuple      order matters; with two parts it may be an open interval
[1, 2]               bracket    a closed interval, or a list as a program writes it
(1, 2]               interval
(0,1) \cup [2,3)     union
x = 5, 1 < x \le 2   relation
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["list", "set", "tuple", "bracket", "interval", "union", "matrix", "relation", "atom"]

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|.", re.DOTALL)
_OPENING = frozenset(["(", "[", "{", r"\{", r"\langle"])
_CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle"])
_RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx", r"\equiv"])
_MATRIX = re.compile(
    r"\\begin\s*\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?(?P<body>.*)"
    r"\\end\s*\{(?P=kind)\}",
    re.DOTALL,
)
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|vec|mathbb|mathcal|hat|bar)\s*)?"
    r"(?:\\?[A-Za-z]+|\{\s*[A-Za-z]+\s*\})(?:\s+[A-Za-z]+){0,6}'*"
    r"(?:_\s*(?:\{[^{}]*\}|\w))?'*(?:\^\s*\\circ)?(?:\s*\([^()=<>]*\))?"
    r"|\|?[A-Z]{2}\|?|[a-zA-Z](?:\s*[+-]\s*[a-zA-Z])+|\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)"
    r"|\\frac\{d?[a-z]\}\{d?[a-z]\}"
)
_THOUSANDS = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED = re.compile(r",\s|;|\b(?:and|or)\b")


class Shape(NamedTuple):
    """An answer taken apart at its outermost level."""

    kind: Kind
    items: tuple[str, ...]  # a matrix: row by row
    signs: tuple[str, ...] = ()  # relation: those between the items; interval: its two brackets
    columns: int = 0  # of a matrix


@lru_cache(maxsize=16384)
def read_shape(text: str) -> Shape:
    """The shape of `text`, as `plain` writes it."""
    text = _ungrouped(text.strip())
    if match := _MATRIX.fullmatch(text):
        return _matrix(match["body"])
    tokens = _tokens(text)
    pieces = _split(tokens, frozenset([r"\cup"]))
    if len(pieces) > 1:
        return Shape("union", tuple(pieces))
    wrapped = _wrapped(text, tokens)
    if wrapped is not None:
        return wrapped
    items = list_items(text)
    if len(items) > 1:
        return Shape("list", tuple(items))
    parts, signs = _relation(tokens)
    if signs and all(parts):
        return Shape("relation", tuple(parts), tuple(signs))
    return Shape("atom", (text,))


def list_items(text: str) -> list[str]:
    """The items of `text`, separated by commas, semicolons, "and" and "or"."""
    held = text
    if "," in text and _SPACED.search(text):
        held = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    tokens = _tokens(held)
    return [item for item in _split(tokens, frozenset([",", ";", "and", "or"])) if item]


def is_name(text: str) -> bool:
    """Whether `text` names what is asked for: x, f(x), a_n, \\angle ABC, Area of the square."""
    return bool(_NAME.fullmatch(text.strip()))


def terms(text: str) -> list[str]:
    """The parts of `text` between commas, colons and plus signs, where an ellipsis may stand."""
    return [
        item
        for item in _split(_tokens(text), frozenset([",", ";", ":", "+", r"\cdot", r"\times"]))
        if item
    ]


def _tokens(text: str) -> list[tuple[str, int]]:
    """(token, depth of brackets around it)."""
    found, depth = [], 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _CLOSING:
            depth -= 1
        found.append((token, depth))
        if token in _OPENING:
            depth += 1
    return found


def _split(tokens: list[tuple[str, int]], separators: frozenset[str]) -> list[str]:
    """The text between those separators that are in no bracket."""
    parts = [""]
    for token, depth in tokens:
        if depth == 0 and token in separators:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


def _relation(tokens: list[tuple[str, int]]) -> tuple[list[str], list[str]]:
    parts: list[str] = [""]
    signs: list[str] = []
    for token, depth in tokens:
        if depth == 0 and token in _RELATIONS:
            if token == "=" and signs and not parts[-1].strip():
                continue  # "==" is "="
            signs.append(token)
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip().rstrip(":").strip() for part in parts], signs


def _ungrouped(text: str) -> str:
    """`text` without braces of TeX around all of it."""
    while text.startswith("{") and text.endswith("}") and not text.endswith("\\}"):
        tokens = _tokens(text)
        if any(depth == 0 for _, depth in tokens[1:-1]):
            break
        text = text[1:-1].strip()
    return text


def _wrapped(text: str, tokens: list[tuple[str, int]]) -> Shape | None:
    """The set, tuple or interval that one pair of brackets around all of `text` makes."""
    if len(tokens) < 3:
        return None
    first, last = tokens[0][0], tokens[-1][0]
    if first in "[]" and last in "[]" and not re.search(r"[\[\]]", text[1:-1]):
        return _bracketed(text[1:-1], "(" if first == "]" else "[", ")" if last == "[" else "]")
    if first not in _OPENING or last not in _CLOSING or first == "{":
        return None
    if any(depth < 1 for _, depth in tokens[1:-1]):
        return None
    inside = text[len(first) : len(text) - len(last)].strip()
    if first == r"\{":
        if re.search(r"\\mid|\\colon|:|\|", inside):
            return None  # \{ x : x > 0 \}
        return Shape("set", tuple(list_items(inside)))
    if first == r"\langle":
        return Shape("tuple", tuple(list_items(inside)))
    return _bracketed(inside, first, last)


def _bracketed(inside: str, first: str, last: str) -> Shape | None:
    items = [item for item in _split(_tokens(inside), frozenset([",", ";"])) if item]
    if first == "(" and last == ")":
        return Shape("tuple", tuple(items)) if len(items) > 1 else None
    if first == "[" and last == "]":
        return Shape("bracket", tuple(items)) if items else None
    return Shape("interval", tuple(items), (first, last)) if len(items) == 2 else None


def _matrix(body: str) -> Shape:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", body) if row.strip()]
    cells = [[cell.strip() for cell in row.replace(r"\hline", "").split("&")] for row in rows]
    columns = len(cells[0]) if cells else 0
    if any(len(row) != columns for row in cells):
        return Shape("atom", (body,))
    return Shape("matrix", tuple(cell for row in cells for cell in row), columns=columns)
