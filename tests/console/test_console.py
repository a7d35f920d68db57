"""`reasonmaxxer`: which command runs with which arguments, its help, its exit codes."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, python

from adapters.program import program
from reasonmaxxer import cli, extras
from reasonmaxxer.cli import COMMANDS, main

HEAVY = ("numpy", "pydantic", "torch", "transformers", "vllm", "yaml")


@pytest.fixture(autouse=True)
def _arguments_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["reasonmaxxer"])


def ended(argv: list[str]) -> int:
    """The exit code of a command line, in this process."""
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from reasonmaxxer.cli import main; code = main(['--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules]); sys.exit(code)"
    )
    *text, imported = python("-c", script).stdout.splitlines()
    assert imported == "[]"
    for name, command in COMMANDS.items():
        assert f"  {name:10}{command.summary}" in text


def test_the_console_script_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["reasonmaxxer"].partition(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("fit", "training.fit"),
        ("evaluate", "training.evaluate"),
        ("grade", "training.grade"),
        ("serve", "serving.__main__"),
        ("store", "adapters.__main__"),
        ("reproduce", "research.reproduce"),
        ("doctor", "reasonmaxxer.doctor"),
    ],
)
def test_a_command_gets_what_follows_its_name(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def instead() -> int:
        seen.extend([sys.argv[1:], program("python -m else")])
        return 7

    monkeypatch.setattr(import_module(module), "main", instead)
    assert main([name, "--lora.rank", "8", "x y"]) == 7
    assert seen == [["--lora.rank", "8", "x y"], f"reasonmaxxer {name}"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("form", [["{}", "--help"], ["help", "{}"]])
def test_usage_lines_name_the_command(
    name: str, form: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended([part.format(name) for part in form]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: reasonmaxxer {name} [")
    assert "python -m" not in out


def test_the_module_keeps_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    for module, argument in (("training.evaluate", []), ("adapters.__main__", ["--help"])):
        with pytest.raises(SystemExit):
            import_module(module).main(argument)
        assert f"python -m {module.removesuffix('.__main__')}" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "name a command: fit, evaluate"),
        (["fti"], "'fti' is no command; did you mean 'fit'?"),
        (["--port", "8000"], "'--port' is no command"),
        (["help", "nothing"], "'nothing' is no command"),
        (["fit", "--lora.rank", "0"], "reasonmaxxer fit: error: "),
        (["evaluate", "--nonsense"], "reasonmaxxer evaluate: error: unrecognized"),
        (["grade", "no-such.jsonl"], "reasonmaxxer grade: error: no-such.jsonl"),
        (["serve", "--port", "eight"], "reasonmaxxer serve: --port"),
        (["store", "list", "--store", "/no/store"], "reasonmaxxer store: error: --store"),
        (["reproduce", "--suite", "ideal"], "reasonmaxxer reproduce: error: argument --suite"),
        (["reproduce", "--suite", "real", "--nice", "-1"], "reasonmaxxer reproduce: error: "),
        (["doctor", "--loud"], "reasonmaxxer doctor: error: unrecognized"),
    ],
)
def test_bad_input_ends_with_2_and_names_the_command(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(argv) == 2
    assert words in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"reasonmaxxer {wanted}\n"


def test_a_command_that_is_not_there_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "fit", COMMANDS["fit"]._replace(module="no_such_wing.fit"))
    assert main(["fit"]) == 1
    err = capsys.readouterr().err
    assert re.match(r"reasonmaxxer fit: error: .*the command itself; pip install .*\[train\]", err)


@pytest.mark.parametrize("argv", [["reproduce", "--suite", "real"], ["reproduce", "--help"]])
def test_a_command_of_the_repository_says_where_it_is(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert main(argv) == 1
    assert "in a clone of the repository" in capsys.readouterr().err


def test_the_console_script_finds_the_repository_from_anywhere(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[0] = {str(tmp_path)!r}  # as a script in .venv/bin has
from reasonmaxxer.cli import main
code = main(["reproduce", "--help"])
from importlib.util import find_spec
sys.exit(code or find_spec("research.real.__main__") is None)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = python("-c", script, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: reasonmaxxer reproduce")


def test_help_that_needs_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks() -> None:
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    version = extras.installed_version
    monkeypatch.setattr(
        extras, "installed_version", lambda one: None if one == "peft" else version(one)
    )
    monkeypatch.setattr(import_module("training.evaluate"), "main", lacks)
    assert main(["evaluate", "--help"]) == 1
    assert "not installed: peft; pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "absent", "said"),
    [
        ("evaluate", ("openai", "peft"), r"not installed: openai, peft; .*\[train\]"),
        ("serve", ("structlog", *extras.VLLM), r"not installed: structlog; .*\[serve,gpu\]"),
    ],
)
def test_what_an_extra_lacks_is_named_before_the_command_starts(
    name: str, absent: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def started() -> None:
        raise AssertionError("it started")

    version = extras.installed_version
    monkeypatch.setattr(
        extras, "installed_version", lambda one: None if one in absent else version(one)
    )
    monkeypatch.setattr(import_module(COMMANDS[name].module), "main", started)
    assert main([name]) == 1
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("package", ["adapters.oops", "orjson"])
def test_any_other_failed_import_is_shown_as_it_is(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(import_module("training.fit"), "main", broken)
    with pytest.raises(ModuleNotFoundError, match=package):
        main(["fit"])


def test_every_command_exists_and_its_quick_help_is_that_of_its_main() -> None:
    for command in COMMANDS.values():
        found = import_module(command.module)
        assert callable(found.main)
        if command.settings:
            module, _, name = command.settings.partition(":")
            assert getattr(import_module(module), name) is getattr(found, name)


def test_python_m_reasonmaxxer_is_the_same(tmp_path: Path) -> None:
    done = python("-m", "reasonmaxxer", "store", "list", "--store", tmp_path, "--json")
    assert done.stdout == "[]\n"
    assert cli.CONSOLE == "reasonmaxxer"
