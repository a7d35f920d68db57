"""The pages of the documentation, taken apart: prose, code, headings, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
# Written by hand for users; the contributing page of the site is CONTRIBUTING.md.
WRITTEN = [README, ROOT / "CONTRIBUTING.md", *PAGES]
GENERATED = DOCS / "configuration.md"

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$")


class Block(NamedTuple):
    """A fenced code block."""

    page: Path
    line: int  # of its first line of code, from 1
    info: str  # "python {.run}"
    code: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


class Line(NamedTuple):
    """A line outside of fenced code."""

    number: int
    text: str


def split(page: Path) -> tuple[list[Line], list[Block]]:
    """The lines of a page outside of fences, and the fenced blocks."""
    prose: list[Line] = []
    blocks: list[Block] = []
    code: list[str] | None = None
    info, start = "", 0
    for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(text)
        if fence and code is None:
            code, info, start = [], fence["info"], number + 1
        elif fence and code is not None:
            blocks.append(Block(page, start, info, "\n".join(code) + "\n"))
            code = None
        elif code is not None:
            code.append(text)
        else:
            prose.append(Line(number, text))
    assert code is None, f"{page.name}: a fence is not closed"
    return prose, blocks


def blocks(*infos: str) -> list[Block]:
    """All blocks with one of these info strings."""
    return [block for page in WRITTEN for block in split(page)[1] if block.info in infos]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    found = set()
    for line in split(page)[0]:
        heading = HEADING.match(line.text)
        if heading:
            text = re.sub(r"[^\w\s-]", "", heading["text"].lower())
            found.add(re.sub(r"\s", "-", text.strip()))
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of each link outside of code."""
    for line in split(page)[0]:
        for link in LINK.finditer(re.sub(r"`[^`]*`", "", line.text)):
            yield line.number, link["target"]


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(place, words) of each call of `program` in a code block of any page."""
    found = []
    for page in WRITTEN:
        prose, fenced = split(page)
        code = [f"{line.text[4:]}\n" if line.text[:4] == "    " else "\n" for line in prose]
        for text in ["".join(code), *(block.code for block in fenced)]:
            whole = re.sub(r"\\\n\s*", " ", text)
            for line in whole.splitlines():
                called = re.search(rf"(?:^|\s){re.escape(program)}(?: (?P<rest>.*))?$", line)
                if called:
                    rest = re.split(r" +#| &$", called["rest"] or "")[0]
                    found.append((page.name, rest.split()))
    return found
