"""NAME and NAME:gated: one adapter, at every step or at decision points only.

Both names share one LoRARequest, so the engine holds the weights once; a gated request differs by
the threshold in its sampling parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from adapters.adapter import AdapterError
from serving.held import held
from serving.metrics import ALWAYS, BASE
from serving.metrics import GATED as GATED_MODE
from serving.registry import Registry
from serving.residents import GATED
from vllm_gate.params import given, resolve

# What asks for no token: a gated name stands for its adapter there.
TOKENIZER_REQUESTS = (TokenizeCompletionRequest, TokenizeChatRequest, DetokenizeRequest)


@dataclass
class Modes:
    """Admission of requests by the model they name."""

    registry: Registry
    gated: bool  # False: --gate off
    stop: tuple[str, ...] = ()  # strings that end an answer to a chat

    async def admit(self, request: Any) -> None:
        """Bind the request to a version of the adapter it names, and complete its arguments.

        From here on `request.model` is NAME@HASH or NAME@HASH:gated, which means the same until the
        request is over, wherever the alias moves.

        Raises:
            KeyError: no such model.
            AdapterError: an adapter that cannot be used, or not so.
            ValueError: arguments that do not fit.
            QueueFullError: too many requests wait.
        """
        name = request.model
        base = not name or self.registry.residents.models.is_base_model(name)
        gated = self.gated and not base and name.endswith(GATED)
        plain = name.removesuffix(GATED) if gated else name
        add_stop(request, self.stop)
        mine = held()
        if mine is not None and not base and plain == mine.version:
            return  # vLLM asks twice on some ways
        arguments = _arguments(request)
        if self.gated and not gated and given(arguments):
            raise ValueError(
                f"{given(arguments)[0]}: only a gated model takes it (an adapter's name with "
                f"'{GATED}' behind it)"
            )
        if base:
            if mine is not None:
                mine.watch.bind(name, None, BASE)
            return
        if gated:
            check_can_gate(request, plain)
        resident = await self.registry.admit(plain, gated)
        request.model = resident.version
        if mine is not None:
            mine.watch.bind(name, resident.version, GATED_MODE if gated else ALWAYS)
        if not gated:
            return
        if resident.gate is None:
            raise AdapterError(plain, "has no threshold to gate by; ask for it without ':gated'")
        request.model += GATED
        if "vllm_xargs" in type(request).model_fields:
            gate = self.registry.gate(plain, resident.gate)
            request.vllm_xargs = resolve(arguments, gate)


def add_stop(request: Any, stop: tuple[str, ...]) -> None:
    """Give a request for a chat the prompt's stop strings, beside its own.

    They mark the end of an answer as the end-of-sequence token does, so `ignore_eos` leaves them
    out. A request that brings its prompt as text has no such marks.
    """
    chat = "stop" in type(request).model_fields and not isinstance(request, CompletionRequest)
    if not stop or not chat or getattr(request, "ignore_eos", False):
        return
    own = request.stop or []
    own = [own] if isinstance(own, str) else own
    request.stop = list(dict.fromkeys([*own, *stop]))


def _arguments(request: Any) -> Any:
    """The additional arguments of a request, wherever its endpoint takes them."""
    params = getattr(request, "sampling_params", None)  # /inference/v1/generate
    return getattr(request, "vllm_xargs", None) or getattr(params, "extra_args", None)


def check_can_gate(request: Any, plain: str) -> None:
    """Raise ValueError where an endpoint or a feature cannot be gated."""
    if getattr(request, "use_beam_search", False):
        raise ValueError("use_beam_search: not with a gated model")
    takes_arguments = "vllm_xargs" in type(request).model_fields
    if not takes_arguments and not isinstance(request, TOKENIZER_REQUESTS):
        raise ValueError(f"model: this endpoint cannot gate; ask it for '{plain}'")
