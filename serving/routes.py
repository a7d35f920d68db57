"""GET /v1/models over the store, GET /metrics, and the start-up of all that belongs to HTTP.

A `vllm.endpoint_plugins` plugin: loaded only where VLLM_PLUGINS names it, as our launcher does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
from argparse import Namespace
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Mount, Route
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.serve import create_error_response
from vllm.entrypoints.serve.engine.protocol import ModelCard, ModelList, ModelPermission

from adapters.store import Store
from serving import admin, admission, page, well_formed
from serving.drain import Drain, Draining
from serving.gauges import Gauges
from serving.guard import Guard
from serving.held import Holding, follow
from serving.metrics import METRICS
from serving.modes import Modes
from serving.prompts import ServedPrompt
from serving.registry import Registry
from serving.residents import GATED, Residents
from serving.slots import Slots
from serving.snapshot import Snapshots
from vllm_gate import compat, token_report
from vllm_gate.answers import GateAnswers

logger = logging.getLogger(__name__)

# Other doors to the same model, and one that rescales the engine: nobody here needs them.
CLOSED = ("/invocations", "/generative_scoring", "/scale_elastic_ep", "/is_scaling_elastic_ep")


def model_cards(registry: Registry, gated: bool) -> list[ModelCard]:
    """The base, then every adapter that fits it; `root` is the version, `parent` the base."""
    residents = registry.residents
    base = residents.models.base_model_paths[0].name

    def card(name: str, root: str, parent: str | None) -> ModelCard:
        return ModelCard(
            id=name,
            root=root,
            parent=parent,
            max_model_len=residents.engine.model_config.max_model_len,
            permission=[ModelPermission()],
        )

    cards = [card(base, base, None)]
    for name, version in registry.listing().offered.items():
        root = registry.serving(name) or version.id
        cards.append(card(name, root, base))
        if gated and version.gate is not None:
            cards.append(card(name + GATED, root, base))
    return cards


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


def metrics(request: Request) -> Response:
    """GET /metrics: what all processes counted, and how this one, the front end, is doing.

    vLLM's own leaves out the process_* and python_* series once there are several processes.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    ours = request.app.state.gauges.page() + METRICS.page()
    return Response(generate_latest(registry) + ours.encode(), media_type=CONTENT_TYPE_LATEST)


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
        """Replace /v1/models and /metrics, close what should not be open."""
        app.router.routes[:] = [
            route
            for route in app.router.routes
            if not (isinstance(route, Route | Mount) and route.path in (*CLOSED, "/metrics"))
        ]
        app.add_api_route("/metrics", metrics, methods=["GET"], include_in_schema=False)
        app.add_api_route("/v1/models", list_models, methods=["GET"])
        app.add_api_route("/v1/models/{model:path}", get_model, methods=["GET"])
        app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
        well_formed.install(app)
        app.include_router(page.router)
        args = app.state.args
        if args.admin_key:
            app.state.admin_digest = hashlib.sha256(args.admin_key.encode()).digest()
            app.include_router(admin.router)
        if args.gate:
            app.add_middleware(GateAnswers)
        app.state.drain = Drain()
        app.add_middleware(Draining, drain=app.state.drain)
        if app.state.args.guard_key:
            app.add_middleware(Guard, key=app.state.args.guard_key)
        app.add_middleware(Holding)  # the outermost: it sees what the others refuse

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Build the registry; say which adapters are served, and which not and why."""
        assert engine_client is not None, "required_tasks leaves out servers without an engine"
        self._snapshots = tempfile.TemporaryDirectory(
            prefix="reasonmaxxer-"
        )  # goes with the server
        store = Store(Path(args.adapters))
        residents = Residents(
            store=store,
            base=args.base,
            max_rank=args.max_lora_rank,
            snapshots=Snapshots(Path(self._snapshots.name)),
            engine=engine_client,
            models=state.openai_serving_models,
            capacity=args.max_cpu_loras,
        )
        shares_slots = compat.shares_slots(engine_client.vllm_config) if args.gate else False
        slots = Slots(args.max_loras, args.max_waiting)
        prompt: ServedPrompt | None = args.prompt
        registry = Registry(store, residents, slots, shares_slots, prompt)
        state.registry = registry
        state.gauges = Gauges(registry)
        admission.install(Modes(registry, args.gate, prompt.format.stop if prompt else ()).admit)
        token_report.install(follow)
        state.drain.watch(engine_client)
        listing = await asyncio.to_thread(registry.listing)
        for error in listing.refused.values():
            logger.warning("refused: %s", error)
        logger.info(
            "serving %s with %d adapter(s): %s",
            residents.models.base_model_paths[0].name,
            len(listing.offered),
            ", ".join(listing.offered) or "none yet",
        )
