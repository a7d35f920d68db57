"""python -m adapters COMMAND: look after a store of adapters by hand.

    list                             every adapter and where its alias points
    show NAME[@HASH]                 manifest, scores, versions and history
    publish FOLDER --name NAME       a PEFT folder becomes a version, and the alias points at it
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

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from adapters import hub, vllm_loader
from adapters.adapter import AdapterError, AdapterVersion, read_origin
from adapters.audit import verify
from adapters.base_checkpoint import BaseCheckpoint
from adapters.collect import GRACE, collect
from adapters.exchange import export_adapter, import_adapter
from adapters.gguf_adapter import SUFFIX, write_gguf
from adapters.manifest import Score, is_name
from adapters.model_card import HUB_ID
from adapters.places import STORE_VARIABLE, default_store, open_store, parse_place
from adapters.program import program
from adapters.prompt import show_prompt
from adapters.reference import Reference
from adapters.store import Store, StoreError

PROGRAM = "python -m adapters"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    try:
        default = default_store()
    except ValueError as error:
        fail(f"{STORE_VARIABLE}: {error}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--store", type=_place, default=default, help="folder or bucket; default: %(default)s"
    )
    readable = argparse.ArgumentParser(add_help=False)
    readable.add_argument("--json", action="store_true", help="for programs")
    unaliased = argparse.ArgumentParser(add_help=False)
    unaliased.add_argument(
        "--no-alias", dest="alias", action="store_false", help="leave the alias where it is"
    )

    top = argparse.ArgumentParser(
        prog=program(PROGRAM),
        description=__doc__.replace(PROGRAM, program(PROGRAM)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common, *parents])

    command("list", readable)
    command("show", readable).add_argument("reference", metavar="NAME[@HASH]")
    publish = command("publish", unaliased)
    publish.add_argument("folder", type=Path)
    publish.add_argument("--name", help="default: the folder's")
    publish.add_argument("--base", help="folder or hub id of the base that it must fit")
    alias = command("alias")
    alias.add_argument("name")
    alias.add_argument("version", metavar="NAME@HASH")
    command("rollback").add_argument("name")
    command("verify")
    gc = command("gc")
    gc.add_argument("--keep", type=int, default=1, help="roll-backs that stay possible (1)")
    gc.add_argument(
        "--grace", type=float, default=GRACE, help=f"seconds that any version stays ({GRACE:g})"
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    # Only to be named: it needs the base model, so `training.calibrate` has it.
    command("calibrate").add_argument("name")
    imported = command("import", unaliased)
    imported.add_argument("source", help="PEFT folder, s3:// and the like of one, or hub id")
    _import_flags(imported)
    pulled = command("pull", unaliased)
    pulled.add_argument("source", metavar="OWNER/REPO")
    _import_flags(pulled)
    pushed = command("push")
    pushed.add_argument("reference", metavar="NAME[@HASH]")
    pushed.add_argument("repository", metavar="OWNER/REPO")
    pushed.add_argument("--private", action="store_true", help="if the repository is new")
    pushed.add_argument("--revision", default="main", help="branch (main)")
    export = command("export")
    export.add_argument("reference", metavar="NAME[@HASH]")
    export.add_argument("folder", type=Path, help="new folder, or FILE.gguf for llama.cpp")
    export.add_argument("--base", help="of a GGUF adapter: folder or hub id of the base")
    prompt = command("prompt", readable)
    prompt.add_argument("question")
    prompt.add_argument("--model", required=True, help="folder or hub id of the base")
    prompt.add_argument(
        "--family", default="", help="recipe, by name or as a YAML file; default: found by the base"
    )
    return top


def _import_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", help="default: the source's")
    command.add_argument("--revision", help="of the hub repository")
    command.add_argument(
        "--family", default="", help="recipe, by name or as a YAML file; default: found by the base"
    )
    base = command.add_mutually_exclusive_group(required=True)
    base.add_argument("--base", help="folder or hub id of the base that it was made for")
    base.add_argument(
        "--no-base", action="store_true", help="unknown: check it against each base by shapes alone"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["calibrate"]:
        fail(
            "calibrate: needs the base model; run `reasonmaxxer store calibrate`, or "
            "`python -m training.calibrate`"
        )
    args = parser().parse_args(given)
    try:
        store = open_store(args.store)
    except ValueError as error:
        fail(f"--store: {error}")
    except OSError as error:
        print(f"{program(PROGRAM)}: {error}", file=sys.stderr)
        return 1
    try:
        return int(COMMANDS[args.command](store, args) or 0)
    except StoreError as error:
        print(f"{program(PROGRAM)}: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        known = ", ".join(store.names()) or "none"
        fail(f"{error.args[0]!r} is not in {store.place} (there: {known})")
    except (AdapterError, ValueError, FileNotFoundError, FileExistsError) as error:
        fail(str(error))
    except OSError as error:
        print(f"{program(PROGRAM)}: {error}", file=sys.stderr)
        return 1


def fail(message: str) -> NoReturn:
    """Bad input: one line and exit code 2."""
    print(f"{program(PROGRAM)}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------------------- the commands


def list_adapters(store: Store, args: argparse.Namespace) -> None:
    _existing(store)
    _ask_vllm_of_plain_folders(store, store.names())
    store.bring_records(store.names())
    rows = [_row(store, name) for name in store.names()]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    headings = ("NAME", "VERSION", "VERSIONS", "BASE", "TAU", "STATE")
    print_table([headings, *([_cell(row[h.lower()]) for h in headings] for row in rows)])


def show(store: Store, args: argparse.Namespace) -> None:
    _ask_vllm_of_plain_folders(store, [args.reference])
    version = store.get(args.reference)
    found = store.resolve(args.reference)
    asked = Reference.parse(args.reference)
    facts: dict[str, Any] = {
        "version": version.id,
        "path": str(version.path),
        "rank": version.rank,
        "manifest": version.manifest.model_dump(mode="json") if version.manifest else None,
        "versions": [str(Reference(asked.name, digest)) for digest in store.versions(asked.name)],
        "history": [m.model_dump(mode="json", by_alias=True) for m in store.history(asked.name)],
    }
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{args.reference}: {version.id if found.hash else 'a plain folder, no version'}")
    print(f"  rank {version.rank}, {version.path}")
    if version.manifest:
        made_for, gate = version.manifest.base, version.gate
        print(f"  made for {made_for.model} ({made_for.architecture}), {version.manifest.family}")
        print(f"  {gate}" if gate else "  no threshold")
    else:
        print("  no manifest: any base of its shapes, no threshold")
    _name_inert(version, sys.stdout, "  ")
    if version.manifest and version.manifest.scores:
        print()
        print_table(
            [
                ("MODE", "PROBLEMS", "METRIC", "T", "VALUE", "STDERR", "N"),
                *map(_score, version.manifest.scores),
            ]
        )
    if facts["versions"]:
        print("\nversions: " + ", ".join(facts["versions"]))
    if facts["history"]:
        print()
        moved = [[m["at"], m["action"], m["version"], m["by"]] for m in facts["history"]]
        print_table([("AT", "ACTION", "VERSION", "BY"), *moved])


def publish(store: Store, args: argparse.Namespace) -> None:
    name = _name(args.name, args.folder.resolve().name)
    base = BaseCheckpoint.open(args.base) if args.base else None
    AdapterVersion.read(args.folder, name)  # at once, where it is wrong without vLLM's word
    vllm_loader.bring_in()
    print(store.publish(args.folder, name, base=base, alias=args.alias).id)


def alias(store: Store, args: argparse.Namespace) -> None:
    print(f"{args.name} -> {store.alias(args.name, args.version).version}")


def rollback(store: Store, args: argparse.Namespace) -> None:
    print(f"{args.name} -> {store.rollback(args.name).version}")


def verify_store(store: Store, args: argparse.Namespace) -> int:  # noqa: ARG001
    _existing(store)
    _ask_vllm_of_plain_folders(store, store.names())
    problems = verify(store)
    for problem in problems:
        print(problem)
    count = sum(len(store.versions(name)) for name in store.folders())
    if not problems:
        print(f"sound: {len(store.names())} adapter(s), {count} version(s)")
    return 1 if problems else 0


def gc(store: Store, args: argparse.Namespace) -> None:
    _existing(store)
    if args.keep < 0:
        fail(f"--keep: {args.keep} is negative")
    gone = collect(store, args.keep, args.grace, args.dry_run)
    for reference in gone:
        print(f"{'would delete' if args.dry_run else 'deleted'} {reference}")
    print(f"{len(gone)} version(s)")


def import_(store: Store, args: argparse.Namespace) -> None:
    name = _name(args.name, Path(args.source).name.lower())
    base = BaseCheckpoint.open(args.base) if args.base else None
    version = import_adapter(
        *(store, args.source, name),
        base=base,
        family=args.family,
        revision=args.revision,
        alias=args.alias,
    )
    print(version.id)
    if version.manifest:
        print(f"family {version.manifest.family}", file=sys.stderr)
    for change in read_origin(version.path).changes:
        print(f"changed: {change}", file=sys.stderr)
    _name_inert(version, sys.stderr)


def pull(store: Store, args: argparse.Namespace) -> None:
    if not HUB_ID.fullmatch(args.source):
        fail(f"{args.source[:100]!r} is no repository; write OWNER/NAME, or import a folder")
    import_(store, args)


def push(store: Store, args: argparse.Namespace) -> None:
    done = hub.push(
        store, args.reference, args.repository, private=args.private, revision=args.revision
    )
    print(f"{done.version} -> {done.repository}@{done.commit}")


def export(store: Store, args: argparse.Namespace) -> None:
    if args.folder.suffix == SUFFIX:
        if not args.base:
            fail("--base: a GGUF adapter needs the base that it belongs to")
        version = store.get(args.reference)
        try:
            write_gguf(version, BaseCheckpoint.open(args.base), args.folder)
        except ImportError:
            fail("the package gguf is missing; install reasonmaxxer[gguf]")
        print(f"{version.id} -> {args.folder}")
        return
    print(f"{export_adapter(store, args.reference, args.folder).id} -> {args.folder}")


def prompt(store: Store, args: argparse.Namespace) -> None:  # noqa: ARG001
    shown = show_prompt(BaseCheckpoint.open(args.model), args.question, args.family)
    print(json.dumps(shown.facts(), indent=2) if args.json else shown)


COMMANDS = {
    "list": list_adapters,
    "show": show,
    "publish": publish,
    "alias": alias,
    "rollback": rollback,
    "verify": verify_store,
    "gc": gc,
    "import": import_,
    "export": export,
    "push": push,
    "pull": pull,
    "prompt": prompt,
}

# ------------------------------------------------------------------------------- the small print


def _name_inert(version: AdapterVersion, file: TextIO, indent: str = "") -> None:
    """Say which of its modules have no effect behind the gate, if any."""
    inert = version.inert()
    if inert:
        print(
            f"{indent}{', '.join(inert)}: no effect behind the gate, where a token reads the "
            "base's keys and values; always-on they act",
            file=file,
        )


def _ask_vllm_of_plain_folders(store: Store, names: Sequence[str]) -> None:
    """Have vLLM's loader asked, if one of `names` is a plain folder; versions were asked of."""
    if any(store.plain(name) is not None for name in names):
        vllm_loader.bring_in()


def _place(text: str) -> Path | str:
    """A store, for argparse, which would quote what it cannot read."""
    try:
        return parse_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _existing(store: Store) -> None:
    if not store.exists():
        fail(f"--store: {store.place} is no folder")


def _name(given: str | None, default: str) -> str:
    name = given if given is not None else default
    if not is_name(name):
        fail(f"--name: {name[:100]!r} is not a name; use lower case letters, digits, . _ -")
    return name


def _row(store: Store, name: str) -> dict[str, Any]:
    """One line of `list`."""
    row: dict[str, Any] = dict.fromkeys(("name", "version", "versions", "base", "tau", "state"))
    row |= {"name": name, "versions": len(store.versions(name))}
    try:
        found = store.resolve(name)
        row["version"] = str(found) if found.hash else None
        version: AdapterVersion = store.get(name, hashes=False)
    except (AdapterError, KeyError, OSError) as error:
        return row | {"state": f"refused: {getattr(error, 'reason', error)}"}
    row["base"] = version.manifest.base.model if version.manifest else None
    row["tau"] = version.gate.tau if version.gate else None
    return row | {"state": "ok" if found.hash else "ok, plain folder"}


def _score(score: Score) -> list[str]:
    """One line of `show`."""
    stderr = "" if score.stderr is None else f"{score.stderr:.3f}"
    what = [score.mode, score.problems, score.metric, f"{score.temperature:g}"]
    return [*what, f"{score.value:.3f}", stderr, str(score.n)]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
