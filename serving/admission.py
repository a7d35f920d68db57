"""Admission of requests: which version answers for the model that is named, and how.

    NAME, NAME@HASH              the adapter at every step
    NAME:gated, NAME@HASH:gated  the adapter at decision points only

Both forms share one LoRARequest, so the engine holds the weights once; a gated request differs by
the threshold in its sampling parameters. vLLM asks before it looks up a model's name; a refusal
becomes an error of OpenAI's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)

from adapters.adapter import AdapterError
from adapters.manifest import Gate
from adapters.store import StoreAwayError
from serving import well_formed
from serving.aliases import Aliases
from serving.engine_cache import GATED
from serving.metrics import ALWAYS, BASE
from serving.metrics import GATED as GATED_MODE
from serving.request import RequestContext
from serving.slots import QueueFullError
from vllm_gate import model_check
from vllm_gate.params import NEVER, RATE, TAU, WATCHED, GateParams, given, resolve

RETRY_AFTER = 1  # seconds; a slot is free when the shortest answer is over
AWAY_RETRY_AFTER = 5  # seconds; a store that is away is looked for each second

# What asks for no token: a gated name stands for its adapter there.
TOKENIZER_REQUESTS = (TokenizeCompletionRequest, TokenizeChatRequest, DetokenizeRequest)


@dataclass
class Admission:
    """Admission of requests by the model they name."""

    aliases: Aliases
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
        models = self.aliases.cache.models
        base = not name or models.is_base_model(name)
        gated = self.gated and not base and name.endswith(GATED)
        plain = name.removesuffix(GATED) if gated else name
        add_stop(request, self.stop)
        mine = RequestContext.current()
        if mine is not None and (mine.watched is not None if base else plain == mine.version):
            return  # vLLM asks twice on some ways
        arguments = _arguments(request)
        if self.gated and not gated and given(arguments):
            raise ValueError(
                f"{given(arguments)[0]}: only a gated model takes it (an adapter's name with "
                f"'{GATED}' behind it)"
            )
        if base:
            if mine is not None:
                mine.bind(name, None, BASE, models.base_model_paths[0].name)
                mine.watched = self._looks() and can_be_watched(request)
                if mine.watched:
                    looking = GateParams(NEVER, watched=True).extra_args()
                    request.vllm_xargs = {**(arguments or {}), **looking}
            return
        if gated:
            check_can_gate(request, plain)
        loaded = await self.aliases.admit(plain, gated)
        request.model = loaded.version
        if mine is not None:
            names = (loaded.version, loaded.version + GATED)
            mine.bind(name, loaded.version, GATED_MODE if gated else ALWAYS, *names)
        if not gated:
            return
        request.model += GATED
        if "vllm_xargs" in type(request).model_fields:
            request.vllm_xargs = await self._gate_arguments(arguments, plain, loaded.gate)

    async def _gate_arguments(self, arguments: Any, name: str, own: Gate | None) -> dict[str, Any]:
        """What the engine is told of a gated request for `name`, whose calibration is `own`."""
        default, asked = self.aliases.default_gate, arguments or {}
        found = self.aliases.threshold(name, own)
        known = TAU in asked or (found.tau is not None and RATE not in asked)
        if default is not None and found.gate is None and not known:
            await default.ready()
            found = self.aliases.threshold(name, own)
        told = resolve(arguments, found.gate, found.tau)
        return told | ({WATCHED: 1} if self._looks() else {})

    def _looks(self) -> bool:
        """Whether the server measures the base's entropies at this request."""
        default = self.aliases.default_gate
        return default is not None and default.looks()

    async def check(self, serving: BaseServing, request: Any) -> ErrorResponse | None:
        """Admit a request of vLLM's; the error to answer with where it is refused."""
        try:
            well_formed.check(request)
            await self.admit(request)
        except StoreAwayError as error:
            _have_retried(AWAY_RETRY_AFTER)
            kind, status = "ServiceUnavailableError", HTTPStatus.SERVICE_UNAVAILABLE
            return serving.create_error_response(str(error), kind, status, param="model")
        except AdapterError as error:
            return serving.create_error_response(str(error), param="model")
        except ValueError as error:
            return serving.create_error_response(str(error), param=str(error).partition(":")[0])
        except QueueFullError as error:
            _have_retried(RETRY_AFTER)
            kind = "RateLimitError" if error.status == 429 else "ServiceUnavailableError"
            return serving.create_error_response(
                str(error), kind, HTTPStatus(error.status), param="model"
            )
        except KeyError:
            return serving.create_error_response(
                f"The model `{request.model}` does not exist; GET /v1/models lists those that do.",
                "NotFoundError",
                HTTPStatus.NOT_FOUND,
                param="model",
            )
        return None

    def install(self) -> None:
        """Have vLLM ask before it looks up the model that a request names."""
        model_check.install(self.check)


def _have_retried(seconds: int) -> None:
    """Tell the client when to ask again."""
    mine = RequestContext.current()
    if mine is not None:
        mine.retry_after = seconds


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


def can_be_watched(request: Any) -> bool:
    """Whether the engine can report the base's entropies of a request of the base."""
    return (
        "vllm_xargs" in type(request).model_fields
        and not getattr(request, "use_beam_search", False)
        and getattr(request, "prompt_logprobs", None) is None
        and not getattr(request, "echo", False)  # with logprobs it asks for the prompt's
    )


def check_can_gate(request: Any, plain: str) -> None:
    """Raise ValueError where an endpoint or a feature cannot be gated."""
    if getattr(request, "use_beam_search", False):
        raise ValueError("use_beam_search: not with a gated model")
    takes_arguments = "vllm_xargs" in type(request).model_fields
    if not takes_arguments and not isinstance(request, TOKENIZER_REQUESTS):
        raise ValueError(f"model: this endpoint cannot gate; ask it for '{plain}'")
