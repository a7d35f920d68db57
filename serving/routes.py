"""What the server has besides vLLM's: its routes and middleware put together, and their start.

A `vllm.endpoint_plugins` plugin: loaded only where VLLM_PLUGINS names it, as our launcher does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from argparse import Namespace
from functools import partial

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route
from vllm.engine.protocol import EngineClient

from adapters.store import Store
from serving import (
    admin_api,
    controller_api,
    engines,
    health,
    metrics_page,
    models_api,
    playground,
    well_formed,
)
from serving.admission import Admission
from serving.aliases import Aliases
from serving.controller_sources import Sources
from serving.engine_cache import EngineCache
from serving.follower import Follower
from serving.metrics import METRICS
from serving.metrics_page import Gauges
from serving.middleware import ApiKey, Drain, Draining, http_error
from serving.prompts import ServedPrompt
from serving.request import BackgroundTasks, RequestMiddleware
from serving.router_metrics import RouterSeries
from serving.shipped_prompts import make_default_gate
from serving.slots import Slots
from vllm_gate import compat, token_report

logger = logging.getLogger(__name__)

# Other doors to the same model, and one that rescales the engine: nobody here needs them.
CLOSED = ("/invocations", "/generative_scoring", "/scale_elastic_ep", "/is_scaling_elastic_ep")


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
        health.install(app)
        app.include_router(metrics_page.router)
        app.include_router(models_api.router)
        app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
        well_formed.install(app)
        app.include_router(playground.router)
        args = app.state.args
        if args.admin_key:
            app.state.admin_digest = hashlib.sha256(args.admin_key.encode()).digest()
            app.include_router(admin_api.router)
        controllers = bool(args.admin_key and args.controller_sources)
        if controllers:
            app.state.controller_sources = Sources.parse(args.controller_sources)
            app.include_router(controller_api.router)
        app.state.drain = args.drain = Drain()
        app.add_middleware(Draining, drain=app.state.drain)
        if args.guard_key:
            # A controller has one key for what it changes and for the models that it lists.
            also = dict.fromkeys(controller_api.PATHS) | {"/v1/models": args.admin_key}
            app.add_middleware(ApiKey, key=args.guard_key, also=also if controllers else {})
        app.add_middleware(RequestMiddleware)  # the outermost: it sees what the others refuse

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Build what answers; say which adapters are served, and which not and why."""
        assert engine_client is not None, "required_tasks leaves out servers without an engine"
        store: Store = args.store
        cache = EngineCache(
            store=store,
            base=args.base,
            max_rank=args.max_lora_rank,
            engine=engine_client,
            models=state.openai_serving_models,
            capacity=args.max_cpu_loras,
        )
        shares_slots = compat.shares_slots(engine_client.vllm_config) if args.gate else False
        slots = Slots(
            args.max_loras,
            args.max_waiting,
            engines=engines.count(engine_client),
            load=partial(engines.in_flight, engine_client),
        )
        prompt: ServedPrompt | None = args.prompt
        default_gate = make_default_gate(engine_client, args)
        aliases = Aliases(store, cache, slots, shares_slots, prompt, default_gate)
        state.aliases = aliases
        if default_gate is not None:
            token_report.install(default_gate.observe)
        state.follower = Follower(aliases, args.store_poll_seconds)
        state.gauges = Gauges(aliases, state.follower)
        engines.count_no_adapters(engine_client)
        state.router_series = RouterSeries(aliases, args.gate)
        METRICS.live = aliases.live
        responses = getattr(state, "openai_serving_responses", None)
        if responses is not None:
            responses.background_tasks = BackgroundTasks()
        stop = prompt.format.stop if prompt else ()
        Admission(aliases, args.gate, stop, state.drain).install()
        token_report.install()
        state.drain.watch(engine_client)
        listing = await asyncio.to_thread(aliases.listing)
        for error in listing.refused.values():
            logger.warning("refused: %s", error)
        logger.info(
            "serving %s with %d adapter(s): %s",
            cache.models.base_model_paths[0].name,
            len(listing.offered),
            ", ".join(listing.offered) or "none yet",
        )
        state.follower.start()
