"""What vLLM's own loader says of an adapter, asked before anything is loaded.

    bring_in()                      # commands that import an adapter do so; a server has it anyway
    refusal(adapter_config)         # None, or why vLLM would not load the adapter
    refused_modules(architecture, ["lm_head"])

vLLM takes seconds to import, so it is asked only in a process that has it already. Where it is not
installed, nothing is refused here; the server asks again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

if TYPE_CHECKING:
    from vllm.config.lora import LoRAConfig
    from vllm.lora.peft_helper import PEFTHelper

_HEAVY = "vllm.config"  # what takes the time


class Loader(NamedTuple):
    """What of vLLM is asked: its reader of adapter_config.json, and limits that refuse nothing."""

    helper: type[PEFTHelper]
    limits: LoRAConfig


def bring_in() -> bool:
    """Import what `refusal` asks, where vLLM is installed; whether it is there."""
    if find_spec("vllm") is None:
        return False
    with _quiet():
        return _helper(True) is not None


def refusal(config: dict[str, Any]) -> str | None:
    """Why vLLM would not load an adapter of this `adapter_config.json`; None: it would.

    Whatever vLLM's check raises is its answer.
    """
    loader = _helper(_HEAVY in sys.modules)
    if loader is None:
        return None
    try:
        loader.helper.from_dict(config).validate_legal(loader.limits)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return f"vLLM would not load it: {text[:600]}"
    return None


def refused_modules(architecture: str, modules: Sequence[str]) -> str | None:
    """Why vLLM would not load a LoRA on these embeddings or heads; None: it would.

    Args:
        architecture: of the base, such as Qwen3ForCausalLM.
        modules: its embeddings and heads that the adapter changes.
    """
    if not modules or _helper(_HEAVY in sys.modules) is None:
        return None
    model = _model_class(architecture)
    if model is None:
        return None
    if not getattr(model, "supports_lora", False):
        return f"vLLM serves no LoRA on {architecture}"
    known = getattr(model, "embedding_modules", None) or {}
    left = sorted({name.rpartition(".")[2] for name in modules} - set(known))
    if not left:
        return None
    return (
        f"vLLM serves no LoRA on {', '.join(left)} of {architecture}; "
        "fit without it, or merge the adapter into the base"
    )


def refused_quantisation(method: str | None) -> str | None:
    """Why vLLM would not load a base that is quantised so; None: it would, or nobody says."""
    if method is None or _helper(_HEAVY in sys.modules) is None:
        return None
    try:
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    except Exception:
        return None
    if any(method.replace("_", "-") == known.replace("_", "-") for known in QUANTIZATION_METHODS):
        return None
    return f"quantised base: vLLM knows no quantisation '{method[:50]}'; use the base it came from"


def _helper(wanted: bool) -> Loader | None:
    return _import_helper() if wanted else None


@cache
def _import_helper() -> Loader | None:
    try:
        from vllm.config import lora
        from vllm.lora.peft_helper import PEFTHelper

        ranks = get_args(getattr(lora, "MaxLoRARanks", None)) or (256,)
        return Loader(PEFTHelper, lora.LoRAConfig(max_lora_rank=max(ranks)))
    except Exception as error:  # a vLLM that is broken, or has moved these
        logging.getLogger(__name__).debug("vLLM's loader cannot be asked: %s", error)
        return None


def _model_class(architecture: str) -> type | None:
    """vLLM's class of that name; None where there is none, or it cannot be imported here."""
    try:
        from vllm.model_executor.models.registry import ModelRegistry

        with _quiet():
            found: type = ModelRegistry.models[architecture].load_model_cls()
            return found
    except Exception:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave standard output to the command's own words."""
    if _HEAVY in sys.modules:
        yield
        return
    before = os.environ.get("VLLM_LOGGING_LEVEL")
    os.environ["VLLM_LOGGING_LEVEL"] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ["VLLM_LOGGING_LEVEL"]
