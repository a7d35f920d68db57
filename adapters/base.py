"""The base model seen from outside: its folder, architecture, weight shapes and fingerprint.

Only headers and a few sampled blocks are read, so that a 60 GB base costs milliseconds.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_HEADER_LIMIT = 100 * 2**20  # the safetensors library's own limit
_BLOCKS, _BLOCK_BYTES = 64, 4096


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of a safetensors file, read without its data.

    Raises:
        ValueError: the file is not safetensors, is cut short, or its header is over 100 MB.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise ValueError(f"{path.name}: not a safetensors file")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            well_formed = all(
                isinstance(entry["dtype"], str)
                and _are_sizes(entry["shape"])
                and _are_sizes(entry["data_offsets"])
                and len(entry["data_offsets"]) == 2
                for entry in header.values()
            )
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            raise ValueError(f"{path.name}: not a safetensors file") from error
    if not well_formed:
        raise ValueError(f"{path.name}: not a safetensors file")
    if 8 + length + end != size:
        raise ValueError(f"{path.name}: cut short or padded ({size} bytes)")
    return header


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the headers of the folder's safetensors files and 64 blocks sampled from each.

    Two checkpoints with the same shapes but different weights differ in it; so does the same
    model stored in another dtype or sharding.

    Raises:
        ValueError: no safetensors in the folder, or a damaged one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no safetensors weights")
    digest = hashlib.sha256()
    for path in files:
        digest.update(json.dumps(safetensors_header(path), sort_keys=True).encode())
        size = path.stat().st_size
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(size - _BLOCK_BYTES, 0) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def local_folder(model: str) -> Path | None:
    """The folder that holds `model`: a folder itself, or a hub id already in the local cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


@dataclass(frozen=True)
class BaseModel:
    """A base model's folder, opened for questions."""

    name: str
    folder: Path

    @classmethod
    def open(cls, model: str) -> "BaseModel":
        """Open a local folder or a cached hub id.

        Raises:
            FileNotFoundError: the model is neither, or has no config.json.
        """
        folder = local_folder(model)
        if folder is None:
            raise FileNotFoundError(f"{model}: neither a folder nor a model in the local hub cache")
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{model}: the folder has no config.json")
        return cls(folder.name if Path(model).is_dir() else model, folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return config

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def revision(self) -> str | None:
        """The hub commit, for a base in the hub cache (its folder is `snapshots/COMMIT`)."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.folder)

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Weight name -> shape, over all safetensors files."""
        return {
            name: entry["shape"]
            for path in sorted(self.folder.glob("*.safetensors"))
            for name, entry in safetensors_header(path).items()
        }
