"""The base model seen from outside: its folder, architecture, weight shapes and fingerprint.

Only headers and a few sampled blocks are read, so that a 60 GB base costs milliseconds.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from adapters.base_modules import BaseModules
from adapters.recipe import ModelFacts
from adapters.safetensors_file import Tensor, read_header, read_tensors, same_values

_BLOCKS, _BLOCK_BYTES = 64, 4096
_INSTRUCT = re.compile(r"instruct|chat|(^|[^a-z])it([^a-z]|$)", re.IGNORECASE)
# Where a config keeps the name of what the model was made from; the last as GGUF files have it.
_FORMER_NAMES = ("_name_or_path", "base_model_name_or_path", "_model_name_or_path")


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
        digest.update(json.dumps(read_header(path), sort_keys=True).encode())
        size = path.stat().st_size
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(size - _BLOCK_BYTES, 0) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def local_folder(
    model: str, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """The folder that holds `model`: a folder itself, or a hub id already in the local cache.

    A folder has no revisions. `cache_dir` is another folder than the hub's own cache.
    """
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(model, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


@dataclass(frozen=True)
class BaseCheckpoint:
    """The folder of a base model: its name, shapes and fingerprint, read without its weights."""

    name: str
    folder: Path

    @classmethod
    def open(
        cls, model: str, revision: str | None = None, cache_dir: str | None = None
    ) -> "BaseCheckpoint":
        """Open a local folder, or a hub id of which `cache_dir` (the hub's) has this revision.

        Raises:
            FileNotFoundError: the model is neither, or has no config.json.
        """
        if os.path.isfile(model) and model.lower().endswith(".gguf"):
            raise FileNotFoundError(
                f"{model}: make a folder of it first: python -m training.gguf {model} --out FOLDER"
            )
        folder = local_folder(model, revision, cache_dir)
        if folder is None:
            cache = cache_dir or "the local hub cache"
            at = f" (revision {revision})" if revision else ""
            raise FileNotFoundError(f"{model}{at}: neither a folder nor a model in {cache}")
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{model}: the folder has no config.json")
        name = (folder.name or folder.resolve().name) if os.path.isdir(model) else model
        return cls(name, folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return config

    @property
    def architecture(self) -> str:
        """The model's class in transformers, such as Qwen2ForCausalLM."""
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def model_type(self) -> str:
        """The `model_type` of config.json, such as qwen2."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def facts(self) -> ModelFacts:
        """What recipes ask of a model: its names, type, vocabulary, and whether it is instruct."""
        text = self.config.get("text_config") or {}
        former = [self.config.get(key) for key in _FORMER_NAMES] + _card_bases(self.folder)
        names = [self.name, *(name for name in former if isinstance(name, str) and name)]
        vocab_size = self.config.get("vocab_size", text.get("vocab_size"))
        return ModelFacts(
            names=tuple(dict.fromkeys(names)),
            model_type=self.model_type,
            vocab_size=vocab_size if isinstance(vocab_size, int) else None,
            instruct=any(map(_INSTRUCT.search, names)) or _ends_its_turns(self.folder, self.config),
        )

    @property
    def revision(self) -> str | None:
        """The hub commit, for a base in the hub cache (its folder is `snapshots/COMMIT`)."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 that tells this base from others; see the function `fingerprint`."""
        return fingerprint(self.folder)

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """Weight name -> shape, over all safetensors files."""
        return {
            name: entry["shape"]
            for path in sorted(self.folder.glob("*.safetensors"))
            for name, entry in read_header(path).items()
        }

    @cached_property
    def modules(self) -> BaseModules:
        """Its linear and embedding modules, by their names in the checkpoint."""
        return BaseModules(self.folder, self.config, self.shapes)

    def has_weight(self, module: str, copy: Tensor) -> bool:
        """Whether `copy` holds the same numbers as the weight of `module`."""
        name = self.modules.weight_of(module)
        for path in sorted(self.folder.glob("*.safetensors")):
            if name in read_header(path):
                return same_values(read_tensors(path)[name], copy)
        return False


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _card_bases(folder: Path) -> list[str]:
    """`base_model` of the model card, README.md: one name or several."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
        parts = card.split("---\n", 2)
        front = yaml.safe_load(parts[1]) if card.startswith("---\n") and len(parts) == 3 else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    bases = front.get("base_model") if isinstance(front, dict) else None
    return [str(name) for name in (bases if isinstance(bases, list) else [bases]) if name]


def _ends_its_turns(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the tokenizer's chat template ends turns with a token that ends answers.

    So it is with models tuned for chat. Qwen2.5's base models have a template too, but they end
    with a token that it does not contain.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    try:
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        template = json.dumps(settings.get("chat_template") or "", ensure_ascii=False)
    if "message" not in template:
        return False
    end = settings.get("eos_token")
    ends = {end.get("content") if isinstance(end, dict) else end}
    ids = _read_json(folder / "generation_config.json").get("eos_token_id")
    ids = config.get("eos_token_id") if ids is None else ids
    if isinstance(ids, list):  # more than the tokenizer names: Gemma's <end_of_turn>
        added = _read_json(folder / "tokenizer.json").get("added_tokens") or []
        ends |= {token.get("content") for token in added if token.get("id") in ids}
    return any(text in template for text in ends if isinstance(text, str) and text)
