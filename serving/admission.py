"""Admission of requests, as OpenAI's errors: asked before vLLM looks up a model's name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing

from adapters.adapter import AdapterError
from serving import well_formed
from serving.held import held
from serving.slots import QueueFullError
from vllm_gate import admission

RETRY_AFTER = 1  # seconds; a slot is free when the shortest answer is over


def install(admit: Callable[[Any], Awaitable[None]]) -> None:
    """Have every request await `admit(request)` first.

    `admit` brings vLLM's table up to date and may rename the model and complete the arguments; it
    raises AdapterError or ValueError (answered with 400 and the reason), KeyError (404), or
    QueueFullError (429 or 503, and Retry-After).
    """

    async def ask(serving: BaseServing, request: Any) -> ErrorResponse | None:
        try:
            well_formed.check(request)
            await admit(request)
        except AdapterError as error:
            return serving.create_error_response(str(error), param="model")
        except ValueError as error:
            return serving.create_error_response(str(error), param=str(error).partition(":")[0])
        except QueueFullError as error:
            mine = held()
            if mine is not None:
                mine.retry_after = RETRY_AFTER
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

    admission.install(ask)
