"""A question that is asked before vLLM looks up the model that a request names.

vLLM resolves an unknown name once and from then on trusts its table, so a folder that changes or
goes away would be served for ever. Its resolver also runs only with
VLLM_ALLOW_RUNTIME_LORA_UPDATING, which opens routes that load any path a client names. So the
question is put one step earlier, where every endpoint passes: BaseServing._check_model
(vllm/entrypoints/serve/engine/serving.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeAlias

from vllm_gate import patches

if TYPE_CHECKING:
    from vllm.entrypoints.pooling.typing import AnyPoolingRequest
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.entrypoints.serve.engine.typing import AnyRequest

Serving: TypeAlias = "BaseServing"
AnyOf: TypeAlias = "AnyRequest | AnyPoolingRequest"
Ask: TypeAlias = "Callable[[Serving, AnyOf], Awaitable[ErrorResponse | None]]"

_ask: Ask | None = None


def install(ask: Ask) -> None:
    """Have every request await `ask(serving, request)` first.

    Args:
        ask: vLLM's serving object and its request -> an error to answer with, or None to go on.
    """
    global _ask  # noqa: PLW0603
    _ask = ask
    patches.install("server", checked=patches.supported())


def check_model(stock: Ask) -> Ask:
    """BaseServing._check_model, after the question."""

    @wraps(stock)
    async def check(self: BaseServing, request: AnyOf) -> ErrorResponse | None:
        error = await _ask(self, request) if _ask is not None else None
        return error if error is not None else await stock(self, request)

    return check
