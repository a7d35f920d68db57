"""GET /v1/models: the base, and every adapter of the store that fits it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from serving.aliases import Aliases
from serving.engine_cache import GATED

router = APIRouter()


def model_cards(aliases: Aliases, gated: bool) -> list[ModelCard]:
    """The base, then every adapter that fits it; `root` is the version, `parent` the base."""
    cache = aliases.cache
    base = cache.models.base_model_paths[0].name

    def card(name: str, root: str, parent: str | None) -> ModelCard:
        return ModelCard(
            id=name,
            root=root,
            parent=parent,
            max_model_len=cache.engine.model_config.max_model_len,
            permission=[ModelPermission()],
        )

    cards = [card(base, base, None)]
    for name, version in aliases.listing().offered.items():
        root = aliases.serving(name) or version.id
        cards.append(card(name, root, base))
        if gated and version.gate is not None:
            cards.append(card(name + GATED, root, base))
    return cards


@router.get("/v1/models")
async def list_models(request: Request) -> JSONResponse:
    """Every model that a request may name."""
    state = request.app.state
    cards = await asyncio.to_thread(model_cards, state.aliases, state.args.gate)
    return JSONResponse(ModelList(data=cards).model_dump())


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> JSONResponse:
    """One of them."""
    state = request.app.state
    cards = await asyncio.to_thread(model_cards, state.aliases, state.args.gate)
    for card in cards:
        if card.id == model:
            return JSONResponse(card.model_dump())
    error = create_error_response(
        f"The model `{model}` does not exist.", "NotFoundError", HTTPStatus.NOT_FOUND, param="model"
    )
    return JSONResponse(error.model_dump(), status_code=404)
