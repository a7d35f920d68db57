"""NAME and NAME:gated: one adapter, at every step or at decision points only.

Both names share one LoRARequest, so the engine holds the weights once; a gated request differs by
the threshold in its sampling parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters.manifest import Gate, Manifest
from adapters.version import AdapterError
from serving.arguments import given, resolve
from serving.engine import usage
from serving.registry import Registry

SUFFIX = ":gated"


@lru_cache(maxsize=256)
def _gate(frozen: Path) -> Gate:
    """The threshold of a frozen adapter; its path never changes its meaning."""
    return Manifest.read(frozen).gate


@dataclass
class Modes:
    """Admission of requests by the model they name."""

    registry: Registry
    gated: bool  # False: --gate off

    async def admit(self, request: Any) -> None:
        """Make the named adapter ready, and put the gate's arguments into the request.

        Raises:
            KeyError: no such model.
            AdapterError: an adapter that cannot be used, or not so.
            ValueError: arguments that do not fit.
        """
        name = request.model
        base = not name or self.registry.models.is_base_model(name)
        arguments = getattr(request, "vllm_xargs", None)
        if base or not name.endswith(SUFFIX) or not self.gated:
            if self.gated and given(arguments):
                raise ValueError(
                    f"{given(arguments)[0]}: only a gated model takes it (an adapter's name with "
                    f"'{SUFFIX}' behind it)"
                )
            if not base:
                await self.registry.ensure(name)
            return
        plain = name.removesuffix(SUFFIX)
        loaded = self.registry.models.lora_requests
        loaded.pop(name, None)
        await self.registry.ensure(plain)
        frozen = Path(loaded[plain].lora_path)
        try:
            gate = _gate(frozen)
        except FileNotFoundError:
            raise AdapterError(
                plain, "has no manifest, so no threshold to gate by; ask for it without ':gated'"
            ) from None
        if getattr(request, "use_beam_search", False):
            raise ValueError("use_beam_search: not with a gated model")
        fields = type(request).model_fields
        if "vllm_xargs" in fields:
            request.vllm_xargs = resolve(arguments, gate) | usage.ticket()
        elif "sampling_params" in fields or hasattr(request, "to_sampling_params"):
            raise ValueError(f"model: this endpoint cannot gate; ask it for '{plain}'")
        loaded[name] = loaded[plain]
