"""An adapter's bytes, frozen under a name made of their hash.

The engine reads an adapter when it is first asked for, and again whenever it had to make room; a
store folder may be rewritten at any moment. So the engine is given a private copy: what was checked
is what is loaded, and a path never changes its meaning (vLLM's prefix cache is keyed by it).
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.base import BaseModel
from adapters.files import sha256_file
from adapters.manifest import FILE as MANIFEST
from adapters.store import Store
from adapters.version import CONFIG, WEIGHTS, AdapterError

FILES = (CONFIG, WEIGHTS, MANIFEST)
Signature = tuple[tuple[int, ...] | None, ...]


def signature(folder: Path) -> Signature:
    """What tells one content of `folder` from the next without reading it; cheap."""
    found: list[tuple[int, ...] | None] = []
    for path in (folder, *(folder / file for file in FILES)):
        try:
            stat = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(found)


@dataclass(frozen=True)
class Snapshot:
    """A frozen copy of an adapter."""

    version: str  # NAME@HASH
    path: Path


@dataclass(frozen=True)
class Snapshots:
    """The folder of frozen copies; it lives as long as the server."""

    root: Path

    def take(self, store: Store, name: str, base: BaseModel, max_rank: int) -> Snapshot:
        """Copy, check and freeze the adapter `name`.

        Raises:
            KeyError: there is none of that name.
            AdapterError: it cannot be used, or was being rewritten.
        """
        store.get(name, max_rank=max_rank)  # bounds what is copied
        source = store.root / name
        before = signature(source)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".tmp-") as staging:
            copy = Path(staging, name)
            copy.mkdir()
            try:
                for file in FILES:
                    if (source / file).exists():
                        shutil.copyfile(source / file, copy / file)
            except FileNotFoundError as error:
                raise AdapterError(name, "is being rewritten; ask again") from error
            if signature(source) != before:
                raise AdapterError(name, "is being rewritten; ask again")
            Store(Path(staging)).get(name, base, max_rank)
            digest = hashlib.sha256(
                "".join(sha256_file(copy / f) for f in FILES if (copy / f).exists()).encode()
            ).hexdigest()[:12]
            frozen = self.root / f"{name}@{digest}"
            if not frozen.exists():
                copy.rename(frozen)
        return Snapshot(frozen.name, frozen)
