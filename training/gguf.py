"""A base-model folder out of a GGUF file, for the many models that exist in no other form.

    uv pip install -e '.[gguf]'
    python -m training.gguf SmolLM2-135M-Instruct.Q4_1.gguf --out models/SmolLM2-135M-Instruct
    reasonmaxxer fit --model models/SmolLM2-135M-Instruct --problems gsm8k_train --publish mine

transformers de-quantises the weights. The folder holds them as safetensors, with the configuration,
the tokenizer and the chat template; vLLM, transformers and PEFT open it like any other. The command
names what the file has and the folder cannot hold. Bad input ends with exit code 2.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from adapters.command_line import CommandLine, usage_error
from adapters.files import atomic_directory, write_json
from adapters.first_line import first_line

logger = logging.getLogger("training.gguf")

Dtype = Literal["bfloat16", "float16", "float32"]

MAGIC = b"GGUF"
SHOWN = 8  # names in a message
# llama.cpp's names of pre-tokenizers that split numbers into single digits.
DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
# Those that split as GPT-2's does, which is how transformers builds a byte-level tokenizer.
GPT2 = frozenset({"gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo"})
# Metadata of no use to a folder, or read by transformers.
KNOWN = ("GGUF.", "general.", "tokenizer.", "quantize.", "split.")
# Sampling defaults: what GGUF calls them, and generation_config.json.
SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


class GgufError(ValueError):
    """The file cannot be converted; the message says why."""


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says of itself; its weights are read by transformers."""

    path: Path
    metadata: dict[str, Any]  # arrays of more than 100 values as their length
    tensors: dict[str, str]  # name -> quantisation type

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header of the GGUF file at `path`.

        Raises:
            GgufError: no GGUF file, a damaged one, or a part of one.
        """
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise GgufError(f"{path}: {error.strerror or error}") from error
        if magic != MAGIC:
            raise GgufError(f"{path}: not a GGUF file")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise GgufError(
                "the package gguf is missing: uv pip install 'reasonmaxxer[gguf]'"
            ) from error
        try:
            reader = GGUFReader(path)
            metadata = {
                name: len(field.data) if len(field.data) > 100 else field.contents()
                for name, field in reader.fields.items()
            }
            tensors = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        except Exception as error:  # numpy's and struct's errors, of many kinds
            raise GgufError(f"{path}: damaged or cut short ({first_line(error)})") from error
        found = cls(path, metadata, tensors)
        if found.metadata.get("split.count", 1) > 1:
            raise GgufError(
                f"{path}: one of {found.metadata['split.count']} parts; join them first "
                "(llama-gguf-split --merge)"
            )
        if not tensors:
            raise GgufError(f"{path}: has no weights")
        return found

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def name(self) -> str:
        return str(self.metadata.get("general.name") or self.path.stem)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's or the tokenizer's."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def convert(path: Path, out: Path, dtype: Dtype = "bfloat16") -> list[str]:
    """Write the folder `out`, whole or not at all. Returns sentences on what was not converted.

    Raises:
        FileExistsError: `out` is there already.
        GgufError: the file cannot be converted.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists")
    file = GgufFile.open(path)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(file.tensors.values()).items())
    logger.info("%s (%s): %d tensors, %s", file.name, file.architecture, len(file.tensors), kinds)
    config, rope_notes = read_config(file)
    with atomic_directory(out) as folder:
        tokenizer, notes = read_tokenizer(file)
        tokenizer.save_pretrained(folder)
        notes += check_tokenizer(file, folder)
        convert_weights(file, folder, dtype, config, tokenizer)
    return notes + rope_notes + _left_out(file, config.get_text_config().num_hidden_layers)


def read_config(file: GgufFile) -> tuple[Any, list[str]]:
    """The configuration; what it lacks.

    Raises:
        GgufError: transformers does not know the architecture.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:
        raise GgufError(
            f"{file.path}: transformers cannot read the architecture '{file.architecture}' from "
            f"GGUF ({first_line(error)})"
        ) from error
    rope, notes = _rope_scaling(file)
    if rope:
        config.rope_parameters = dict(config.rope_parameters) | rope
    return config, notes


# ------------------------------------------------------------------------------- the tokenizer


def read_tokenizer(file: GgufFile) -> tuple[Any, list[str]]:
    """The tokenizer, with its chat template; and what is doubtful about it.

    Raises:
        GgufError: transformers cannot rebuild it.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise GgufError(f"{file.path}: has no tokenizer")
    logger.info("tokenizer: %s", kind)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:  # of many kinds: KeyError, ValueError, tokenizers' own
        raise GgufError(
            f"{file.path}: transformers cannot rebuild its tokenizer '{kind}' ({first_line(error)})"
        ) from error
    notes = []
    before = str(file.metadata.get("tokenizer.ggml.pre", "default"))
    if kind == "gpt2" and before in DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind == "gpt2" and before not in _known_splits() | GPT2:
        notes.append(
            f"The pre-tokenizer '{before}' is not known here and stands in as GPT-2's: numbers and "
            "punctuation may be split into other tokens than the model was trained on."
        )
    tokenizer.add_bos_token = adds_bos(file) and tokenizer.bos_token is not None
    if not tokenizer.chat_template:
        notes.append("The file has no chat template: prompts are a plain question and answer.")
    named = sorted(name for name in file.metadata if name.startswith("tokenizer.chat_template."))
    if named:
        names = ", ".join(name.rsplit(".", 1)[1] for name in named)
        notes.append(f"Only the default chat template was kept; left out: {names}.")
    return tokenizer, notes


def _known_splits() -> set[str]:
    """Pre-tokenizers that transformers rebuilds; its releases before 5.19 know of none."""
    try:
        from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping
    except ImportError:
        return set()
    return set(getattr(mapping, "GGUF_PRE_TOKENIZER_SPLITS", ()))


def adds_bos(file: GgufFile) -> bool:
    """Whether texts begin with BOS; where the file does not say, by llama.cpp's defaults."""
    said = file.metadata.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    kind, before = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    return kind == "llama" or before in ("llama3", "llama-v3", "llama-bpe", "tekken")


def check_tokenizer(file: GgufFile, folder: Path) -> list[str]:
    """Read the saved tokenizer back; what is wrong with it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    notes = []
    if adds_bos(file) and not begins:
        notes.append("The tokenizer does not begin a text with BOS, though the file asks for it.")
    size = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(size, int) and len(tokenizer) != size:
        notes.append(f"The tokenizer has {len(tokenizer)} tokens, the file {size}.")
    return notes


# --------------------------------------------------------------------------------- the weights


def convert_weights(
    file: GgufFile, folder: Path, dtype: Dtype, config: Any, tokenizer: Any
) -> None:
    """De-quantise the weights and write them with their configuration.

    Raises:
        GgufError: a quantisation is unknown to the package gguf, or weights are missing.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    # Releases that can keep weights packed are told not to; earlier ones always unpack.
    unpack = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": unpack(dequantize=True)} if unpack else {}
    logger.info("de-quantising to %s", dtype)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            gguf_file=file.path.name,
            **options,
            config=config,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    except NotImplementedError as error:
        raise GgufError(
            f"{file.path}: a quantisation cannot be read ({first_line(error)}); there are "
            f"{', '.join(sorted(set(file.tensors.values())))}"
        ) from error
    except Exception as error:
        raise GgufError(f"{file.path}: the weights cannot be read ({first_line(error)})") from error
    if info["missing_keys"]:
        raise GgufError(f"{file.path}: it lacks weights: {_some(sorted(info['missing_keys']))}")
    model.hf_quantizer = None  # else it would be saved as a GGUF model
    for name in ("quantization_config", "_pre_quantization_dtype"):
        model.config.__dict__.pop(name, None)
    model.generation_config.update(**_generation(file, tokenizer))
    model.save_pretrained(folder)
    _tidy(folder)


def _generation(file: GgufFile, tokenizer: Any) -> dict[str, Any]:
    """What generation_config.json says: where answers end, and the file's sampling defaults."""
    found: dict[str, Any] = {
        name: file.metadata[f"general.sampling.{key}"]
        for key, name in SAMPLING.items()
        if f"general.sampling.{key}" in file.metadata
    }
    if found:
        found["do_sample"] = True
    ids = [file.metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(int(one) for one in ids if one is not None))
    # Chat templates end a turn with a token that older files do not name.
    for text in ("<end_of_turn>", "<|im_end|>", "<|eot_id|>"):
        token = tokenizer.convert_tokens_to_ids(text)
        known = token is not None and token != tokenizer.unk_token_id
        if known and text in (tokenizer.chat_template or "") and token not in ends:
            ends.append(token)
    if ends:
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return found


def _rope_scaling(file: GgufFile) -> tuple[dict[str, Any], list[str]]:
    """The rotary scaling that Llama 3.1 and later keep as a tensor, as configuration."""
    if "rope_freqs.weight" not in file.tensors:
        return {}, []
    import numpy as np
    from gguf import GGUFReader

    (tensor,) = (one for one in GGUFReader(file.path).tensors if one.name == "rope_freqs.weight")
    found = np.array(tensor.data, dtype=np.float64)
    base, width = file.get("rope.freq_base", 10_000.0), 2 * len(found)
    waves = 2 * np.pi * base ** (np.arange(0, width, 2) / width)
    for factor in (8.0, 32.0):
        low, high, original = 1.0, 4.0, 8192
        smooth = np.clip((original / waves - low) / (high - low), 0, 1)
        if np.allclose(found, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }, []
    return {}, [
        "The rotary scaling (rope_freqs.weight) is none of Llama 3's and was left out: long texts "
        "will read differently."
    ]


def _left_out(file: GgufFile, layers: int) -> list[str]:
    """What the folder has no place for, or transformers does not read."""
    parts: dict[str, list[str]] = {}
    for name in file.tensors:
        head, _, rest = name.partition(".")
        if head in ("v", "mm", "a"):
            parts.setdefault("the projector of images or sound", []).append(name)
        elif "nextn" in name or (head == "blk" and int(rest.split(".")[0]) >= layers):
            parts.setdefault("layers that predict several tokens (MTP)", []).append(name)
    notes = [f"Left out: {what}, {len(names)} tensors." for what, names in parts.items()]
    if file.architecture == "llama" and re.search(r"mistral.*v0\.1", file.name, re.IGNORECASE):
        notes.append(
            "GGUF writes Mistral as Llama, without the window of 4,096 tokens that v0.1 attends "
            "to: longer texts will read differently."
        )
    scaling = file.get("rope.scaling.type")
    if scaling not in (None, "none"):
        notes.append(f"The rotary scaling '{scaling}' may not have been read; check config.json.")
    unknown = sorted(
        name for name in file.metadata if not name.startswith((*KNOWN, f"{file.architecture}."))
    )
    if unknown:
        notes.append(f"Metadata that was not read: {_some(unknown)}.")
    return notes


def _tidy(folder: Path) -> None:
    """Take out of config.json what only tells how the weights were stored."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("quantization_config", None)
    write_json(path, config)


# -------------------------------------------------------------------------------- the command


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class GgufConfig(CommandLine):
    """Write a base-model folder out of a GGUF file.

        uv pip install -e '.[gguf]'
        python -m training.gguf SmolLM2-135M-Instruct.Q4_1.gguf --out models/SmolLM2-135M-Instruct

    transformers de-quantises the weights. The command names what the file has and the folder cannot
    hold.
    """

    program: ClassVar[str] = "python -m training.gguf"

    file: CliPositionalArg[Path] = Field(description="GGUF file of a language model.")
    out: Path = Field(description="Folder to be made.")
    dtype: Dtype = Field("bfloat16", description="What the weights are stored in.")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    config = GgufConfig.load(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the file
    try:
        notes = convert(config.file, config.out, config.dtype)
    except (GgufError, FileExistsError) as error:
        usage_error(config.called(), str(error))
    except OSError as error:
        print(f"{config.called()}: {error}", file=sys.stderr)
        return 1
    for note in notes:
        print(f"note: {note}")
    print(config.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
