"""An adapter's bytes, frozen under a name made of their hash.

The engine reads an adapter when it is first asked for, and again whenever it had to make room; a
plain folder may be rewritten at any moment, and anybody may delete a version by hand. So the engine
is given a private copy: what was checked is what is loaded, and a path never changes its meaning
(vLLM's prefix cache is keyed by it).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapters.adapter import AdapterError
from adapters.base_checkpoint import BaseCheckpoint
from adapters.manifest import Gate
from adapters.store import Store


@dataclass(frozen=True)
class Snapshot:
    """A frozen copy of an adapter."""

    version: str  # NAME@HASH
    path: Path
    gate: Gate | None


@dataclass(frozen=True)
class Snapshots:
    """The folder of frozen copies; it lives as long as the server."""

    root: Path

    def take(self, store: Store, reference: str, base: BaseCheckpoint, max_rank: int) -> Snapshot:
        """Copy, check and freeze what `reference` means.

        Raises:
            KeyError: there is nothing of that name.
            AdapterError: it cannot be used, or was being rewritten.
        """
        before = store.signature(reference)
        found = store.resolve(reference)
        checked = store.get(str(found), max_rank=max_rank)  # bounds what is copied
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".tmp-") as staging:
            copy = Path(staging, found.name)
            copy.mkdir()
            try:
                checked.copy_to(copy, base, 0o644)
            except FileNotFoundError as error:
                raise AdapterError(reference, "is being rewritten; ask again") from error
            if store.signature(reference) != before:
                raise AdapterError(reference, "is being rewritten; ask again")
            version = Store(Path(staging)).get(found.name, base, max_rank)
            version.check_weights()
            if found.hash not in (None, version.hash):
                raise AdapterError(reference, "was rewritten, which no version may be; verify")
            frozen = self.root / version.id
            if not frozen.exists():
                copy.rename(frozen)
        return Snapshot(frozen.name, frozen, version.gate)
