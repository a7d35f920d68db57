"""The folder of an adapter as somebody wrote it, and the copy of it that PEFT would have written.

    folder = PeftFolder.read(path)       # Trainer checkpoint, shards, foreign names: all are read
    if not folder.is_canonical:
        folder.write(target, {})         # adapter_config.json and one adapter_model.safetensors

Other files of the folder are none of the adapter's: `optimizer.pt`, `training_args.bin` and the
like are neither read nor copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapters.files import write_blocks
from adapters.peft_config import FILE as CONFIG
from adapters.peft_config import PeftConfig
from adapters.safetensors_file import (
    POINTED,
    Tensor,
    is_pointer,
    merged,
    read_tensors,
    read_weights,
)
from adapters.tensor_names import Copy, Side, parse

WEIGHTS = "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = "adapter_model-*.safetensors"  # as transformers names them, for glob
CONFIG_LIMIT = 2**20  # bytes
WEIGHTS_LIMIT = 16 * 2**30
INDEX_LIMIT = 16 * 2**20
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
# Formats that run code when they are loaded, by the names that adapters' weights have in them.
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PICKLED = re.compile(r"(adapter|pytorch_model|model|lora|weights)", re.IGNORECASE)

_MARK = b"\xef\xbb\xbf"  # UTF-8's, which vLLM does not read

Rename = Mapping[str, str]  # module in the adapter -> module in the base


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA in PEFT's format or one that is read as such."""

    path: Path
    config: PeftConfig
    files: list[str]  # the files that make the adapter, configuration first
    sides: dict[str, tuple[Side, Tensor]]  # by the tensor's name in the file
    copies: dict[str, tuple[Copy, Tensor]]  # of the base's weights
    idle: list[str]  # tensors on which nothing that is generated depends

    @classmethod
    def read(cls, path: Path) -> PeftFolder:
        """Read configuration and headers; no weight is read.

        Raises:
            ValueError: the folder holds no LoRA that can be used; the message names file and way
                out.
            OSError: a file cannot be read.
        """
        if not is_regular(path / CONFIG, CONFIG_LIMIT):
            raise ValueError(f"{CONFIG} is missing{_instead(path)}")
        if is_pointer(path / CONFIG):
            raise ValueError(f"{CONFIG}: {POINTED}")
        files = [CONFIG, *_weights_files(path)]
        config = PeftConfig.parse((path / CONFIG).read_bytes())
        folder = cls(path, config, files, {}, {}, [])
        for key, tensor in _tensors(path, files[1:]).items():
            what = parse(key)
            if what is None:
                folder.idle.append(key)
            elif isinstance(what, Copy):
                folder.copies[key] = what, tensor
            else:
                folder.sides[key] = what, tensor
        folder._refuse_two_adapters()
        return folder

    def _refuse_two_adapters(self) -> None:
        """One tensor for each side of each module: not those of several adapters."""
        names = {side.adapter for side, _ in self.sides.values()}
        if len(names) > 1 or len(self.shapes) < len(self.sides):
            told = ", ".join(sorted(f"'{name}'"[:50] for name in names if name))
            raise ValueError(
                f"{WEIGHTS} holds several adapters ({told or 'under several prefixes'}); save one"
            )

    @property
    def shapes(self) -> dict[str, list[int]]:
        """PEFT's name of each tensor -> its shape."""
        return {side.key: tensor.shape for side, tensor in self.sides.values()}

    @property
    def is_canonical(self) -> bool:
        """Whether the files are those that PEFT would have written."""
        return not self.changes({})

    def changes(self, rename: Rename) -> list[str]:
        """What `write` changes, in words; nothing where the files can be copied as they are."""
        told = []
        if self.files != [CONFIG, WEIGHTS]:
            told.append(f"{len(self.files) - 2} shards became one file")
        if any(side.key != key for key, (side, _) in self.sides.items()):
            told.append("tensors have PEFT's names")
        if any(old != new for old, new in rename.items()):
            told.append("modules have the base's names")
        if self.copies:
            told.append("copies of the base's weights were left out")
        if self.idle:
            told.append("a value head was left out")
        if self._has_mark():
            told.append(f"{CONFIG} has no byte order mark")
        return told

    def write(self, target: Path, rename: Rename, mode: int = 0o444) -> dict[str, str]:
        """Write configuration and weights into the folder `target` as PEFT would have.

        Returns:
            Hex SHA-256 of each.

        Raises:
            ValueError: the weights are not finite numbers.
            OSError: they cannot be written, or read.
        """
        digest = hashlib.sha256()
        write_blocks(target / WEIGHTS, self._weights(rename, digest), mode)
        content = self._configuration(rename)
        write_blocks(target / CONFIG, [content], mode)
        return {CONFIG: hashlib.sha256(content).hexdigest(), WEIGHTS: digest.hexdigest()}

    def digests(self, rename: Rename, weights: str | None = None) -> dict[str, str]:
        """Hex SHA-256 of each file that `write` would write; the weights are read for it.

        Args:
            weights: theirs, where it is known.

        Raises:
            ValueError, OSError: as `write`.
        """
        digest = hashlib.sha256()
        if weights is None:
            deque(self._weights(rename, digest), maxlen=0)
        content = hashlib.sha256(self._configuration(rename))
        return {CONFIG: content.hexdigest(), WEIGHTS: weights or digest.hexdigest()}

    def _weights(self, rename: Rename, digest: hashlib._Hash) -> Iterator[bytes]:
        if self._same_weights(rename):
            return read_weights(self.path / WEIGHTS, digest)
        return merged(self.tensors(rename), digest)

    def tensors(self, rename: Rename = MappingProxyType({})) -> dict[str, Tensor]:
        """PEFT's name of each tensor -> where its bytes lie."""
        return {
            side._replace(module=rename.get(side.module, side.module)).key: tensor
            for side, tensor in self.sides.values()
        }

    def _same_weights(self, rename: Rename) -> bool:
        """Whether the file of weights is the one that PEFT would have written."""
        found = {*self.sides, *self.copies, *self.idle}
        return self.files == [CONFIG, WEIGHTS] and found == self.tensors(rename).keys()

    def _configuration(self, rename: Rename) -> bytes:
        """The content of adapter_config.json; where nothing changes, as it is."""
        raw = self._renamed_config(rename)
        content = (self.path / CONFIG).read_bytes()
        if raw == self.config.raw:
            return content.removeprefix(_MARK)
        return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()

    def _has_mark(self) -> bool:
        with (self.path / CONFIG).open("rb") as file:
            return file.read(3) == _MARK

    def _renamed_config(self, rename: Rename) -> dict[str, Any]:
        """The configuration; where modules have other names, with these as its targets."""
        moved = {old: new for old, new in rename.items() if old != new}
        if not moved:
            return self.config.raw
        modules = sorted({rename.get(side.module, side.module) for side, _ in self.sides.values()})
        changed: dict[str, Any] = {"target_modules": modules, "exclude_modules": None}
        for field in ("rank_pattern", "alpha_pattern"):
            changed[field] = self._resolved(getattr(self.config, field), rename)
        return self.config.raw | changed | {"layers_to_transform": None, "layers_pattern": None}

    def _resolved(self, pattern: dict[str, Any], rename: Rename) -> dict[str, Any]:
        """A rank or alpha pattern by whole module names, for modules that get other ones."""
        known = self.config.compiled(pattern)
        found = {
            re.escape(new): next((value for matches, value in known if matches(old)), None)
            for old, new in rename.items()
        }
        return {f"^{name}": value for name, value in found.items() if value is not None}


def _instead(path: Path) -> str:
    """What is there where there is no adapter: one in a folder below, or a whole model."""
    below = sorted(folder.parent.name for folder in path.glob(f"*/{CONFIG}"))
    if below:
        shown = ", ".join(f"'{name}'" for name in below[:3])[:200]
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"; name the folder below that has it: {shown}{more}"
    if (path / "config.json").is_file():
        return "; what is there is a whole model (config.json), which can be served as a base"
    return ""


def is_regular(path: Path, limit: int) -> bool:
    """Whether `path` is a file, and no pipe or folder.

    Raises:
        ValueError: it is larger than `limit` bytes, or no file but something else.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no ordinary file"
        raise ValueError(f"{path.name} is missing: what has its name is {kind}")
    if found.st_size > limit:
        raise ValueError(f"{path.name} is larger than {limit} bytes")
    return True


def _weights_files(path: Path) -> list[str]:
    """The files that hold the weights: one, or an index and its shards."""
    if is_regular(path / WEIGHTS, WEIGHTS_LIMIT):
        return [WEIGHTS]
    if is_regular(path / INDEX, INDEX_LIMIT):
        shards = _shards(path)
        for shard in shards:
            if not is_regular(path / shard, WEIGHTS_LIMIT):
                raise ValueError(f"{shard} is missing, which {INDEX} names")
        if sum((path / shard).stat().st_size for shard in shards) > WEIGHTS_LIMIT:
            raise ValueError(f"its shards are larger than {WEIGHTS_LIMIT} bytes together")
        return [INDEX, *shards]
    names = sorted(entry.name for entry in path.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES) and _PICKLED.match(name)]
    if pickles:
        raise ValueError(
            f"holds only pickled weights ({', '.join(pickles[:5])}), which can run code when they "
            "are loaded; save it again as safetensors"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    there = f" (there is {', '.join(others[:3])[:200]!a})" if others else ""
    raise ValueError(f"{WEIGHTS} is missing{there}")


def _shards(path: Path) -> list[str]:
    """Names of the shards that the index names."""
    try:
        index = json.loads((path / INDEX).read_bytes().decode("utf-8-sig"))
        files = sorted(set(index["weight_map"].values()))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{INDEX} is no index of shards; save the adapter again") from error
    if not files or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in files):
        raise ValueError(f"{INDEX}: weight_map names other files than shards beside it")
    return files


def _tensors(path: Path, files: list[str]) -> dict[str, Tensor]:
    """Every tensor of the weights' files.

    Raises:
        ValueError: a damaged file, or one tensor in two of them.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file == INDEX:
            continue
        found = read_tensors(path / file)
        twice = next(iter(found.keys() & tensors.keys()), None)
        if twice is not None:
            raise ValueError(f"{file}: {twice[:200]!a} is in another shard too")
        tensors |= found
    if not tensors:
        raise ValueError(f"{files[-1]} holds no tensors")
    return tensors


Same = Callable[[str, Tensor], bool]  # (module, its copy) -> whether the base has the same weight


def refuse_copies(folder: PeftFolder, same: Same | None) -> None:
    """Raise ValueError unless the copies of base weights are what the base holds anyway.

    Args:
        same: None where no base is known.
    """
    for key, (copy, tensor) in folder.copies.items():
        if same is None:
            raise ValueError(
                f"unexpected tensor {key[:200]!a}: a copy of a weight of the base's; import the "
                "adapter with --base, or save it again with save_embedding_layers=False"
            )
        if not same(copy.module, tensor):
            raise ValueError(
                f"{key[:200]!a} is another weight than the base's: the adapter was made with "
                "retrained or resized embeddings, which cannot be served; merge it into the base"
            )
