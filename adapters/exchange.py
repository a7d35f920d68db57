"""Adapters from elsewhere (a PEFT folder, a hub id) and for elsewhere (a plain PEFT folder)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters import vllm_loader
from adapters.adapter import (
    ALONGSIDE,
    CONFIG,
    FILES,
    AdapterVersion,
    first_manifest,
    read_origin,
)
from adapters.base_checkpoint import BaseCheckpoint
from adapters.bucket.peft_source import download
from adapters.files import atomic_directory, sha256_file
from adapters.first_line import first_line
from adapters.manifest import FILE as MANIFEST
from adapters.model_card import HUB_ID
from adapters.peft_config import lean
from adapters.peft_folder import INDEX, SHARDS
from adapters.places import parse_place
from adapters.recipe import recipe_for
from adapters.store import Store


class SourceError(ValueError):
    """Nothing can be imported from there."""


@contextmanager
def opened(source: str, revision: str | None = None, *, hub: bool = False) -> Iterator[Path]:
    """The folder `source`, downloaded for as long as this is open if it is not on this machine.

    Args:
        source: a folder, the URL of one in a bucket, or a hub id.
        hub: it is a hub id, also where a folder has the same name.

    Raises:
        SourceError: it is none of them, or cannot be reached.
    """
    if not hub and os.path.isdir(source):
        yield Path(source)
        return
    if "://" in source:
        with tempfile.TemporaryDirectory(prefix="reasonmaxxer-") as folder:
            yield _downloaded(source, revision, Path(folder))
        return
    if not HUB_ID.fullmatch(source):
        raise SourceError(f"'{source}' is neither a folder nor a hub id")
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory(prefix="reasonmaxxer-") as folder:
        try:
            # Whole files of these names and no others: a repository may hold anything beside them.
            snapshot_download(
                source,
                revision=revision,
                local_dir=folder,
                allow_patterns=[*FILES, *ALONGSIDE, INDEX, SHARDS],
            )
        except hub_errors() as error:
            raise SourceError(
                f"'{source}' cannot be fetched from the hub: {first_line(error)}"
            ) from error
        yield Path(folder)


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub refuses, is out of reach, or goes on the way.

    Its own errors, and those of the HTTP library below, which another release may change.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    below = [one for one in HfHubHTTPError.__mro__ if one not in (Exception, BaseException, object)]
    return LocalEntryNotFoundError, ValueError, *below


def _downloaded(source: str, revision: str | None, folder: Path) -> Path:
    """The PEFT folder at a URL."""
    try:
        place = parse_place(source)
        if isinstance(place, Path):
            return place
        if revision:
            raise SourceError(f"--revision: '{place}' is a folder in a bucket, without revisions")
        download(place, folder)
    except (ValueError, OSError) as error:
        raise SourceError(str(error)) from error
    return folder


def import_adapter(
    store: Store,
    source: str,
    name: str,
    *,
    base: BaseCheckpoint | None,
    family: str = "",
    revision: str | None = None,
    alias: bool = True,
    by: str | None = None,
    place: str | None = None,
) -> AdapterVersion:
    """Publish somebody else's adapter as a version of `name`.

    With a `base` it must fit, and is bound to its weights by a manifest, if it brought none: from
    then on another base of the same shapes is refused. It has no threshold until it is calibrated
    (adapters/calibration.py).

    Args:
        source: a PEFT folder, the URL of one in a bucket, or a hub id.
        base: what it was made for; None: it is checked against each base by shapes alone.
        family: default: the one found for the base.
        revision: of the hub repository.
        place: where a folder was copied from; default: a folder tells nobody, a hub id does.

    Raises:
        SourceError: there is no such folder or hub id.
        ValueError: `name` is none, or `family` is unknown.
        AdapterError: the adapter cannot be used.
        StoreError: the store cannot be written.
    """
    with opened(source, revision) as folder, tempfile.TemporaryDirectory() as copy:
        AdapterVersion.read(folder, name)  # at once, where it is wrong without vLLM's word
        vllm_loader.bring_in()
        copied = Path(copy)
        AdapterVersion.read(folder, name).copy_to(copied, base)
        if base is not None and not (copied / MANIFEST).exists():
            known = recipe_for(base, family)
            # Of a folder nobody else knows the place; the same content is the same version.
            if place is None and not os.path.isdir(source):
                place = source if "://" in source else f"{source}@{revision or 'main'}"
            made_by = {"imported from": place} if place else {}
            manifest = first_manifest(copied, name, known.family, base, made_by)
            (copied / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        origin = read_origin(copied)
        return store.publish(copied, name, base=base, alias=alias, by=by, origin=origin)


def export_adapter(store: Store, reference: str, folder: Path) -> AdapterVersion:
    """Write NAME or NAME@HASH to a new plain PEFT folder, for PEFT, stock vLLM or the hub.

    Its configuration has no key that PEFT assumes anyway, so that older versions read it.

    Raises:
        FileExistsError: the folder is there already.
        KeyError, AdapterError: as `Store.get`.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists")
    held = store.lease(reference)
    with held.lease:
        version = store.get(str(held.reference))
        with atomic_directory(folder) as copy:
            version.copy_to(copy, mode=0o644)
            _make_lean(copy, version)
    return version


def _make_lean(folder: Path, version: AdapterVersion) -> None:
    """Leave PEFT's defaults out of the configuration, and have the manifest name it as it is."""
    raw = version.config.raw
    if lean(raw) == raw:
        return
    (folder / CONFIG).write_text(json.dumps(lean(raw), indent=2, sort_keys=True) + "\n")
    if version.manifest is not None:
        files = version.manifest.files | {CONFIG: sha256_file(folder / CONFIG)}
        manifest = version.manifest.model_copy(update={"files": files})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
