"""Names of LoRA tensors, as different programs write them, and PEFT's own name for each.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            PEFT, Unsloth, TRL
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight    a state dict of PEFT's
    model.layers.0.self_attn.q_proj.lora_A.weight                             without PEFT's prefix
    module.base_model.model....  _orig_mod.base_model.model....               DDP, torch.compile
    pretrained_model.base_model.model....                                     TRL with a value head

All of them mean one side of the LoRA of `model.layers.0.self_attn.q_proj`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "base_model.model."
LONGEST = 1000  # letters of a tensor's name; real ones have some hundred
# What wrappers put before the names: accelerate, DDP, DeepSpeed, TRL, Lightning.
_OUTER = ("module.", "pretrained_model.", "policy.", "_forward_module.")
# What wrappers put between two parts of a name: torch.compile, FSDP, activation checkpoints.
_BETWEEN = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(\.|$)"
)
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight", re.S)
_EMBEDDING = re.compile(
    r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(\.(?P<adapter>[^.]+))?", re.S
)
# Not the adapter's, and nothing that is generated depends on it: TRL's value head.
_IDLE = re.compile(r"(.*\.)?v_head\.")
# A copy of the base's own embedding, which PEFT saves when it thinks that it was resized.
_COPY = re.compile(
    r"(?P<module>(.*\.)?(embed_tokens|lm_head|wte|embed_out))(\.base_layer)?\.weight"
)
# What cannot be served, by a part of the tensor's name.
_REASONS = {
    "lora_magnitude_vector": "belongs to DoRA, which cannot be served; fit without it",
    ".modules_to_save.": "belongs to modules_to_save, which cannot be served; fit without it",
    "trainable_tokens_delta": "belongs to retrained token embeddings, which cannot be served",
    ".lora_A.bias": "is a trained bias, which cannot be served; fit without lora_bias",
    ".lora_B.bias": "is a trained bias, which cannot be served; fit without lora_bias",
    "lora_down": "is written as Kohya's scripts do; convert the adapter to PEFT's format",
    "lora_up": "is written as Kohya's scripts do; convert the adapter to PEFT's format",
    ".lora_a": "is written as mlx-lm does; convert the adapter to PEFT's format",
    ".lora_b": "is written as mlx-lm does; convert the adapter to PEFT's format",
    "hada_": "belongs to LoHa, which cannot be served; fit a LoRA",
    "lokr_": "belongs to LoKr, which cannot be served; fit a LoRA",
    ".linear_in.": "is written as NeMo does; convert the adapter to PEFT's format",
    ".linear_out.": "is written as NeMo does; convert the adapter to PEFT's format",
}


class Side(NamedTuple):
    """One half of a LoRA pair."""

    module: str  # in the base, without any prefix
    side: str  # A or B
    embedding: bool  # lora_embedding_A, whose base weight is read by row
    adapter: str | None  # PEFT's name of the adapter, where the tensor carries it

    @property
    def key(self) -> str:
        """PEFT's name of the tensor in a saved adapter."""
        if self.embedding:
            return f"{PREFIX}{self.module}.lora_embedding_{self.side}"
        return f"{PREFIX}{self.module}.lora_{self.side}.weight"


class Copy(NamedTuple):
    """A copy of a weight of the base's."""

    module: str


def parse(key: str) -> Side | Copy | None:
    """What the tensor `key` is; None where nothing that is generated depends on it.

    Raises:
        ValueError: it is none of these; the message says what it is instead, where that is known.
    """
    if len(key) > LONGEST:
        raise ValueError(f"tensor '{key[:200]!a}...' has a name of {len(key)} letters")
    name = without_prefix(key)
    if _IDLE.match(name):
        return None
    for pattern in (_LINEAR, _EMBEDDING):
        match = pattern.fullmatch(name)
        if match and match["adapter"] != "weight":
            return Side(match["module"], match["side"], pattern is _EMBEDDING, match["adapter"])
    copy = _COPY.fullmatch(name)
    if copy:
        return Copy(copy["module"])
    shown = key[:200].encode("ascii", "backslashreplace").decode()
    reason = next((why for part, why in _REASONS.items() if part in key), None)
    raise ValueError(
        f"tensor '{shown}' {reason}"
        if reason
        else f"unexpected tensor '{shown}'; save the adapter again with PEFT's save_pretrained"
    )


def without_prefix(key: str) -> str:
    """The name inside the base model, without what PEFT and wrappers put before or between."""
    name = _BETWEEN.sub("", key)
    while True:
        for prefix in (PREFIX, *_OUTER, f"model.{PREFIX}"):
            if name.startswith(prefix):
                name = name.removeprefix(prefix if prefix[:6] != "model." else "model.")
                break
        else:
            return name
