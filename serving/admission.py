"""Admission of requests: which version answers for the model that is named, and how.

    NAME, NAME@HASH              the adapter at every step
    NAME:gated, NAME@HASH:gated  the adapter at decision points only

Both forms share one LoRARequest, so the engine holds the weights once; a gated request differs by
the threshold in its sampling parameters. vLLM asks before it looks up a model's name; a refusal
becomes an error of OpenAI's shape.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing

from adapters.adapter import AdapterError
from adapters.manifest import Gate
from adapters.store import StoreAwayError
from serving import well_formed
from serving.aliases import Aliases
from serving.engine_cache import GATED
from serving.metrics import ALWAYS, BASE
from serving.metrics import GATED as GATED_MODE
from serving.middleware import SHUT_RETRY_AFTER, SHUTS_DOWN, Drain
from serving.request import RequestContext
from serving.slots import QueueFullError
from vllm_gate import model_check
from vllm_gate.guidance import check_prompt
from vllm_gate.params import (
    LONGEST,
    NEVER,
    PROMPT,
    RATE,
    SCALE,
    TAU,
    WATCHED,
    GateParams,
    given,
    resolve,
)

RETRY_AFTER = 1  # seconds; a slot is free when the shortest answer is over
AWAY_RETRY_AFTER = 5  # seconds; a store that is away is looked for each second


@dataclass
class Admission:
    """Admission of requests by the model they name."""

    aliases: Aliases
    gated: bool  # False: --gate off
    stop: tuple[str, ...] = ()  # strings that end an answer to a chat
    drain: Drain = field(default_factory=Drain)

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
        if mine is not None and not mine.generates:
            if mine.series is None:
                await self._name_the_base(request, mine, None if base else plain)
            return
        arguments = _arguments(request)
        guided = self.gated and base and SCALE in (arguments or {})
        if self.gated and not gated and not guided and given(arguments):
            raise ValueError(
                f"{given(arguments)[0]}: only a gated model takes it (an adapter's name with "
                f"'{GATED}' behind it)"
            )
        if base:
            if mine is not None:
                mine.bind(name, None, BASE, models.base_model_paths[0].name)
                mine.watched = not guided and self._looks() and can_be_watched(request)
                if mine.watched:
                    looking = GateParams(NEVER, watched=True).extra_args()
                    request.vllm_xargs = {**(arguments or {}), **looking}
            if guided:
                check_can_gate(request, name)
                request.vllm_xargs = self._with_tokens(resolve(arguments, None, None))
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
        request.vllm_xargs = await self._gate_arguments(arguments, plain, loaded.gate)

    async def _name_the_base(self, request: Any, mine: RequestContext, plain: str | None) -> None:
        """Bind a request that asks for no token: the base's tokenizer and template answer it.

        It needs no adapter in the engine, and waits for none.

        Args:
            plain: the adapter that it names, which must be there; None: it names the base.
        """
        if plain is not None:
            await asyncio.to_thread(self.aliases.described, plain)
        base = self.aliases.cache.models.base_model_paths[0].name
        mine.bind(request.model, None, BASE, base)
        if plain is not None:
            request.model = base

    async def _gate_arguments(self, arguments: Any, name: str, own: Gate | None) -> dict[str, Any]:
        """What the engine is told of a gated request for `name`, whose calibration is `own`."""
        default, asked = self.aliases.default_gate, arguments or {}
        found = self.aliases.threshold(name, own)
        known = TAU in asked or asked.get(RATE) == 0
        known = known or (found.tau is not None and RATE not in asked)
        if default is not None and found.gate is None and not known:
            await default.ready()
            found = self.aliases.threshold(name, own)
        told = self._with_tokens(resolve(arguments, found.gate, found.tau))
        return told | ({WATCHED: 1} if self._looks() else {})

    def _with_tokens(self, told: dict[str, Any]) -> dict[str, Any]:
        """The same arguments, where a guidance prompt that is a text has become tokens."""
        text = told.get(PROMPT)
        if text is None:
            return told
        tokenizer = self.aliases.cache.models.renderer.get_tokenizer()
        if not isinstance(text, str):
            check_prompt(told, tokenizer)
            return told
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if not 0 < len(tokens) <= LONGEST:
            raise ValueError(f"{PROMPT}: {len(tokens)} tokens; between 1 and {LONGEST} are needed")
        return told | {PROMPT: tokens}

    def _looks(self) -> bool:
        """Whether the server measures the base's entropies at this request."""
        default = self.aliases.default_gate
        return default is not None and default.looks()

    async def check(self, serving: BaseServing, request: Any) -> ErrorResponse | None:
        """Admit a request of vLLM's; the error to answer with where it is refused."""
        error = await self._admitted(serving, request)
        if not self.drain.begun:
            return error
        # The engine takes nothing new any more: vLLM would answer with an empty text, as if done.
        _have_retried(SHUT_RETRY_AFTER)
        kind = "ServiceUnavailableError"
        return serving.create_error_response(SHUTS_DOWN, kind, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _admitted(self, serving: BaseServing, request: Any) -> ErrorResponse | None:
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
    if "vllm_xargs" not in type(request).model_fields:
        raise ValueError(f"model: this endpoint cannot gate; ask it for '{plain}'")
