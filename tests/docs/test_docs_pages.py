"""The pages are whole: links lead somewhere, lines are short, every page is in the menu."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pages import DOCS, GENERATED, PAGES, README, ROOT, WRITTEN, anchors, blocks, links, split

ELSEWHERE = ("http://", "https://", "mailto:")
# An info string that both GitHub and mkdocs understand: a language, and a class in braces.
INFO = re.compile(r"(?:[a-z]+(?: \{\.[a-z]+\})?)?")
WIDTH = 100

each_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)


@each_page
def test_links_lead_somewhere_and_stay_within_the_site(page: Path) -> None:
    for number, target in links(page):
        if target.startswith(ELSEWHERE):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        where = f"{page.name}:{number}: {target}"
        assert file.exists(), where
        assert page not in PAGES or file.is_relative_to(DOCS), where
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), where


def test_the_contributing_page_can_stand_in_two_places() -> None:
    assert not list(links(ROOT / "CONTRIBUTING.md"))  # its links would be relative to either
    assert (DOCS / "contributing.md").read_text() == '--8<-- "CONTRIBUTING.md"\n'


@each_page
def test_lines_are_short(page: Path) -> None:
    if page == GENERATED:
        return
    prose, fenced = split(page)
    lines = [(line.number, line.text) for line in prose if not line.text.lstrip().startswith("|")]
    for block in fenced:
        lines += enumerate(block.code.splitlines(), start=block.line)
    assert [f"{page.name}:{n}: {text}" for n, text in lines if len(text) > WIDTH] == []


@each_page
def test_fences_are_understood(page: Path) -> None:
    for block in split(page)[1]:
        assert INFO.fullmatch(block.info), f"{block.name}: {block.info}"


def test_every_page_is_in_the_menu() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(re.sub(r"!!python/name:\S+", "x", text))["nav"]
    listed = [page for part in nav for pages in part.values() for page in pages]
    assert sorted(listed) == [page.name for page in PAGES]


def test_the_readme_names_every_page_or_its_neighbour() -> None:
    named = {target.partition("#")[0] for _, target in links(README)}
    first = {"quickstart", "concepts", "training", "serving", "store", "operations", "security"}
    first |= {"configuration", "limits", "architecture", "real-models-gpu", "your-own-data"}
    assert {f"docs/{page}.md" for page in first} <= named


def test_every_word_of_the_glossary_is_defined_once() -> None:
    text = (DOCS / "concepts.md").read_text().partition("## Glossary")[2]
    words = re.findall(r"^\| ([a-zA-Z@0-9 -]+) \|", text, flags=re.MULTILINE)[1:]  # not the head
    assert len(set(words)) == len(words)
    wanted = {
        *("base", "adapter", "version", "alias", "family", "recipe", "entropy", "gate", "tau"),
        *("decision point", "gated token", "gate rate", "correction", "replay", "calibration"),
        *("always-on", "rollout", "advantage", "pass@1", "pass@k", "avg@k", "footprint"),
        "intervention",
    }
    assert wanted <= set(words)


def test_some_examples_are_run() -> None:
    assert len(blocks("python {.run}")) >= 5
    assert len(blocks("bash {.run}")) >= 3


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    """`training/fit.py` in backticks is a file of the repository."""
    tops = "adapters|vllm_gate|training|serving|reasonmaxxer|loadtests|benchmarks|dashboards|tests"
    pattern = rf"`((?:{tops}|research|docs|demo|models)/[\w./-]+\.(?:py|md|yaml|yml|json|js))`"
    for line in split(page)[0]:
        for name in re.findall(pattern, line.text):
            assert (ROOT / name).exists() or "FAMILY" in name, f"{page.name}:{line.number}: {name}"
