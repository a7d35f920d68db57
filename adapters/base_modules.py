"""The modules of a base model that a LoRA can belong to: their names and their weights' shapes.

    modules.find("model.layers.0.self_attn.q_proj")   # its name in this base's checkpoint
    modules.shape("model.layers.0.self_attn.q_proj")  # [out, in], also where the weight is packed

Three kinds of bases need more than a look at the checkpoint. Where embeddings are tied, there is no
weight for the head. Around a language model there may be a vision-language one, whose names have
another prefix. In a quantised one the weights are packed; there the shapes follow from config.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

# Parts that wrappers put before a language model's own names.
_WRAPPERS = ("model", "language_model", "text_model", "thinker")
# A language model's own names begin with these, in every family.
_LANGUAGE = ("layers", "h", "blocks", "embed_tokens", "wte", "lm_head", "norm", "embed_out")
_HEADS = ("lm_head", "embed_out", "output")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
# The names under which a module's weight is stored; the others are those of packed ones.
_PACKED = ("qweight", "weight_packed", "weight_shape", "scales", "qzeros")
_TURNED = ("gpt2", "imagegpt", "openai-gpt")
_LISTED = 3
ALL_LINEAR = "all-linear"  # PEFT's word


class BaseModules:
    """Names and shapes of the modules of one checkpoint."""

    def __init__(self, folder: Path, config: dict[str, Any], weights: dict[str, list[int]]) -> None:
        self.folder, self.config, self.weights = folder, config, weights

    @property
    def quantisation(self) -> str | None:
        """The method with which the weights are packed, such as awq; None: they are not."""
        quantised = self.config.get("quantization_config")
        if quantised is None:
            quantised = self.config.get("compression_config")
        if not isinstance(quantised, dict):
            return None
        method = quantised.get("quant_method")
        if not isinstance(method, str):
            method = "bitsandbytes" if quantised.get("load_in_4bit") else "unknown"
        return method.lower()

    @property
    def is_wrapper(self) -> bool:
        """Whether a language model is only a part of it."""
        parts = ("text_config", "vision_config", "audio_config", "thinker_config")
        return any(isinstance(self.config.get(part), dict) for part in parts)

    @cached_property
    def names(self) -> set[str]:
        """Every module with a weight of its own, and the head where it shares the embedding's."""
        ends = ("weight", *_PACKED)
        names = {
            name.rpartition(".")[0] for name in self.weights if name.rpartition(".")[2] in ends
        }
        if not any(name.rpartition(".")[2] in _HEADS for name in names):
            names.add("lm_head")
        return names

    @cached_property
    def _by_core(self) -> dict[str, list[str]]:
        """Name without a wrapper's parts -> the names that have this core."""
        cores: dict[str, list[str]] = {}
        for name in sorted(self.names):
            cores.setdefault(_core(name), []).append(name)
        return cores

    def locate(self, module: str) -> str | None:
        """The name in the checkpoint of what an adapter calls `module`; None: there is none."""
        if module in self.names:
            return module
        found = self._by_core.get(_core(module), [])
        return found[0] if len(found) == 1 else None

    def find(self, module: str) -> str:
        """The name in the checkpoint of what an adapter calls `module`.

        Raises:
            ValueError: there is none, or vLLM would leave its LoRA out.
        """
        name = self.locate(module)
        if name is None:
            raise ValueError(f"the base has no module '{module[:200]}'{self._instead(module)}")
        if self.is_wrapper and _core(name).partition(".")[0] not in _LANGUAGE:
            raise ValueError(
                f"'{module[:200]}' lies outside the language model; vLLM would leave it out "
                "without a word. Fit an adapter of the language model's modules alone"
            )
        return name

    def _instead(self, module: str) -> str:
        """What the base has of the same last name, where that helps."""
        last = f".{module.rpartition('.')[2]}"
        alike = sorted(name for name in self.names if name.endswith(last))[:_LISTED]
        return f" (it has {', '.join(alike)})" if alike else ""

    def targets(self, wanted: Sequence[str]) -> list[str]:
        """`target_modules` of a LoRA as PEFT reads them, each looked up in this base.

        Args:
            wanted: names or ends of names; `all-linear`: all linear modules but the head.

        Raises:
            ValueError: the base has no module of that name.
        """
        found: list[str] = []
        for one in wanted:
            if one == ALL_LINEAR:
                found += sorted(self._linear)
            elif not any(name == one or name.endswith(f".{one}") for name in self.names):
                there = ", ".join(sorted(self._linear))
                raise ValueError(f"the base has no module '{one[:100]}'; it has {there}")
            else:
                found.append(one)
        return list(dict.fromkeys(found))

    @property
    def _linear(self) -> set[str]:
        """Last parts of the names of the language model's linear modules, without the head."""
        return {
            name.rpartition(".")[2]
            for name in self.names
            if _core(name).partition(".")[0] in _LANGUAGE
            and not self.is_vocabulary(name)
            and (len(self.weights.get(f"{name}.weight", ())) == 2 or self._is_packed(name))
        }

    def _is_packed(self, name: str) -> bool:
        return any(f"{name}.{part}" in self.weights for part in _PACKED)

    def is_turned(self, name: str) -> bool:
        """Whether the weight is stored as [in, out], as GPT-2's Conv1D does."""
        return self.config.get("model_type") in _TURNED and not self.is_vocabulary(name)

    def is_vocabulary(self, module: str) -> bool:
        """Whether `module` is the output layer or the input embedding."""
        return module.rpartition(".")[2] in (*_HEADS, *_EMBEDDINGS)

    def shape(self, name: str) -> list[int]:
        """[out, in] of the weight of a module, by its name in the checkpoint.

        Raises:
            ValueError: it is packed, and its shape cannot be found out.
        """
        stored = self.weights.get(f"{name}.weight")
        if self.quantisation is not None:
            return self._unpacked(name, stored)
        if stored is None and name.rpartition(".")[2] in _HEADS:
            return self._tied()
        if stored is None:
            raise ValueError(f"the base has no weight of '{name[:200]}'")
        return stored

    def _tied(self) -> list[int]:
        """The shape of the embedding, which a head without a weight of its own shares."""
        embedding = self.weight_of("lm_head")
        if embedding is None:
            raise ValueError("the base has no weight of its head, and no one embedding to share")
        return self.weights[embedding]

    def weight_of(self, module: str) -> str | None:
        """The tensor that holds the weight of `module`; that of the embedding for a tied head."""
        stored = f"{self.locate(module)}.weight"
        if stored in self.weights:
            return stored
        embeddings = [
            name
            for name in self.weights
            if name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS
        ]
        is_head = module.rpartition(".")[2] in _HEADS
        return embeddings[0] if is_head and len(embeddings) == 1 else None

    def _unpacked(self, name: str, stored: list[int] | None) -> list[int]:
        shapes = self._from_config
        if name in shapes:
            return shapes[name]
        alike = {tuple(shape) for known, shape in shapes.items() if _core(known) == _core(name)}
        if len(alike) == 1:
            return list(alike.pop())
        if stored is not None and len(stored) == 2 and stored[1] > 1:
            return stored
        raise ValueError(
            f"quantised base ({self.quantisation}): the shape of '{name[:200]}' does not follow "
            "from its config.json; use the base that it was quantised from"
        )

    @cached_property
    def _from_config(self) -> dict[str, list[int]]:
        """Shapes of all modules as transformers builds them, without any weights.

        Raises:
            ValueError: transformers is not there, or does not know the architecture.
        """
        try:
            return _shapes_of(self.folder, self.config)
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"quantised base ({self.quantisation}): transformers cannot tell its shapes from "
                f"config.json: {reason[0][:200]}"
            ) from error


def _shapes_of(folder: Path, config: dict[str, Any]) -> dict[str, list[int]]:
    import torch
    import transformers

    built = transformers.AutoConfig.from_pretrained(folder)
    for name in ("quantization_config", "compression_config"):
        if hasattr(built, name):
            delattr(built, name)
    architecture = (config.get("architectures") or ["AutoModelForCausalLM"])[0]
    model_class = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
    with torch.device("meta"):
        make = getattr(model_class, "_from_config", None) or model_class.from_config
        model = make(built)
    turned = tuple(
        name
        for name, module in model.named_modules()
        if type(module).__name__ == "Conv1D"  # stores [in, out]
    )
    shapes = {
        name: list(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim == 2
    }
    return {name: shape[::-1] if name in turned else shape for name, shape in shapes.items()}


def _core(name: str) -> str:
    """`name` without the parts that wrappers put before a language model's own."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return ".".join(parts)
