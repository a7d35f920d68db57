"""`adapter_config.json`, read once and strictly: what PEFT and vLLM take from it.

    config = PeftConfig.parse(b'{"peft_type": "LORA", "r": 8, "lora_alpha": 16, ...}')
    config.rank_of("model.layers.0.self_attn.q_proj")

Whatever the bytes are, reading them ends in a `PeftConfig` or in a ValueError that names the field.
Keys that PEFT does not know, or that change training alone, are left as they are.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
)

from adapters.json_keys import DuplicateKeyError, unique_keys
from adapters.patterns import Matches, Patience, check

FILE = "adapter_config.json"
LARGEST_RANK = 2**16
LARGEST_ALPHA = 1e9
PATTERNS = 4096  # keys of one pattern at most
# PEFT features that change what the adapter computes, of which vLLM's own check knows nothing.
UNSERVED = {
    "target_parameters": "LoRA on bare parameters (fused experts)",
    "trainable_token_indices": "retrained token embeddings",
    "arrow_config": "Arrow, a router over adapters,",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "a Megatron layer",
}

# What a field of several forms may be.
FORMS = {
    "target_modules": "a list of module names nor a pattern",
    "exclude_modules": "a list of module names nor a pattern",
    "layers_to_transform": "a list of layer numbers nor one number",
    "layers_pattern": "a pattern nor a list of patterns",
}

# What a file needs whatever the values are; of the others, those that PEFT assumes anyway.
REQUIRED = (
    *("base_model_name_or_path", "bias", "inference_mode", "lora_alpha", "peft_type", "r"),
    *("target_modules", "task_type"),
)
DEFAULTS: dict[str, Any] = {
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}

Value = TypeVar("Value")
Rank = Annotated[int, Field(ge=1, le=LARGEST_RANK)]
Alpha = Annotated[float, Field(ge=-LARGEST_ALPHA, le=LARGEST_ALPHA, allow_inf_nan=False)]


def _none_is_empty(value: object) -> object:
    return {} if value is None else value


def _none_is_false(value: object) -> object:
    return False if value is None else value


Pattern = Annotated[str, AfterValidator(check)]
Flag = Annotated[bool, BeforeValidator(_none_is_false)]
Module = Annotated[str, StringConstraints(min_length=1)]


class PeftConfig(BaseModel):
    """The fields of a LoRA's configuration that decide what it computes."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    target_modules: (
        Annotated[list[Module], Field(min_length=1)] | Annotated[Module, AfterValidator(check)]
    )
    bias: Literal["none"] = "none"
    use_rslora: Flag = False
    use_dora: Flag = False
    fan_in_fan_out: Flag = False
    modules_to_save: list[str] | None = None
    exclude_modules: list[Module] | Annotated[str, AfterValidator(check)] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[Pattern] | Pattern | None = None
    rank_pattern: Annotated[
        dict[Pattern, Rank], BeforeValidator(_none_is_empty), Field(max_length=PATTERNS)
    ] = Field(default_factory=dict)
    alpha_pattern: Annotated[
        dict[Pattern, Alpha], BeforeValidator(_none_is_empty), Field(max_length=PATTERNS)
    ] = Field(default_factory=dict)

    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def raw(self) -> dict[str, Any]:
        """The whole content of the file."""
        return self._raw

    @classmethod
    def parse(cls, content: bytes) -> PeftConfig:
        """Read the content of `adapter_config.json`.

        Raises:
            ValueError: it cannot be used; the message names the field and the way out.
        """
        raw = _object(content)
        _refuse_foreign(raw)
        try:
            config = cls.model_validate(raw)
        except ValidationError as error:
            raise ValueError(_complaint(error, raw)) from None
        _refuse_unserved(config, raw)
        config._raw = raw
        return config

    @property
    def largest_rank(self) -> int:
        """The largest rank of any module, as vLLM's --max-lora-rank counts it."""
        return max([self.r, *self.rank_pattern.values()])

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives the module of this name. Raises as `compiled`."""
        return next((rank for matches, rank in self._ranks if matches(module)), self.r)

    def scaling_of(self, module: str) -> float:
        """What PEFT multiplies the module's update by. Raises as `compiled`."""
        alpha = next((a for matches, a in self._alphas if matches(module)), self.lora_alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @cached_property
    def _patience(self) -> Patience:
        return Patience()

    @cached_property
    def _alphas(self) -> list[tuple[Matches, float]]:
        return self.compiled(self.alpha_pattern)

    @cached_property
    def _ranks(self) -> list[tuple[Matches, int]]:
        return self.compiled(self.rank_pattern)

    def compiled(self, pattern: dict[str, Value]) -> list[tuple[Matches, Value]]:
        """In PEFT's order; the first that matches decides (peft.utils.other.get_pattern_key).

        What is returned raises ValueError where matching takes too long.
        """
        return [(self._patience.matcher(key), value) for key, value in pattern.items()]

    def targets(self, module: str) -> bool:
        """Whether PEFT would adapt `module`. Raises as `left_out_by`."""
        return self.left_out_by(module) is None

    def left_out_by(self, module: str) -> str | None:
        """The field for which PEFT would not adapt `module`; None: it would.

        As peft.tuners.tuners_utils.check_target_module_exists.

        Raises:
            ValueError: a pattern takes too long to match.
        """
        if self.exclude_modules and self._names(self.exclude_modules, module):
            return "exclude_modules"
        all_linear = str(self.target_modules).lower() == "all-linear"
        if not all_linear and not self._names(self.target_modules, module):
            return "target_modules"
        by_pattern = isinstance(self.target_modules, str) or module in self.target_modules
        if by_pattern or self.layers_to_transform in (None, []):
            return None
        layers = self.layers_to_transform
        wanted = [layers] if isinstance(layers, int) else layers or []
        return None if self._layer_of(module) in wanted else "layers_to_transform"

    def _layer_of(self, module: str) -> int | None:
        """The number of the layer that `module` belongs to, as PEFT finds it in the name."""
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = self._patience.match(rf".*\.{pattern}\.(\d+)\.", module)
            if found is not None:
                return int(found[1])
        return None

    def _names(self, wanted: list[str] | str, module: str) -> bool:
        """Whether names, or a pattern of the whole name, mean `module`."""
        if isinstance(wanted, str):
            return self._patience.match(rf"(?:{wanted})\Z", module) is not None
        return any(module == one or module.endswith(f".{one}") for one in wanted)


def lean(raw: dict[str, Any]) -> dict[str, Any]:
    """The keys that PEFT needs, and those whose values are not its defaults anyway.

    Older versions of PEFT refuse keys that they do not know; they know these (peft issue 2208).
    """
    return {
        key: value
        for key, value in raw.items()
        if key in REQUIRED or (value != DEFAULTS[key] if key in DEFAULTS else _says(value))
    }


def _says(value: Any) -> bool:
    """Whether the value of a key differs from "no" and "none"; layer 0 does."""
    return value not in (None, [], {}) and value is not False


def _object(content: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 `content`, each key there once."""
    try:
        text = content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique_keys)
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
    except UnicodeDecodeError:
        raise ValueError(f"{FILE} is not JSON: it is not UTF-8; save it again as UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError(f"{FILE} is not JSON: it holds half a character (\\ud8..)") from None
    except DuplicateKeyError as error:
        raise ValueError(f"{FILE}: {error}; keep one") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{FILE} is not JSON; copy it again from where it was saved") from None
    if not isinstance(value, dict):
        raise ValueError(f"{FILE}: peft_type is not LORA: the file holds no object")
    return value


def _refuse_foreign(raw: dict[str, Any]) -> None:
    """Say what it is instead, where it is no LoRA of PEFT's."""
    kind = raw.get("peft_type")
    if kind == "LORA":
        return
    if kind is None and ("lora_parameters" in raw or "fine_tune_type" in raw):
        raise ValueError(
            f"{FILE}: peft_type is not LORA: this is an adapter of mlx-lm; convert it to PEFT's "
            "format first"
        )
    shown = "missing" if kind is None else f"{str(kind)[:50]!a}"
    raise ValueError(f"{FILE}: peft_type is not LORA but {shown}; only LoRA adapters can be served")


def _refuse_unserved(config: PeftConfig, raw: dict[str, Any]) -> None:
    if config.use_dora:
        raise ValueError(f"{FILE}: use_dora cannot be served; fit without it")
    if config.modules_to_save:
        raise ValueError(
            f"{FILE}: modules_to_save cannot be served; fit without it, or merge the adapter into "
            "the base"
        )
    for field, what in UNSERVED.items():
        if raw.get(field) or (field.endswith("_config") and raw.get(field) == {}):
            raise ValueError(f"{FILE}: {field}: {what} cannot be served; fit without it")


def _complaint(error: ValidationError, raw: dict[str, Any]) -> str:
    """One line for the first thing that is wrong, with the way out."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "content"
    if field == "bias":
        return f"{FILE}: bias: a trained bias cannot be served; fit with bias 'none'"
    if field not in raw or raw[field] is None:
        gone = "is missing" if field not in raw else "is null"
        return f"{FILE}: {field} {gone}; add the value that the adapter was trained with"
    if field == "r":
        return f"{FILE}: r is not a positive whole number, {LARGEST_RANK} at most"
    if field in FORMS:
        return f"{FILE}: {field} is neither {FORMS[field]}"
    place = "".join(f"[{str(part)[:100]!a}]" for part in first["loc"][1:] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    return f"{FILE}: {field}{place}: {message[:1].lower()}{message[1:300]}"
