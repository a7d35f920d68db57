"""The store: a folder of adapter folders, looked at afresh at every question.

    store/NAME/adapter_config.json, adapter_model.safetensors, manifest.json

A name never becomes a path without passing the strict pattern, and links never lead out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.base import BaseModel
from adapters.manifest import is_name
from adapters.version import AdapterError, AdapterVersion

# The store that comes with the project.
SHIPPED = Path(__file__).parent / "store"


@dataclass(frozen=True)
class Listing:
    """What a store offers to one base: the adapters that fit, and why the others do not."""

    offered: dict[str, AdapterVersion]
    refused: dict[str, AdapterError]


@dataclass(frozen=True)
class Store:
    """A folder of adapters."""

    root: Path

    def names(self) -> list[str]:
        """The adapter folders present, sorted; half-built ones (leading dot) are not."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and is_name(entry.name)
        )

    def get(
        self, name: str, base: BaseModel | None = None, max_rank: int | None = None
    ) -> AdapterVersion:
        """The adapter `name`, checked, and checked against `base` and `max_rank` where given.

        Raises:
            KeyError: there is none of that name.
            AdapterError: there is one, but it cannot be used.
        """
        path = self.root / name if is_name(name) else None
        if path is None or not path.is_dir():
            raise KeyError(name)
        for entry in (path, *path.iterdir()):
            if not entry.resolve().is_relative_to(self.root.resolve()):
                raise AdapterError(name, f"'{entry.name}' is a link that leads out of the store")
        version = AdapterVersion.read(path, name)
        if max_rank is not None and version.rank > max_rank:
            raise AdapterError(
                name, f"rank {version.rank} is over the limit {max_rank}; raise --max-lora-rank"
            )
        if base is not None:
            version.check_fits(base)
        return version

    def listing(self, base: BaseModel | None = None, max_rank: int | None = None) -> Listing:
        """Every adapter, read and checked."""
        listing = Listing({}, {})
        for name in self.names():
            try:
                listing.offered[name] = self.get(name, base, max_rank)
            except AdapterError as error:
                listing.refused[name] = error
            except KeyError:
                continue  # removed between the two looks
        return listing
