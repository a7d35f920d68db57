"""Miniature bases as AWQ, GPTQ and compressed-tensors write them, with what their weights are.

    exact = quantise(plain, "awq", folder)    # `plain` with the weights that `folder` stands for

Every projection of the layers is quantised, in groups of 32 or by row. What is left is rounded to
half precision, so that the exact model and the quantised one have the same numbers throughout.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32  # input features with one scale
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output features within a packed word
SHIFTS = torch.arange(0, 32, 4)


class Packed(NamedTuple):
    """A weight as a quantised checkpoint has it, and what it is worth."""

    parts: dict[str, Tensor]
    exact: Tensor  # [out, in], float32


def _words(nibbles: Tensor) -> Tensor:
    """[..., 8] numbers below 16 as [...] words, the first in the lowest bits."""
    words = (nibbles.long() << SHIFTS).sum(-1)
    return (words - (words >= 2**31) * 2**32).int()


def _scales(weight: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """[out, groups, GROUP] weights and their [out, groups, 1] scales, exact in half precision."""
    groups = weight.unflatten(1, (-1, GROUP))
    return groups, (groups.abs().amax(-1, keepdim=True) / most).half().float()


def _symmetric(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Four bits without zero points: [out, groups, GROUP] numbers, their scales, what they say."""
    groups, scales = _scales(weight, 7)
    q = (groups / scales).round().clamp(-8, 7)
    return q + 8, scales, (q * scales).flatten(1)


def gptq(weight: Tensor) -> Packed:
    """Symmetric, four bits: words hold eight input features."""
    q, scales, exact = _symmetric(weight)
    inputs = q.flatten(1).t()  # [in, out]
    zeros = torch.full((inputs.shape[0] // GROUP, inputs.shape[1] // 8), 0x77777777)
    return Packed(
        {
            "qweight": _words(inputs.unflatten(0, (-1, 8)).transpose(1, 2)),
            "qzeros": zeros.int(),  # eight, stored as seven
            "scales": scales[..., 0].t().half(),
            "g_idx": torch.arange(weight.shape[1]).int() // GROUP,
        },
        exact,
    )


def awq(weight: Tensor) -> Packed:
    """With zero points, four bits: words hold eight output features."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    q = (groups / scales + zeros).round().clamp(0, 15)
    exact = ((q - zeros) * scales).flatten(1)

    def packed(rows: Tensor) -> Tensor:  # [rows, out] -> [rows, out / 8]
        return _words(rows.unflatten(1, (-1, 8))[..., AWQ_ORDER])

    return Packed(
        {
            "qweight": packed(q.flatten(1).t()),
            "qzeros": packed(zeros[..., 0].t()),
            "scales": scales[..., 0].t().half(),
        },
        exact,
    )


def packed_int4(weight: Tensor) -> Packed:
    """compressed-tensors, "pack-quantized": four bits, symmetric."""
    q, scales, exact = _symmetric(weight)
    return Packed(
        {
            "weight_packed": _words(q.flatten(1).unflatten(1, (-1, 8))),
            "weight_scale": scales[..., 0].half(),
            "weight_shape": torch.tensor(weight.shape),
        },
        exact,
    )


def int8(weight: Tensor) -> Packed:
    """compressed-tensors, "int-quantized": eight bits, a scale for each row."""
    scales = weight.abs().amax(1, keepdim=True) / 127
    q = (weight / scales).round().clamp(-127, 127)
    return Packed({"weight": q.to(torch.int8), "weight_scale": scales}, q * scales)


def fp8(weight: Tensor) -> Packed:
    """A float of eight bits, with one scale for the tensor."""
    scale = (weight.abs().max() / 448).float()
    q = (weight / scale).to(torch.float8_e4m3fn)
    return Packed({"weight": q, "weight_scale": scale}, q.float() * scale)


def _compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> Any:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_INTEGERS = {"type": "int", "symmetric": True}
FORMS: dict[str, tuple[Callable[[Tensor], Packed], dict[str, Any]]] = {
    "gptq": (
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    ),
    "awq": (
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"},
    ),
    "compressed-tensors int4": (
        packed_int4,
        _compressed(
            "pack-quantized",
            _INTEGERS | {"num_bits": 4, "strategy": "group", "group_size": GROUP},
            None,
        ),
    ),
    "compressed-tensors int8": (
        int8,
        _compressed(
            "int-quantized",
            _INTEGERS | {"num_bits": 8, "strategy": "channel", "dynamic": False},
            _INTEGERS | {"num_bits": 8, "strategy": "token", "dynamic": True},
        ),
    ),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
}  # fmt: skip


def quantise(plain: Path, form: str, folder: Path) -> Path:
    """Write the base `plain` in a quantised form, and beside it what that is worth; returns that.

    Args:
        folder: of the quantised base; the exact one is `folder` with "-exact" behind its name.
    """
    pack, settings = FORMS[form]
    exact = folder.with_name(f"{folder.name}-exact")
    for copy in (folder, exact):
        shutil.copytree(plain, copy)
    quantised, worth = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            worth[name] = weight.half().float()
            quantised[name] = weight.half()
            continue
        packed = pack(weight)
        worth[name] = packed.exact
        module = name.removesuffix("weight")
        quantised |= {f"{module}{part}": one.contiguous() for part, one in packed.parts.items()}
    save_file(worth, exact / "model.safetensors", {"format": "pt"})
    save_file(quantised, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return exact
