"""One adapter folder: an ordinary PEFT LoRA plus our manifest, read and checked before any use.

    adapter_config.json  adapter_model.safetensors  manifest.json  README.md  fit.yaml

A folder without a manifest is any PEFT LoRA: it can be served at every step, but not gated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from adapters.base_checkpoint import BaseCheckpoint, safetensors_header
from adapters.files import sha256_file
from adapters.gate import acting
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import Gate, Manifest
from adapters.reference import HASH_LENGTH

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Formats that run code when they are loaded; their mere presence is a reason to refuse.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# The files that make an adapter what it is, and those that only tell of it; bytes at most.
FILES = {CONFIG: 2**20, WEIGHTS: 16 * 2**30, MANIFEST: 2**20}
ALONGSIDE = {"README.md": 2**20, "fit.yaml": 2**20}
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

# safetensors dtype -> unsigned type of its width, and its exponent's bits: all of them are set in
# infinities and NaNs, and in nothing else. bfloat16 has no type in numpy, its bits have.
_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
_PIECE = 2**22  # bytes looked at together; whole elements of every type


class AdapterError(ValueError):
    """An adapter that cannot be used; the message says which one, why, and the way out."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"adapter '{name}': {reason}")
        self.name = name
        self.reason = reason


def content_hash(digests: dict[str, str]) -> str:
    """The HASH in NAME@HASH: twelve digits of the SHA-256 over the files that make an adapter.

    Args:
        digests: file name -> hex SHA-256; of FILES, those that are there.
    """
    lines = "".join(f"{file} {digests[file]}\n" for file in FILES if file in digests)
    return hashlib.sha256(lines.encode()).hexdigest()[:HASH_LENGTH]


@dataclass(frozen=True)
class AdapterVersion:
    """An adapter folder that passed every check that needs no base model."""

    name: str
    path: Path
    config: dict[str, Any]
    shapes: dict[str, list[int]]
    manifest: Manifest | None
    hash: str

    @property
    def id(self) -> str:
        """The version's identity, NAME@HASH."""
        return f"{self.name}@{self.hash}"

    @property
    def gate(self) -> Gate | None:
        """The calibrated threshold, where there is one."""
        return self.manifest.gate if self.manifest else None

    @property
    def rank(self) -> int:
        """The largest rank of any module, as vLLM's --max-lora-rank counts it."""
        return max([int(self.config["r"]), *self.config.get("rank_pattern", {}).values()])

    @classmethod
    def read(
        cls,
        path: Path,
        name: str | None = None,
        known: str | None = None,
        weights: str | None = None,
    ) -> AdapterVersion:
        """Read the adapter folder `path` and check it; its weights are read once, or not at all.

        Args:
            known: its hash, taken on trust: then the weights are not read, only their header.
            weights: SHA-256 of the weights, where `read_weights` has just read them.

        Raises:
            AdapterError: files missing, pickled, damaged, of the wrong kind, or not as hashed.
        """
        name = name or path.name
        if not path.is_dir():
            raise AdapterError(name, "no such folder")
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise AdapterError(
                name, f"holds pickled weights ({', '.join(pickles)}); convert them to safetensors"
            )
        for file, limit in (FILES | ALONGSIDE).items():
            if not (path / file).is_file():
                if file in (CONFIG, WEIGHTS):
                    raise AdapterError(name, f"{file} is missing")
            elif (path / file).stat().st_size > limit:
                raise AdapterError(name, f"{file} is larger than {limit} bytes")
        config = _read_config(name, path / CONFIG)
        try:
            header = safetensors_header(path / WEIGHTS)
            digests = {
                file: (weights or _digest(path / file))
                if file == WEIGHTS
                else sha256_file(path / file)
                for file in FILES
                if known is None and (path / file).is_file()
            }
        except ValueError as error:
            raise AdapterError(name, str(error)) from error
        version = cls(
            name=name,
            path=path,
            config=config,
            shapes={key: entry["shape"] for key, entry in header.items()},
            manifest=_read_manifest(name, path, digests if known is None else None),
            hash=known or content_hash(digests),
        )
        version._check_shapes()
        return version

    def _check_shapes(self) -> None:
        """Every tensor is one side of a LoRA pair whose inner dimension is its rank."""
        if not self.shapes:
            raise AdapterError(self.name, f"{WEIGHTS} holds no tensors")
        for module, pair in self.modules().items():
            a, b = pair.get("A"), pair.get("B")
            if a is None or b is None:
                raise AdapterError(self.name, f"{module}: lora_A or lora_B is missing")
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not 1 <= a[0] <= self.rank:
                raise AdapterError(self.name, f"{module}: shapes {a} and {b} are not of one rank")

    def modules(self) -> dict[str, dict[str, list[int]]]:
        """Module name in the base -> {"A": [rank, in], "B": [out, rank]}."""
        modules: dict[str, dict[str, list[int]]] = {}
        for key, shape in self.shapes.items():
            match = _KEY.match(key)
            if match is None:
                raise AdapterError(self.name, f"unexpected tensor '{key}'")
            modules.setdefault(match["module"], {})[match["side"]] = shape
        return modules

    def inert(self) -> list[str]:
        """Names of its modules that have no effect behind the gate: keys and values."""
        modules = list(self.modules())
        acts = set(acting(modules))
        return sorted({name.rpartition(".")[2] for name in modules if name not in acts})

    def check_fits(self, base: BaseCheckpoint) -> None:
        """Raise AdapterError unless this adapter was made for `base` (or could have been)."""
        for module, pair in self.modules().items():
            shape = base.shapes.get(f"{module}.weight")
            if shape is None:
                raise AdapterError(self.name, f"the base '{base.name}' has no module '{module}'")
            if shape != [pair["B"][0], pair["A"][1]]:
                raise AdapterError(
                    self.name,
                    f"{module}: made for a {pair['B'][0]} x {pair['A'][1]} weight, "
                    f"the base '{base.name}' has {' x '.join(map(str, shape))}",
                )
        made_for = self.manifest.base if self.manifest else None
        if made_for and made_for.fingerprint and made_for.fingerprint != base.fingerprint:
            raise AdapterError(
                self.name,
                f"made for other weights ('{made_for.model}') than those of '{base.name}'; "
                "serve that base, or fit the adapter anew",
            )


def _read_config(name: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterError(name, f"{CONFIG} is not JSON") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(name, f"{CONFIG}: peft_type is not LORA")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise AdapterError(name, f"{CONFIG}: r is not a positive whole number")
    for feature in ("use_dora", "modules_to_save"):
        if config.get(feature):
            raise AdapterError(name, f"{CONFIG}: {feature} cannot be served; fit without it")
    if config.get("bias", "none") != "none":
        raise AdapterError(name, f"{CONFIG}: a trained bias cannot be served; fit with bias 'none'")
    config["rank_pattern"] = config.get("rank_pattern") or {}
    return config


def _read_manifest(name: str, path: Path, digests: dict[str, str] | None) -> Manifest | None:
    if not (path / MANIFEST).is_file():
        return None
    try:
        manifest = Manifest.read(path)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise AdapterError(name, f"{MANIFEST}: {field}: {first['msg']}") from error
    for file in (CONFIG, WEIGHTS):
        if digests is not None and manifest.files.get(file) != digests[file]:
            raise AdapterError(name, f"{file} is not the file its manifest names (hash differs)")
    return manifest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    deque(read_weights(path, digest), maxlen=0)
    return digest.hexdigest()


def read_weights(path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
    """The bytes of a safetensors file in one pass: hashed into `digest`, checked, given out.

    Raises:
        ValueError: a tensor, which is named, does not hold finite floating-point numbers; or the
            file is not safetensors.
    """
    header = safetensors_header(path)
    with path.open("rb") as file:

        def take(count: int) -> bytes:
            block = file.read(count)
            if len(block) < count:
                raise ValueError(f"{path.name}: cut short while it was read")
            digest.update(block)
            return block

        prefix = take(8)
        yield prefix
        yield take(struct.unpack("<Q", prefix)[0])
        here = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, exponent = _checked_type(path, name, entry, here)
            here = entry["data_offsets"][1]
            for start in range(entry["data_offsets"][0], here, _PIECE):
                block = take(min(_PIECE, here - start))
                bits = np.frombuffer(block, dtype)
                if bool(((bits & exponent) == exponent).any()):
                    raise ValueError(f"{path.name}: {name} holds numbers that are NaN or infinite")
                yield block


def _checked_type(
    path: Path, name: str, entry: dict[str, Any], here: int
) -> tuple[np.dtype[Any], int]:
    """The unsigned type of a tensor that begins at `here`, and its exponent's bits."""
    if entry["dtype"] not in _EXPONENTS:
        raise ValueError(
            f"{path.name}: {name} is {entry['dtype']}; save it as one of {', '.join(_EXPONENTS)}"
        )
    dtype, exponent = _EXPONENTS[entry["dtype"]]
    begin, end = entry["data_offsets"]
    count = math.prod(entry["shape"])
    if begin != here or end - begin != count * dtype.itemsize:
        raise ValueError(f"{path.name}: {name} has not as many bytes as its shape says")
    if count == 0:
        raise ValueError(f"{path.name}: {name} is empty")
    return dtype, exponent
