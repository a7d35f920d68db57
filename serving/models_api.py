"""GET /v1/models: the base, and every adapter of the store that fits it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from adapters.adapter import AdapterError
from serving.aliases import Aliases
from serving.engine_cache import GATED
from serving.middleware import error_response

router = APIRouter()


def _card(aliases: Aliases, name: str, root: str, parent: str | None) -> ModelCard:
    return ModelCard(
        id=name,
        root=root,
        parent=parent,
        max_model_len=aliases.cache.engine.model_config.max_model_len,
        permission=[ModelPermission()],
    )


def model_cards(aliases: Aliases, gated: bool) -> list[ModelCard]:
    """The base, then every adapter that fits it; `root` is the version, `parent` the base."""
    base = aliases.cache.models.base_model_paths[0].name
    cards = [_card(aliases, base, base, None)]
    for name, version in aliases.listing().offered.items():
        root = aliases.serving(name) or version.id
        cards.append(_card(aliases, name, root, base))
        if gated and version.gate is not None:
            cards.append(_card(aliases, name + GATED, root, base))
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
    if plain != model and gate is None:
        raise AdapterError(plain, "has no threshold to gate by; ask for it without ':gated'")
    return _card(aliases, model, version, base)


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
    except AdapterError as error:
        return error_response(400, str(error), "BadRequestError", param="model")
    except KeyError:
        message = f"The model `{model}` does not exist."
        return error_response(404, message, "NotFoundError", param="model")
    return JSONResponse(card.model_dump())
