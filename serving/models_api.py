"""GET /v1/models: the base, and every adapter of the store that fits it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from adapters.adapter import AdapterError
from adapters.store import StoreAwayError
from serving.aliases import Aliases
from serving.engine_cache import GATED
from serving.middleware import error_response

router = APIRouter()


def _card(aliases: Aliases, name: str, root: str, parent: str | None, **more: Any) -> ModelCard:
    return ModelCard(
        id=name,
        root=root,
        parent=parent,
        max_model_len=aliases.cache.engine.model_config.max_model_len,
        permission=[ModelPermission()],
        **more,
    )


def model_cards(aliases: Aliases, gated: bool) -> list[ModelCard]:
    """The base, then every adapter that fits it; `root` is the version, `parent` the base.

    The card of NAME:gated says in `gate` what it opens at, and where that threshold comes from.
    Names for which each request must name the threshold are not listed.
    """
    base = aliases.cache.models.base_model_paths[0].name
    cards = [_card(aliases, base, base, None)]
    for name, version in aliases.listing().offered.items():
        root = aliases.serving(name) or version.id
        cards.append(_card(aliases, name, root, base))
        found = aliases.threshold(name, version.gate)
        if gated and found.source is not None:
            cards.append(_card(aliases, name + GATED, root, base, gate=found.facts()))
    return cards


def model_card(aliases: Aliases, model: str, gated: bool) -> ModelCard:
    """The card of any name that a request may give: NAME, NAME@HASH, and both with ':gated'.

    Raises:
        KeyError: there is no such model.
        AdapterError: there is, but it cannot be used.
    """
    models = aliases.cache.models
    base = models.base_model_paths[0].name
    if models.is_base_model(model):
        return _card(aliases, model, base, None)
    plain = model.removesuffix(GATED) if gated else model
    version, gate = aliases.described(plain)
    if plain == model:
        return _card(aliases, model, version, base)
    return _card(aliases, model, version, base, gate=aliases.threshold(plain, gate).facts())


@router.get("/v1/models")
async def list_models(request: Request) -> JSONResponse:
    """Every model that a request may name."""
    state = request.app.state
    cards = await asyncio.to_thread(model_cards, state.aliases, state.args.gate)
    return JSONResponse(ModelList(data=cards).model_dump())


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> JSONResponse:
    """One of them, or one version."""
    state = request.app.state
    try:
        card = await asyncio.to_thread(model_card, state.aliases, model, state.args.gate)
    except StoreAwayError as error:
        kind, headers = "ServiceUnavailableError", {"Retry-After": "5"}
        return error_response(503, str(error), kind, headers, param="model")
    except AdapterError as error:
        return error_response(400, str(error), "BadRequestError", param="model")
    except KeyError:
        message = f"The model `{model}` does not exist."
        return error_response(404, message, "NotFoundError", param="model")
    return JSONResponse(card.model_dump())
