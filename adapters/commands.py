"""The commands of `python -m adapters`: what each is told, and what it does.

    ListAdapters.load(["--json"]).run()

A command raises AdapterError, KeyError, ValueError or FileNotFoundError where it is told wrong, and
OSError where the store cannot be read or written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, TextIO

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from adapters import hub, vllm_loader
from adapters.adapter import CONFIG, AdapterError, AdapterVersion, read_origin
from adapters.audit import verify
from adapters.average import average
from adapters.base_checkpoint import BaseCheckpoint
from adapters.collect import GRACE, collect
from adapters.command_line import CommandLine
from adapters.exchange import export_adapter, import_adapter
from adapters.gguf_adapter import SUFFIX, write_gguf
from adapters.manifest import Score, is_name
from adapters.model_card import HUB_ID
from adapters.places import Place, default_store, open_store
from adapters.program import program
from adapters.prompt import show_prompt
from adapters.reference import Reference
from adapters.store import Store

PROGRAM = "python -m adapters"
FAMILY = "Recipe, by name or as a YAML file; default: found by the base."


class StoreCommand(CommandLine):
    """A command on one store. Subclasses set `command`, the word that calls them."""

    program: ClassVar[str] = PROGRAM
    command: ClassVar[str] = ""

    store: Place = Field(
        default_factory=default_store, description="Folder of the store, or s3://BUCKET/PREFIX."
    )

    @classmethod
    def called(cls) -> str:
        return f"{program(PROGRAM)} {cls.command}"

    @cached_property
    def opened(self) -> Store:
        """The store. A folder need not exist.

        Raises:
            ValueError: no store can be at this place.
            OSError: a bucket is out of reach.
        """
        try:
            return open_store(self.store)
        except ValueError as error:
            raise ValueError(f"--store: {error}") from error

    @property
    def existing(self) -> Store:
        """The store.

        Raises:
            ValueError: there is no such folder.
        """
        if not self.opened.exists():
            raise ValueError(f"--store: {self.opened.place} is no folder")
        return self.opened

    def run(self) -> int | None:
        """Do it; returns the exit code, None for 0."""
        raise NotImplementedError


class ReadableCommand(StoreCommand):
    """A command that can also answer a program."""

    as_json: bool = Field(False, alias="json", description="Print JSON, for programs.")


# ----------------------------------------------------------------------------------- looking at it


class ListAdapters(ReadableCommand):
    """List every adapter and where its alias points."""

    command: ClassVar[str] = "list"

    def run(self) -> None:
        store = self.existing
        _ask_vllm_of_plain_folders(store, store.names())
        store.bring_records(store.names())
        rows = [_row(store, name) for name in store.names()]
        if self.as_json:
            print(json.dumps(rows, indent=2))
            return
        headings = ("NAME", "VERSION", "VERSIONS", "BASE", "TAU", "STATE")
        print_table([headings, *([_cell(row[h.lower()]) for h in headings] for row in rows)])


class Show(ReadableCommand):
    """Show an adapter: its manifest, scores, versions and history."""

    command: ClassVar[str] = "show"

    reference: CliPositionalArg[str] = Field(description="NAME or NAME@HASH.")

    def run(self) -> None:
        store = self.opened
        _ask_vllm_of_plain_folders(store, [self.reference])
        version, found = store.get(self.reference), store.resolve(self.reference)
        name = Reference.parse(self.reference).name
        versions = [str(Reference(name, digest)) for digest in store.versions(name)]
        history = [move.model_dump(mode="json", by_alias=True) for move in store.history(name)]
        if self.as_json:
            facts = {
                "version": version.id,
                "path": str(version.path),
                "rank": version.rank,
                "manifest": version.manifest.model_dump(mode="json") if version.manifest else None,
                "versions": versions,
                "history": history,
            }
            print(json.dumps(facts, indent=2))
            return
        print(f"{self.reference}: {version.id if found.hash else 'a plain folder, no version'}")
        _print_version(version)
        if versions:
            print("\nversions: " + ", ".join(versions))
        if history:
            print()
            moved = [[m["at"], m["action"], m["version"], m["by"]] for m in history]
            print_table([("AT", "ACTION", "VERSION", "BY"), *moved])


class Verify(StoreCommand):
    """Check every version, alias and history; exit code 1 if anything is unsound."""

    command: ClassVar[str] = "verify"

    def run(self) -> int:
        store = self.existing
        _ask_vllm_of_plain_folders(store, store.names())
        problems = verify(store)
        for problem in problems:
            print(problem)
        count = sum(len(store.versions(name)) for name in store.folders())
        if not problems:
            print(f"sound: {len(store.names())} adapter(s), {count} version(s)")
        return 1 if problems else 0


class ShowPrompt(ReadableCommand):
    """Print the exact prompt of a question, and its token ids."""

    command: ClassVar[str] = "prompt"

    question: CliPositionalArg[str] = Field(description="What is asked.")
    base: str = Field(alias="model", description="Folder or hub id of the base.")
    family: str = Field("", description=FAMILY)

    def run(self) -> None:
        shown = show_prompt(BaseCheckpoint.open(self.base), self.question, self.family)
        print(json.dumps(shown.facts(), indent=2) if self.as_json else shown)


# ------------------------------------------------------------------------------------- changing it


class Publish(StoreCommand):
    """Make a PEFT folder a version, and point the alias at it."""

    command: ClassVar[str] = "publish"

    folder: CliPositionalArg[Path] = Field(description="PEFT folder.")
    name: str | None = Field(None, description="Name of the adapter; default: the folder's.")
    base: str | None = Field(None, description="Folder or hub id of the base that it must fit.")
    alias: bool = Field(True, description="Leave the alias where it is.")

    def run(self) -> None:
        name = _name(self.name, self.folder.resolve().name)
        base = BaseCheckpoint.open(self.base) if self.base else None
        AdapterVersion.read(self.folder, name)  # at once, where it is wrong without vLLM's word
        vllm_loader.bring_in()
        print(self.opened.publish(self.folder, name, base=base, alias=self.alias).id)


class Average(StoreCommand):
    """Publish the mean of several adapters, such as fits with different training seeds."""

    command: ClassVar[str] = "average"

    references: CliPositionalArg[list[str]] = Field(description="NAME or NAME@HASH, two or more.")
    name: str = Field(description="Name of the new adapter.")
    alias: bool = Field(True, description="Leave the alias where it is.")

    def run(self) -> None:
        name, store = _name(self.name, ""), self.existing
        with ExitStack() as leases, TemporaryDirectory() as folder:
            versions = []
            for reference in self.references:
                held = store.lease(reference)
                leases.enter_context(held.lease)
                versions.append(store.get(str(held.reference)))
            average(versions, Path(folder) / "mean", name)
            version = store.publish(Path(folder) / "mean", name, alias=self.alias)
        print(f"{version.id}, of rank {version.rank}")
        if version.gate is None:
            print(
                "it has no threshold, since theirs differ; measure it: "
                f"reasonmaxxer store calibrate {name}",
                file=sys.stderr,
            )


class Alias(StoreCommand):
    """Point an alias at a version."""

    command: ClassVar[str] = "alias"

    name: CliPositionalArg[str] = Field(description="The alias.")
    version: CliPositionalArg[str] = Field(description="NAME@HASH.")

    def run(self) -> None:
        print(f"{self.name} -> {self.opened.alias(self.name, self.version).version}")


class Rollback(StoreCommand):
    """Point an alias at the version before; again: one further back."""

    command: ClassVar[str] = "rollback"

    name: CliPositionalArg[str] = Field(description="The alias.")

    def run(self) -> None:
        print(f"{self.name} -> {self.opened.rollback(self.name).version}")


class Collect(StoreCommand):
    """Delete versions that no alias points at and nobody uses."""

    command: ClassVar[str] = "gc"

    keep: int = Field(1, ge=0, description="Roll-backs that stay possible.")
    grace: float = Field(GRACE, ge=0, description="Seconds that any version stays.")
    dry_run: bool = Field(False, description="Only say what would go.")

    def run(self) -> None:
        gone = collect(self.existing, self.keep, self.grace, self.dry_run)
        for reference in gone:
            print(f"{'would delete' if self.dry_run else 'deleted'} {reference}")
        print(f"{len(gone)} version(s)")


# ------------------------------------------------------------------------------- import and export


class Import(StoreCommand):
    """Make a PEFT folder or a hub id from elsewhere a version, and point the alias at it."""

    command: ClassVar[str] = "import"

    source: CliPositionalArg[str] = Field(
        description="PEFT folder, s3:// and the like of one, or hub id."
    )
    base: str | None = Field(
        None, description="Folder or hub id of the base that it was made for; or --no-base."
    )
    no_base: bool = Field(
        False, description="The base is unknown: check it against each base by shapes alone."
    )
    name: str | None = Field(None, description="Name of the adapter; default: the source's.")
    revision: str | None = Field(None, description="Revision of the hub repository.")
    family: str = Field("", description=FAMILY)
    alias: bool = Field(True, description="Leave the alias where it is.")

    @model_validator(mode="after")
    def _base_or_none(self) -> Self:
        if bool(self.base) == self.no_base:
            raise ValueError("give one of --base MODEL and --no-base")
        return self

    def run(self) -> None:
        base = BaseCheckpoint.open(self.base) if self.base else None
        version = import_adapter(
            *(self.opened, self.source, _name(self.name, Path(self.source).name.lower())),
            base=base,
            family=self.family,
            revision=self.revision,
            alias=self.alias,
        )
        print(version.id)
        if version.manifest:
            print(f"family {version.manifest.family}", file=sys.stderr)
        for change in read_origin(version.path).changes:
            print(f"changed: {change}", file=sys.stderr)
        _name_inert(version, sys.stderr)
        if base is not None:
            _name_other_base(version, base)


class Pull(Import):
    """Make an adapter of the hub a version; as `import`, which takes folders too."""

    command: ClassVar[str] = "pull"

    source: CliPositionalArg[str] = Field(description="OWNER/REPO.")

    def run(self) -> None:
        if not HUB_ID.fullmatch(self.source):
            raise ValueError(
                f"{self.source[:100]!r} is no repository; write OWNER/NAME, or import a folder"
            )
        super().run()


class Push(StoreCommand):
    """Write a version to a repository of the hub."""

    command: ClassVar[str] = "push"

    reference: CliPositionalArg[str] = Field(description="NAME or NAME@HASH.")
    repository: CliPositionalArg[str] = Field(description="OWNER/REPO.")
    private: bool = Field(False, description="Make it private, if the repository is new.")
    revision: str = Field("main", description="Branch of the repository.")

    def run(self) -> None:
        done = hub.push(
            self.opened,
            self.reference,
            self.repository,
            private=self.private,
            revision=self.revision,
        )
        print(f"{done.version} -> {done.repository}@{done.commit}")


class Export(StoreCommand):
    """Write a version as a plain PEFT folder, or as an adapter for llama.cpp."""

    command: ClassVar[str] = "export"

    reference: CliPositionalArg[str] = Field(description="NAME or NAME@HASH.")
    folder: CliPositionalArg[Path] = Field(description="New folder, or FILE.gguf for llama.cpp.")
    base: str | None = Field(
        None, description="Folder or hub id of the base; a GGUF adapter needs it."
    )

    def run(self) -> None:
        if self.folder.suffix == SUFFIX:
            print(f"{self._write_gguf().id} -> {self.folder}")
        else:
            made = export_adapter(self.opened, self.reference, self.folder)
            print(f"{made.id} -> {self.folder}")

    def _write_gguf(self) -> AdapterVersion:
        if not self.base:
            raise ValueError("--base: a GGUF adapter needs the base that it belongs to")
        version = self.opened.get(self.reference)
        try:
            write_gguf(version, BaseCheckpoint.open(self.base), self.folder)
        except ImportError:
            raise ValueError("the package gguf is missing; install reasonmaxxer[gguf]") from None
        return version


COMMANDS: dict[str, type[StoreCommand]] = {
    one.command: one
    for one in (
        *(ListAdapters, Show, Publish, Average, Alias, Rollback, Verify, Collect),
        *(Import, Export, Push, Pull, ShowPrompt),
    )
}

# ------------------------------------------------------------------------------- the small print


def _print_version(version: AdapterVersion) -> None:
    """What `show` says of the content."""
    print(f"  rank {version.rank}, {version.path}")
    manifest = version.manifest
    if manifest:
        print(f"  made for {manifest.base.model} ({manifest.base.architecture}), {manifest.family}")
        print(f"  {version.gate}" if version.gate else "  no threshold")
    else:
        print("  no manifest: any base of its shapes, no threshold")
    _name_inert(version, sys.stdout, "  ")
    if manifest and manifest.scores:
        print()
        headings = ("MODE", "PROBLEMS", "METRIC", "T", "VALUE", "STDERR", "N")
        print_table([headings, *map(_score, manifest.scores)])


def _name_inert(version: AdapterVersion, file: TextIO, indent: str = "") -> None:
    """Say which of its modules have no effect behind the gate, if any."""
    inert = version.inert()
    if inert:
        print(
            f"{indent}{', '.join(inert)}: no effect behind the gate, where a token reads the "
            "base's keys and values; always-on they act",
            file=file,
        )


def _name_other_base(version: AdapterVersion, base: BaseCheckpoint) -> None:
    """Say so where the adapter's configuration names another base: the shapes may fit all the same.

    Copies that are quantised, or served by somebody else, have longer names.
    """
    told = version.config.raw.get("base_model_name_or_path")
    names = [re.sub(r"[^a-z0-9]+", "", Path(str(one)).name.lower()) for one in (told, base.name)]
    if isinstance(told, str) and all(names) and not names[0].startswith(names[1]):
        print(
            f"note: {CONFIG} names the base {told[:200]!a}; the adapter was checked against "
            f"'{base.name}' by shapes alone",
            file=sys.stderr,
        )


def _ask_vllm_of_plain_folders(store: Store, names: Sequence[str]) -> None:
    """Have vLLM's loader asked, if one of `names` is a plain folder; versions were asked of."""
    if any(store.plain(name) is not None for name in names):
        vllm_loader.bring_in()


def _name(given: str | None, default: str) -> str:
    name = given if given is not None else default
    if not is_name(name):
        raise ValueError(
            f"--name: {name[:100]!r} is not a name; use lower case letters, digits, . _ -"
        )
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
