"""Asks our registry before vLLM looks up the model a request names.

vLLM resolves an unknown name once and from then on trusts its table, so a folder that changes or
goes away would be served for ever. Its resolver also runs only with
VLLM_ALLOW_RUNTIME_LORA_UPDATING, which opens routes that load any path a client names. So the
question is put one step earlier, where every endpoint passes:
BaseServing._check_model (vllm/entrypoints/serve/engine/serving.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.engine.serving import BaseServing

from adapters.version import AdapterError
from serving.held import held
from serving.slots import QueueFullError

RETRY_AFTER = 1  # seconds; a slot is free when the shortest answer is over

_stock = BaseServing._check_model


def install(admit: Callable[[Any], Awaitable[None]]) -> None:
    """Have every request await `admit(request)` first.

    `admit` brings vLLM's table up to date and may rename the model and complete the arguments; it
    raises AdapterError or ValueError (answered with 400 and the reason), KeyError (404), or
    QueueFullError (429 or 503, and Retry-After).
    """

    async def check_model(self: BaseServing, request: Any) -> ErrorResponse | None:
        try:
            await admit(request)
        except AdapterError as error:
            return self.create_error_response(str(error), param="model")
        except ValueError as error:
            return self.create_error_response(str(error), param=str(error).partition(":")[0])
        except QueueFullError as error:
            mine = held()
            if mine is not None:
                mine.retry_after = RETRY_AFTER
            kind = "RateLimitError" if error.status == 429 else "ServiceUnavailableError"
            return self.create_error_response(
                str(error), kind, HTTPStatus(error.status), param="model"
            )
        except KeyError:
            return self.create_error_response(
                f"The model `{request.model}` does not exist; GET /v1/models lists those that do.",
                "NotFoundError",
                HTTPStatus.NOT_FOUND,
                param="model",
            )
        return await _stock(self, request)

    BaseServing._check_model = check_model
