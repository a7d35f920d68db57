"""Splitting the text of a source."""

from __future__ import annotations

_CLOSING = {"[": "]", "(": ")", "{": "}"}


def split_outside(text: str, separator: str) -> list[str]:
    """Split `text` at `separator`, but not within brackets.

    `a,b=[1,2]` has two parts at ",". Raises ValueError if a bracket is not closed.
    """
    parts = [""]
    waiting: list[str] = []  # closing brackets to come
    for character in text:
        if character in _CLOSING:
            waiting.append(_CLOSING[character])
        elif waiting and character == waiting[-1]:
            waiting.pop()
        if character == separator and not waiting:
            parts.append("")
        else:
            parts[-1] += character
    if waiting:
        raise ValueError(f"'{text}' lacks a '{waiting[-1]}'")
    return parts
