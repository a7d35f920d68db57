"""The code examples that need no server do what the pages say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import ROOT, Block, blocks

from adapters.__main__ import main as store_main
from adapters.recipe import Recipe

STORE = "reasonmaxxer store "


def examples(info: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks(info), ids=lambda block: block.name)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d[\d.,]*\d|\d", text))


@examples("python {.run}")
def test_python(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs, and `print(x)  # 0.3` prints 0.3."""
    monkeypatch.chdir(ROOT)
    exec(compile(block.code, block.name, "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    said = [
        line.rpartition(")  # ")[2] if ")  # " in line else ""
        for line in block.code.splitlines()
        if line.startswith("print(")
    ]
    if len(printed) == len(said):  # no print stands in a loop
        for line, comment in zip(printed, said, strict=True):
            there, shown = numbers(line), numbers(comment)
            assert shown <= there or there <= shown, f"{block.name}: {line!r} and {comment!r}"


@examples("bash {.run}")
def test_bash(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for line in block.code.splitlines():
        assert line.startswith(STORE), f"{block.name}: only commands of the store are run"
        assert store_main(shlex.split(line.removeprefix(STORE))) == 0
        assert capsys.readouterr().out


@examples("yaml {.recipe}")
def test_recipe(block: Block) -> None:
    assert Recipe.model_validate(yaml.safe_load(block.code)).family


@examples("yaml {.server}")
def test_server_settings(block: Block, tmp_path: Path) -> None:
    from serving.settings import from_command_line

    file = tmp_path / "server.yaml"
    file.write_text(block.code)
    settings, flags = from_command_line(["--config", str(file)])
    assert settings.model == yaml.safe_load(block.code)["model"]
    assert flags


def test_every_client_of_the_page_has_a_script_that_runs_its_lines() -> None:
    """The scripts run with tests/serving/test_clients.py, each in its client's environment."""
    text = (ROOT / "docs" / "clients.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    shown = {name for name, part in zip(parts[::2], parts[1::2], strict=True) if ".client}" in part}
    scripts = [path.read_text() for path in (ROOT / "tests" / "clients").glob("check_*.py")]
    assert shown == set(re.findall(r'\b(?:run|commands)\("([^"]+)"', "".join(scripts)))
    assert len(scripts) == len(shown) == 7


@pytest.mark.parametrize("block", blocks("python", "python {.run}"), ids=lambda block: block.name)
def test_python_is_valid(block: Block) -> None:
    compile(block.code, block.name, "exec")
