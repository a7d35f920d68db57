"""What docs/clients.md shows, made ready to run against a test's server.

    names = run("LangChain")          # what the Python of that section has made
    (line,) = commands("guidellm")    # the words of its shell commands

A test serves other names than the quickstart's server, on another port, and its base is a
miniature. So a few words are replaced; all else runs as it is shown.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clients.md"
URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
BASE = os.environ.get("CLIENT_BASE", str(ROOT / "models" / "tiny-qwen2"))
ADAPTER = "alpha"
GATED = f"{ADAPTER}:gated"
XARGS = {"vllm_xargs": {"gate_tau": 0.05, "gate_trace": 1}}
PROBLEM = "What is 9-11*7+12+9?"
QUESTION = [{"role": "user", "content": PROBLEM}]
REPLACED = {
    "http://127.0.0.1:8000": URL,
    "models/tiny-qwen2": BASE,
    "tiny-math": ADAPTER,
    'api_key="-"': f"api_key={os.environ.get('OPENAI_API_KEY', '-')!r}",
}


def sections() -> dict[str, str]:
    """The text below each heading of the page."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(section: str, language: str) -> list[str]:
    """The code of a section that tests run, in one language."""
    found = re.findall(
        rf"^```{language} {{\.client}}\n(.*?)^```$",
        sections()[section],
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found, f"{PAGE.name}, {section}: no {language} that tests run"
    return found


def replaced(code: str, more: dict[str, str] | None = None) -> str:
    """The code with this test's names."""
    for old, new in {**(more or {}), **REPLACED}.items():
        code = code.replace(old, new)
    return code


def known(code: list[str], more: dict[str, str] | None) -> list[str]:
    """The same code, in which every word that a script replaces has been found."""
    missing = [old for old in more or {} if not any(old in block for block in code)]
    assert not missing, f"{PAGE.name}: no {missing}"
    return code


def check_model(said: str, asked: str) -> None:
    """That an answer names the model that was asked for."""
    assert said == asked, f"asked for {asked}, the answer says {said}"


def refused(kind: type[Exception], act: Callable[[], object]) -> Any:
    """The error of `kind` with which a client passes a refusal on."""
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"not refused as {kind.__name__}")


def run(section: str, more: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a section's Python, all blocks in one namespace. Returns it."""
    code = replaced("\n".join(known(blocks(section, "python"), more)), more)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, f"{PAGE.name}, {section}", "exec", dont_inherit=True), names)
    return names


def commands(section: str, more: dict[str, str] | None = None) -> list[list[str]]:
    """The words of the shell command in each block of a section."""
    code = known(blocks(section, "bash"), more)
    return [shlex.split(replaced(block, more).replace("\\\n", " ")) for block in code]
