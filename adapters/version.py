"""One adapter folder: an ordinary PEFT LoRA plus our manifest, read and checked before any use.

    adapter_config.json  adapter_model.safetensors  manifest.json  README.md

A folder without a manifest is any PEFT LoRA: it can be served at every step, but not gated.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.base import BaseModel, safetensors_header
from adapters.files import sha256_file
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import Manifest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Formats that run code when they are loaded; their mere presence is a reason to refuse.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_CONFIG_LIMIT = 2**20
_WEIGHTS_LIMIT = 16 * 2**30
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


class AdapterError(ValueError):
    """An adapter that cannot be used; the message says which one, why, and the way out."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"adapter '{name}': {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class AdapterVersion:
    """An adapter folder that passed every check that needs no base model."""

    name: str
    path: Path
    config: dict[str, Any]
    shapes: dict[str, list[int]]
    manifest: Manifest | None

    @property
    def rank(self) -> int:
        """The largest rank of any module, as vLLM's --max-lora-rank counts it."""
        return max([int(self.config["r"]), *self.config.get("rank_pattern", {}).values()])

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> AdapterVersion:
        """Read and check `path`.

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
        for file, limit in ((CONFIG, _CONFIG_LIMIT), (WEIGHTS, _WEIGHTS_LIMIT)):
            if not (path / file).is_file():
                raise AdapterError(name, f"{file} is missing")
            if (path / file).stat().st_size > limit:
                raise AdapterError(name, f"{file} is larger than {limit} bytes")
        config = _read_config(name, path / CONFIG)
        try:
            header = safetensors_header(path / WEIGHTS)
        except ValueError as error:
            raise AdapterError(name, str(error)) from error
        version = cls(
            name=name,
            path=path,
            config=config,
            shapes={key: entry["shape"] for key, entry in header.items()},
            manifest=_read_manifest(name, path),
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

    def check_fits(self, base: BaseModel) -> None:
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


def _read_manifest(name: str, path: Path) -> Manifest | None:
    if not (path / MANIFEST).exists():
        return None
    try:
        manifest = Manifest.read(path)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise AdapterError(name, f"{MANIFEST}: {field}: {first['msg']}") from error
    for file in (CONFIG, WEIGHTS):
        if manifest.files.get(file) != sha256_file(path / file):
            raise AdapterError(name, f"{file} is not the file its manifest names (hash differs)")
    return manifest
