"""GET /v1/models over the store, and the start-up of everything that belongs to the HTTP server.

A `vllm.endpoint_plugins` plugin: loaded only where VLLM_PLUGINS names it, as our launcher does.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.routing import Route
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from adapters.base import BaseModel
from adapters.store import Store
from serving.drain import Drain, Draining
from serving.engine import admission, report, usage
from serving.guard import Guard
from serving.modes import SUFFIX, Modes
from serving.registry import Registry
from serving.snapshot import Snapshots

logger = logging.getLogger(__name__)

# Other doors to the same model, and one that rescales the engine: nobody here needs them.
CLOSED = ("/invocations", "/generative_scoring", "/scale_elastic_ep", "/is_scaling_elastic_ep")


def _names(registry: Registry, gated: bool) -> Iterator[str]:
    """Every adapter that fits the base, and its gated form where it has a threshold."""
    for name, version in registry.listing().offered.items():
        yield name
        if gated and version.manifest is not None:
            yield name + SUFFIX


def model_cards(registry: Registry, gated: bool) -> list[ModelCard]:
    """The base, then every adapter that fits it; no paths."""
    base = registry.models.base_model_paths[0].name
    length = registry.engine.model_config.max_model_len

    def card(name: str, parent: str | None) -> ModelCard:
        return ModelCard(
            id=name,
            root=base,
            parent=parent,
            max_model_len=length,
            permission=[ModelPermission()],
        )

    return [card(base, None), *(card(name, base) for name in _names(registry, gated))]


async def list_models(request: Request) -> JSONResponse:
    """GET /v1/models."""
    state = request.app.state
    cards = await asyncio.to_thread(model_cards, state.registry, state.args.gate)
    return JSONResponse(ModelList(data=cards).model_dump())


async def get_model(request: Request, model: str) -> JSONResponse:
    """GET /v1/models/{model}."""
    state = request.app.state
    cards = await asyncio.to_thread(model_cards, state.registry, state.args.gate)
    for card in cards:
        if card.id == model:
            return JSONResponse(card.model_dump())
    error = create_error_response(
        f"The model `{model}` does not exist.", "NotFoundError", HTTPStatus.NOT_FOUND, param="model"
    )
    return JSONResponse(error.model_dump(), status_code=404)


async def http_error(_: Request, error: HTTPException) -> JSONResponse:
    """FastAPI's own refusals (unknown path, unreadable body) in OpenAI's error shape."""
    status = HTTPStatus(error.status_code)
    body = create_error_response(str(error.detail), status.phrase, status)
    return JSONResponse(body.model_dump(), status_code=status, headers=error.headers)


class ModelsEndpoint:
    """vLLM's EndpointPlugin protocol (vllm/plugins/endpoint_plugins/interface.py)."""

    name = "reasonmaxxer_models"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Replace /v1/models, close what should not be open."""
        app.router.routes[:] = [
            route
            for route in app.router.routes
            if not (isinstance(route, Route) and route.path in CLOSED)
        ]
        app.add_api_route("/v1/models", list_models, methods=["GET"])
        app.add_api_route("/v1/models/{model:path}", get_model, methods=["GET"])
        app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
        app.state.drain = Drain()
        app.add_middleware(Draining, drain=app.state.drain)
        if app.state.args.guard_key:
            app.add_middleware(Guard, key=app.state.args.guard_key)

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Build the registry; say which adapters are served, and which not and why."""
        assert engine_client is not None, "required_tasks leaves out servers without an engine"
        self._snapshots = tempfile.TemporaryDirectory(
            prefix="reasonmaxxer-"
        )  # goes with the server
        registry = Registry(
            store=Store(Path(args.adapters)),
            base=BaseModel.open(args.model),
            max_rank=args.max_lora_rank,
            snapshots=Snapshots(Path(self._snapshots.name)),
            engine=engine_client,
            models=state.openai_serving_models,
        )
        state.registry = registry
        admission.install(Modes(registry, gated=args.gate).admit)
        if args.gate:
            report.install()
            usage.install()
        state.drain.watch(engine_client)
        listing = await asyncio.to_thread(registry.listing)
        for error in listing.refused.values():
            logger.warning("refused: %s", error)
        logger.info(
            "serving %s with %d adapter(s): %s",
            registry.models.base_model_paths[0].name,
            len(listing.offered),
            ", ".join(listing.offered) or "none yet",
        )
