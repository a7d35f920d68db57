"""One adapter folder: an ordinary PEFT LoRA plus our manifest, read and checked before any use.

    adapter_config.json  adapter_model.safetensors  manifest.json  README.md  fit.yaml

A folder without a manifest is any PEFT LoRA. It has no threshold: a gated request must name one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from adapters import vllm_loader
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import copy_file, sha256_file, write_blocks
from adapters.gate import acting
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import Base, Gate, Manifest
from adapters.peft_config import FILE as CONFIG
from adapters.peft_config import PeftConfig
from adapters.peft_folder import (
    CONFIG_LIMIT,
    WEIGHTS,
    WEIGHTS_LIMIT,
    PeftFolder,
    is_regular,
    refuse_copies,
)
from adapters.reference import HASH_LENGTH

__all__ = [
    "ALONGSIDE",
    "CONFIG",
    "FILES",
    "ORIGIN",
    "TRAINED_ON",
    "WEIGHTS",
    "AdapterError",
    "AdapterVersion",
    "Origin",
    "content_hash",
    "read_origin",
]
# The files that make an adapter what it is, and those that only tell of it; bytes at most.
FILES = {CONFIG: CONFIG_LIMIT, WEIGHTS: WEIGHTS_LIMIT, MANIFEST: 2**20}
ORIGIN = "origin.json"  # what was changed when the adapter was copied into the store
TRAINED_ON = "trained-on.parquet"  # fingerprints of problems: training/problems/trained_on.py
ALONGSIDE = {"README.md": 2**20, "fit.yaml": 2**20, TRAINED_ON: 2**28}


LONGEST_REASON = 1500  # letters


class AdapterError(ValueError):
    """An adapter that cannot be used; the message says which one, why, and the way out."""

    def __init__(self, name: str, reason: str) -> None:
        reason = "".join(letter if letter.isprintable() else _escaped(letter) for letter in reason)
        super().__init__(f"adapter '{name}': {reason[:LONGEST_REASON]}")
        self.name = name
        self.reason = reason[:LONGEST_REASON]


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
    config: PeftConfig
    folder: PeftFolder
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
        return self.config.largest_rank

    @classmethod
    def read(
        cls,
        path: Path,
        name: str | None = None,
        known: str | None = None,
        weights: str | None = None,
    ) -> AdapterVersion:
        """Read the adapter folder `path` and check it; its weights are read once, or not at all.

        Where vLLM is in this process, its own loader is asked too.

        Args:
            known: its hash, taken on trust: then the weights are not read, only their header.
            weights: SHA-256 of the weights, where `copy_to` has just written them.

        Raises:
            AdapterError: files missing, pickled, damaged, of the wrong kind, or not as hashed.
        """
        name = name or path.name
        if not path.is_dir():
            raise AdapterError(name, "no such folder")
        try:
            return cls._read(path, name, known, weights)
        except AdapterError:
            raise
        except ValueError as error:
            raise AdapterError(name, str(error)) from error
        except OSError as error:
            file = Path(str(error.filename)).name if error.filename else "a file"
            raise AdapterError(name, f"{file} cannot be read: {error.strerror or error}") from error

    @classmethod
    def _read(cls, path: Path, name: str, known: str | None, weights: str | None) -> AdapterVersion:
        folder = PeftFolder.read(path)
        has_manifest = is_regular(path / MANIFEST, FILES[MANIFEST])
        version = cls(
            name=name,
            path=path,
            config=folder.config,
            folder=folder,
            manifest=_read_manifest(name, path) if has_manifest else None,
            hash=known or "",
        )
        version._check_shapes()
        refusal = vllm_loader.refusal(folder.config.raw)
        if refusal:
            raise AdapterError(name, refusal)
        if known:
            return version
        digests = folder.digests({}, weights)
        version._check_manifest(digests)
        if has_manifest:
            content = version._manifest(digests)
            digests[MANIFEST] = hashlib.sha256(content).hexdigest()
        return replace(version, hash=content_hash(digests))

    def _check_manifest(self, digests: dict[str, str]) -> None:
        """Raise AdapterError unless the files are those that the manifest names.

        Args:
            digests: of the files as `copy_to` would write them.
        """
        if self.manifest is None:
            return
        for file in (CONFIG, WEIGHTS):
            same = self.folder.is_canonical or not (self.path / file).is_file()
            found = digests[file] if same else sha256_file(self.path / file)
            if self.manifest.files.get(file) != found:
                raise AdapterError(
                    self.name, f"{file} is not the file its manifest names (hash differs)"
                )

    def _manifest(self, digests: dict[str, str]) -> bytes:
        """The manifest's bytes, signed anew where configuration or weights have changed."""
        assert self.manifest is not None
        if {file: self.manifest.files.get(file) for file in digests} == digests:
            return (self.path / MANIFEST).read_bytes()
        manifest = self.manifest.model_copy(update={"files": self.manifest.files | digests})
        return manifest.model_dump_json(indent=2).encode() + b"\n"

    @property
    def shapes(self) -> dict[str, list[int]]:
        """PEFT's name of each tensor -> its shape."""
        return self.folder.shapes

    def _check_shapes(self) -> None:
        """Every tensor is one side of a LoRA pair, whose inner dimension is its module's rank."""
        if not self.folder.sides:
            raise AdapterError(self.name, f"{WEIGHTS} holds no tensors of a LoRA")
        for module, pair in self.modules().items():
            a, b = pair.get("A"), pair.get("B")
            if a is None or b is None:
                raise AdapterError(self.name, f"{module[:200]}: lora_A or lora_B is missing")
            rank = self.config.rank_of(module)
            if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
                raise AdapterError(
                    self.name, f"{module[:200]}: shapes {a} and {b} are not of one rank"
                )
            if a[0] != rank:
                field = "rank_pattern" if self.config.rank_pattern else "r"
                raise AdapterError(
                    self.name,
                    f"{module[:200]}: its tensors have rank {a[0]}, {CONFIG} ({field}) says "
                    f"{rank}; restore the {CONFIG} that was saved with these weights",
                )
            omitting = self.config.left_out_by(module)
            if omitting is not None:
                verb = "does not name" if omitting == "target_modules" else "leaves out"
                raise AdapterError(
                    self.name,
                    f"{CONFIG}: {omitting} {verb} {module[:200]}, which has tensors; "
                    "PEFT would leave it out",
                )

    def modules(self) -> dict[str, dict[str, list[int]]]:
        """Module name in the base -> {"A": [rank, in], "B": [out, rank]}."""
        modules: dict[str, dict[str, list[int]]] = {}
        for side, tensor in self.folder.sides.values():
            modules.setdefault(side.module, {})[side.side] = tensor.shape
        return modules

    def inert(self) -> list[str]:
        """Names of its modules that have no effect behind the gate: keys and values."""
        modules = list(self.modules())
        acts = set(acting(modules))
        return sorted({name.rpartition(".")[2] for name in modules if name not in acts})

    def renames(self, base: BaseCheckpoint) -> dict[str, str]:
        """Module as the adapter calls it -> as `base` calls it.

        Raises:
            AdapterError: the base has none of that name, or vLLM would leave it out.
        """
        try:
            return {module: base.modules.find(module) for module in self.modules()}
        except ValueError as error:
            raise AdapterError(self.name, str(error)) from error

    def check_fits(self, base: BaseCheckpoint) -> None:
        """Raise AdapterError unless this adapter was made for `base` (or could have been)."""
        for module, name in self.renames(base).items():
            if module != name:
                raise AdapterError(
                    self.name,
                    f"the base '{base.name}' calls {module[:200]} '{name}'; import the adapter "
                    "with --base, which renames its modules",
                )
        try:
            self._check_base(base)
        except ValueError as error:
            raise AdapterError(self.name, str(error)) from error
        made_for = self.manifest.base if self.manifest else None
        if made_for and made_for.fingerprint and made_for.fingerprint != base.fingerprint:
            raise AdapterError(
                self.name,
                f"made for other weights ('{made_for.model}') than those of '{base.name}'; "
                "serve that base, or fit the adapter anew",
            )

    def _check_base(self, base: BaseCheckpoint) -> None:
        """Raise ValueError unless shapes, copies and kinds of modules are right for `base`."""
        modules = base.modules
        refuse_copies(self.folder, base.has_weight)
        refusal = vllm_loader.refused_quantisation(modules.quantisation)
        if refusal:
            raise ValueError(refusal)
        embeddings = {side.module for side, _ in self.folder.sides.values() if side.embedding}
        for module, pair in self.modules().items():
            name = modules.find(module)
            made_for = [pair["B"][0], pair["A"][1]]
            if module in embeddings or (self.config.fan_in_fan_out and modules.is_turned(name)):
                made_for.reverse()
            shape = modules.shape(name)
            if shape != made_for:
                raise ValueError(
                    f"{module[:200]}: made for a {made_for[0]} x {made_for[1]} weight, "
                    f"the base '{base.name}' has {' x '.join(map(str, shape))}"
                )
        words = [one for one in self.modules() if one in embeddings or modules.is_vocabulary(one)]
        refusal = vllm_loader.refused_modules(base.architecture, words)
        if refusal:
            raise ValueError(refusal)

    # ----------------------------------------------------------------------------------- copying

    def copy_to(
        self,
        target: Path,
        base: BaseCheckpoint | None = None,
        mode: int = 0o444,
        origin: Origin | None = None,
    ) -> str:
        """Write the files of the adapter into the folder `target`, as PEFT would have.

        The weights are read once: checked, hashed and written. Where anything is changed, ORIGIN
        says what it was and what the files were.

        Args:
            base: whose names the modules get; None: they stay as they are.
            origin: what this folder was itself made from, where the caller knows.

        Returns:
            SHA-256 of the weights.

        Raises:
            AdapterError: it cannot be used so.
            OSError: the files cannot be written.
        """
        rename = self.renames(base) if base else {}
        changes = self.folder.changes(rename)
        try:
            refuse_copies(self.folder, base.has_weight if base else None)
            if changes:
                self._check_manifest(self.folder.digests({}) if self.manifest else {})
            digests = self.folder.write(target, rename, mode)
        except AdapterError:
            raise
        except ValueError as error:
            raise AdapterError(self.name, str(error)) from error
        for file in self._alongside():
            copy_file(self.path / file, target / file, ALONGSIDE[file], mode)
        if self.manifest is not None and not changes:
            copy_file(self.path / MANIFEST, target / MANIFEST, FILES[MANIFEST], mode)
        elif self.manifest is not None:
            write_blocks(target / MANIFEST, [self._manifest(digests)], mode)
        if changes:
            files = {file: sha256_file(self.path / file) for file in self.folder.files}
            origin = Origin(changes=changes, files=files)
        if origin is not None and origin.changes:
            content = origin.model_dump_json(indent=2).encode() + b"\n"
            write_blocks(target / ORIGIN, [content], mode)
        return digests[WEIGHTS]

    def _alongside(self) -> list[str]:
        """Of ALONGSIDE, the files that are worth a copy.

        A link out of the folder is none of them, unless it leads where the hub's cache keeps files:
        what a stranger's README.md points at might be private.
        """
        folder = self.path.resolve()
        homes = (folder, folder.parent.parent / "blobs")
        return [
            file
            for file, limit in ALONGSIDE.items()
            if (self.path / file).is_file()
            and (self.path / file).stat().st_size <= limit
            and any((self.path / file).resolve().is_relative_to(home) for home in homes)
        ]


def _read_manifest(name: str, path: Path) -> Manifest:
    try:
        return Manifest.read(path)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise AdapterError(
            name,
            f"{MANIFEST}: {field}: {first['msg'][:300]}; "
            "remove the file if another program wrote it",
        ) from error


class Origin(BaseModel):
    """The content of ORIGIN: what a copy was made from, and how it differs."""

    changes: list[str] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict, description="File -> its SHA-256.")


def first_manifest(
    folder: Path,
    name: str,
    family: str,
    base: BaseCheckpoint,
    made_by: dict[str, str] | None = None,
) -> Manifest:
    """A manifest for the PEFT folder `folder`, which has none yet: it binds it to `base`."""
    return Manifest(
        name=name,
        family=family,
        base=Base.of(base),
        files={file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)},
        made_by=made_by or {},
    )


def read_origin(folder: Path) -> Origin:
    """What the adapter in `folder` was made from; empty where nothing says so."""
    try:
        return Origin.model_validate_json((folder / ORIGIN).read_bytes())
    except (OSError, ValidationError):
        return Origin()


def _escaped(letter: str) -> str:
    """What somebody's file holds cannot break the line of a message: \\n, \\x00, \\ud800."""
    return letter.encode("unicode_escape").decode()
