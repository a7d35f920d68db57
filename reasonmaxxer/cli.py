"""The console script `reasonmaxxer`.

Nothing heavy is imported before the command is known: `reasonmaxxer --help` takes a moment.

Exit codes are those of the commands: 0; 1 for a run that failed, or a package that is missing; 2
for bad input.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adapters.program import CONSOLE


class Command(NamedTuple):
    """A sub-command: the module whose `main` runs it."""

    module: str
    summary: str
    extra: str = ""  # what has to be installed for it
    settings: str = ""  # MODULE:CLASS that prints the help, where the module is slow to import


COMMANDS = {
    "fit": Command(
        "training.fit",
        "fit an adapter: sample, verify, score, select, train, choose, publish",
        "train",
        "training.fit_config:FitConfig",
    ),
    "evaluate": Command(
        "training.evaluate", "how often a model is right: pass@1, pass@k, gate rate", "train"
    ),
    "grade": Command("training.grade", "grade answers in a JSONL or Parquet file", "train"),
    "serve": Command(
        "serving.__main__", "serve a base model and its adapters with vLLM's OpenAI server", "serve"
    ),
    "store": Command("adapters.__main__", "list, publish, roll back, import and export adapters"),
    "reproduce": Command(
        "research.reproduce",
        "measure the paper's claims anew, on real models or miniatures (in a clone)",
        "research",
    ),
    "doctor": Command(
        "reasonmaxxer.doctor", "print versions, device and what is supported, for bug reports"
    ),
}

# Sub-commands of a command that need more than it does, and are modules of their own.
BELOW = {
    "store calibrate": Command(
        "training.calibrate",
        "measure the gate of an adapter",
        "train",
        "training.calibrate:CalibrateConfig",
    )
}

EXAMPLES = """\
examples:
  reasonmaxxer fit --model Qwen/Qwen2.5-1.5B --problems gsm8k_train --publish qwen-math
  reasonmaxxer serve --model Qwen/Qwen2.5-1.5B
  reasonmaxxer evaluate --model Qwen/Qwen2.5-1.5B --adapter qwen-math --problems math500
  reasonmaxxer store list

`reasonmaxxer COMMAND --help` lists the options of a command.
"""


def help_text() -> str:
    """What `reasonmaxxer --help` prints."""
    rows = "\n".join(f"  {name:10}{command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {CONSOLE} [--help] [--version] COMMAND ...\n\n"
        "Train a small LoRA for the tokens where a base model is uncertain, and serve it there.\n\n"
        f"commands:\n{rows}\n\n{EXAMPLES}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names with the arguments that follow it."""
    first, *rest = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if first in ("-h", "--help") or [first, *rest] == ["help"]:
        print(help_text(), end="")
        return 0
    if first in ("-V", "--version"):
        from reasonmaxxer.extras import own_version

        print(f"{CONSOLE} {own_version()}")
        return 0
    if first == "help":  # `reasonmaxxer help fit`
        first, rest = rest[0], ["--help"]
    if first not in COMMANDS:
        print(_unknown(first), file=sys.stderr)
        return 2
    below = f"{first} {rest[0]}" if rest else ""
    return run(below, rest[1:]) if below in BELOW else run(first, rest)


def run(name: str, arguments: list[str]) -> int:
    """Run one command; it reads its arguments, and finds its name, in `sys.argv`."""
    command = _command(name)
    sys.argv[:] = [f"{CONSOLE} {name}", *arguments]
    asks_help = bool({"-h", "--help"} & set(arguments))
    missing = _not_packaged(name) or (None if asks_help else _not_installed(name))
    if missing:  # better now than after an hour
        print(missing, file=sys.stderr)
        return 1
    try:
        if asks_help and command.settings:
            module, _, settings = command.settings.partition(":")
            getattr(importlib.import_module(module), settings).load(["--help"])
        return int(importlib.import_module(command.module).main() or 0)
    except ModuleNotFoundError as error:
        explanation = _not_importable(name, error)
        if explanation is None:
            raise
        print(explanation, file=sys.stderr)
        return 1


def _command(name: str) -> Command:
    return BELOW.get(name) or COMMANDS[name]


def _unknown(name: str) -> str:
    """The error for a first argument that is no command."""
    known = ", ".join(COMMANDS)
    if not name:
        return f"{help_text()}\n{CONSOLE}: error: name a command: {known}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{CONSOLE}: error: '{name}' is no command; {hint}there are {known}"


def _not_packaged(name: str) -> str | None:
    """The error for a command of the repository that the installed package lacks."""
    package = _command(name).module.partition(".")[0]
    if package != "research":
        return None
    root = str(Path(__file__).parents[1])  # of a clone: an editable installation leaves it out
    sys.path.insert(0, root)
    paths = (root, os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for `python -m research...`
    if importlib.util.find_spec(package) is not None:
        return None
    return (
        f"{CONSOLE} {name}: error: this command is in a clone of the repository, not in the "
        "package; clone it and, there, uv pip install -e '.[research]'"
    )


def _not_installed(name: str) -> str | None:
    """The error for packages of the command's extra that are not there; None where all are."""
    extra = _command(name).extra
    if not extra:
        return None
    from reasonmaxxer.extras import installed_version, requirements

    wanted = [one.name for one in requirements().get(extra, [])]
    absent = [one for one in wanted if installed_version(one) is None]
    return _install(name, ", ".join(absent)) if absent else None


def _not_importable(name: str, error: ModuleNotFoundError) -> str | None:
    """The error where the extra is the reason; None where the installation or we are at fault."""
    if (error.name or "").partition(".")[0] == _command(name).module.partition(".")[0]:
        return _install(name, "the command itself")  # an image without training/, say
    return _not_installed(name)


def _install(name: str, what: str) -> str:
    from reasonmaxxer.extras import has_vllm, install_command

    extra = _command(name).extra
    names = (extra,) if extra != "serve" or has_vllm() else (extra, "gpu")
    return (
        f"{CONSOLE} {name}: error: not installed: {what}; {install_command(*names)} installs what "
        f"'{name}' needs"
    )
