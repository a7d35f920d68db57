"""python -m adapters COMMAND: look after a store of adapters by hand.

    list                             every adapter and where its alias points
    show NAME[@HASH]                 manifest, scores, versions and history
    publish FOLDER --name NAME       a PEFT folder becomes a version, and the alias points at it
    average NAME NAME ... --name N   the mean of several adapters becomes a version
    alias NAME NAME@HASH             point an alias at a version
    rollback NAME                    point it at the version before; again: further back
    verify                           check every version, alias and history; exit code 1 if unsound
    gc [--keep K]                    delete versions that no alias points at and nobody uses
    calibrate NAME[@HASH]            measure its gate: `reasonmaxxer store calibrate`
    import SOURCE --base MODEL       a PEFT folder, s3:// of one, or hub id becomes a version
    export NAME[@HASH] FOLDER        a plain PEFT folder again; FILE.gguf: an adapter for llama.cpp
    push NAME[@HASH] OWNER/REPO      to a repository of the hub
    pull OWNER/REPO --base MODEL     from the hub; as import, which takes folders too
    prompt --model MODEL QUESTION    the exact prompt and token ids of a question

Bad input ends with exit code 2 and a line that says what was wrong, a store that cannot be written
with 1.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from adapters.adapter import AdapterError
from adapters.command_line import usage_error
from adapters.commands import COMMANDS, PROGRAM, StoreCommand
from adapters.program import program
from adapters.store import StoreError

# Only to be named: it needs the base model, so `training.calibrate` has it.
CALIBRATE = "calibrate"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if name in ("-h", "--help"):
        print(help_text(), end="")
        raise SystemExit(0)
    if name not in COMMANDS:
        usage_error(program(PROGRAM), _unknown(name))
    return _run(COMMANDS[name].load(rest))


def help_text() -> str:
    """What `python -m adapters --help` prints."""
    called = program(PROGRAM)
    return (
        f"usage: {called} [-h] COMMAND ...\n\n{(__doc__ or '').replace(PROGRAM, called)}\n"
        f"`{called} COMMAND --help` lists the options of a command.\n"
    )


def _unknown(name: str) -> str:
    """The error for a first argument that is no command."""
    if name == CALIBRATE:
        return (
            "calibrate: needs the base model; run `reasonmaxxer store calibrate`, or "
            "`python -m training.calibrate`"
        )
    known = ", ".join(COMMANDS)
    if not name:
        return f"name a command: {known}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"'{name}' is no command; {hint}there are {known}"


def _run(command: StoreCommand) -> int:
    """Run it, and say in one line what was wrong."""
    called = program(PROGRAM)
    try:
        return command.run() or 0
    except StoreError as error:
        print(f"{called}: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        store = command.opened
        known = ", ".join(store.names()) or "none"
        usage_error(called, f"{error.args[0]!r} is not in {store.place} (there: {known})")
    except (AdapterError, ValueError, FileNotFoundError, FileExistsError) as error:
        usage_error(called, str(error))
    except OSError as error:
        print(f"{called}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
