r"""Boxes in a text, and GSM8K's mark.

last_boxed(r"so \boxed{\frac{1}{2}}.")  # \frac{1}{2}
after_hashes("2 * 9 = 18\n#### 18")     # 18
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BRACES = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|(?P<bare>\\boxed\s+[^\s{}$\\]+)"
    r"|\\\\(?!(?:boxed|fbox)\b)|\\[{}]|(?P<open>\{)|(?P<close>\})"
)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S[^\n]*)")
# What may stand between the boxes of an answer with several parts.
_JOINED = re.compile(
    r"(?:[\s$]|\\[,;()\[\] ]|\\q?quad)*(?:,|;|\\text\{\s*(?:and|or)\s*\}|and|or|&)"
    r"(?:[\s$,]|\\[,;()\[\] ]|\\q?quad|\b(?:and|or)\b)*"
)


class Boxes(NamedTuple):
    """What the boxes of a text say."""

    last: str | None  # the content of the last complete one, or of several joined by "," or "and"
    start: int = 0  # where it begins in the text
    end: int = 0  # where it ends
    cut_off: bool = False  # a box that opens behind it is never closed


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None. Linear in the length of `text`.

    Braces are balanced as TeX does it (`\{` is no brace); `\fbox{...}` and `\boxed 5` count too.
    """
    complete, _ = _all_boxes(text)
    return complete[-1].content if complete else None


def boxes(text: str) -> Boxes:
    r"""The final answer that the boxes of `text` hold.

    `\boxed{3} and \boxed{-3}` at the end are one answer, "3, -3".
    """
    complete, opened = _all_boxes(text)
    if not complete:
        return Boxes(None, cut_off=opened >= 0)
    last = complete[-1]
    if opened > last.start:
        return Boxes(None, last.start, last.end, True)
    parts = [last]
    for box in reversed(complete[:-1]):
        between = text[box.end : parts[0].start]
        if len(between) > 40 or not _JOINED.fullmatch(between):
            break
        parts.insert(0, box)
    contents = [part.content.strip() for part in parts]
    joined = contents[0] if len(set(contents)) == 1 else ", ".join(contents)
    return Boxes(last.content if len(parts) == 1 else joined, parts[0].start, last.end)


class _Box(NamedTuple):
    start: int  # of the command
    end: int
    content: str


def _all_boxes(text: str) -> tuple[list[_Box], int]:
    """The complete boxes in the order in which they begin, and where the last open one begins."""
    if "boxed" not in text and "fbox" not in text:
        return [], -1
    stack: list[tuple[int, int]] = []  # for each open brace: a box's begin and content, or -1
    best: list[_Box] = []
    for match in _BRACES.finditer(text):
        kind = match.lastgroup
        if kind == "box":
            stack.append((match.start(), match.end()))
        elif kind == "open":
            stack.append((-1, -1))
        elif kind == "close" and stack:
            begin, content = stack.pop()
            if begin >= 0 and (not best or begin > best[-1].start):
                best.append(_Box(begin, match.end(), text[content : match.start()]))
        elif kind == "bare" and (not best or match.start() > best[-1].start):
            best.append(_Box(match.start(), match.end(), match[0].split(maxsplit=1)[1]))
    return best, max((begin for begin, _ in stack), default=-1)


def after_hashes(text: str) -> str | None:
    """The final answer in GSM8K's way of writing it, "#### 18", or None."""
    found = hashes(text)
    return found[-1][1].strip() if found else None


def hashes(text: str) -> list[re.Match[str]]:
    """Each "#### 18" of `text`; its group 1 is what stands behind the mark."""
    return list(_HASHES.finditer(text))
