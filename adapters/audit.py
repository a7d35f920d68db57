"""Is a store sound? Every version, every alias and every line of every history."""

from __future__ import annotations

from typing import NamedTuple

from adapters import moves
from adapters.adapter import ALONGSIDE, FILES, AdapterError, AdapterVersion
from adapters.files import sha256_file
from adapters.reference import Reference
from adapters.store import Store


class Problem(NamedTuple):
    """One thing that is not as it should be."""

    where: str  # NAME or NAME@HASH
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def verify(store: Store) -> list[Problem]:
    """Everything in the store that is not sound; empty if all is.

    Each version is read in full: hashes, safetensors, shapes, finite weights, links. What a killed
    writer leaves behind (half-built folders, a torn last line) is no problem: nobody reads it.
    """
    problems: list[Problem] = []
    for name in store.folders():
        for digest in store.versions(name):
            problems += _content(store, str(Reference(name, digest)))
        try:
            lines = store.history(name)
        except AdapterError as error:
            problems.append(Problem(name, error.reason))
            continue
        except KeyError:
            continue  # removed between the two looks
        if lines:
            problems += _alias(store, name, lines)
        elif name in store.names():
            problems += _content(store, name)
    return problems


def _content(store: Store, reference: str) -> list[Problem]:
    try:
        version = store.get(reference)
    except AdapterError as error:
        return [Problem(reference, error.reason)]
    except KeyError:
        return []  # collected between the two looks
    except OSError as error:
        return [Problem(reference, f"cannot be read: {error}")]
    return [Problem(reference, text) for text in _other_files(version)]


def _other_files(version: AdapterVersion) -> list[str]:
    """What the manifest names beside weights and configuration, where it came along."""
    named = version.manifest.files if version.manifest else {}
    return [
        f"{file} is not the file its manifest names (hash differs)"
        for file in ALONGSIDE
        if file in named
        and (version.path / file).is_file()
        and sha256_file(version.path / file) != named[file]
    ]


def _alias(store: Store, name: str, lines: list[moves.Move]) -> list[Problem]:
    problems = []
    before: str | None = None
    for number, move in enumerate(lines, 1):
        if move.before != before:
            problems.append(
                Problem(
                    name, f"{moves.FILE}: line {number}: moved from {move.before}, not {before}"
                )
            )
        before = move.version
    last = Reference.parse_version(lines[-1].version)
    # Looked at in this order: it may have moved on and its version been collected meanwhile.
    if last.hash not in store.versions(last.name) and store.resolve(name) == last:
        problems.append(Problem(name, f"points at {last}, which is gone"))
    leftovers = store.leftovers(name)
    problems += [
        Problem(name, f"{file} lies beside the versions and is none; publish it or remove it")
        for file in FILES
        if (store.root / name / file).exists() and file not in leftovers
    ]
    return problems
