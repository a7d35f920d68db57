"""Admission over a real store and an engine that only remembers what it was told."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Scope
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from adapters.adapter import CONFIG
from adapters.base_checkpoint import BaseCheckpoint
from adapters.manifest import FILE as MANIFEST
from adapters.store import Store
from serving.admission import Admission
from serving.aliases import Aliases
from serving.engine_cache import EngineCache
from serving.middleware import http_error
from serving.request import RequestMiddleware
from serving.slots import Slots

ADMIN_KEY = "an admin key"
BEARER = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Engine:
    """Loads adapters when told to go on."""

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.loaded: dict[int, str] = {}  # LoRA id -> NAME@HASH
        self.paths: dict[str, str] = {}  # NAME@HASH -> where it was read
        self.pinned: set[int] = set()
        self.refuses = ""  # what it says of the next adapter
        self.model_config = SimpleNamespace(max_model_len=64)

    async def add_lora(self, request: Any) -> None:
        await self.may_load.wait()
        if self.refuses:
            raise RuntimeError(self.refuses)
        assert await asyncio.to_thread(Path(request.lora_path).is_dir)
        assert not request.load_inplace
        self.paths[request.lora_name] = request.lora_path
        self.loaded[request.lora_int_id] = request.lora_name

    async def remove_lora(self, number: int) -> None:
        assert number not in self.pinned
        del self.loaded[number]

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> Any:
        if method == "pin_adapter":
            assert args[0] in self.loaded
            self.pinned.add(args[0])
        elif method == "unpin_adapter":
            self.pinned.discard(args[0])
        return [list(self.loaded)] if method == "adapters_on_device" else [None]


def make_admission(
    tmp_path: Path,
    base: Path,
    capacity: int = 3,
    slots: int = 2,
    store: Store | None = None,
    engines: int = 1,
) -> Admission:
    """Admission over `store`, or over the store `tmp_path/store`."""
    numbers = iter(range(1, 10_000))
    models = SimpleNamespace(
        lora_requests={},
        lora_id_counter=SimpleNamespace(inc=lambda _: next(numbers)),
        is_base_model=lambda name: name == "base",
        base_model_paths=[SimpleNamespace(name="base")],
    )
    store = store or Store(tmp_path / "store")
    cache = EngineCache(
        store=store,
        base=BaseCheckpoint.open(str(base)),
        max_rank=64,
        engine=Engine(),  # type: ignore[arg-type]
        models=models,  # type: ignore[arg-type]
        capacity=capacity,
    )
    return Admission(Aliases(store, cache, Slots(slots, patience=0.0, engines=engines)), gated=True)


def engine_of(admission: Admission) -> Engine:
    """What it asks to load and drop."""
    engine: Any = admission.aliases.cache.engine
    return engine


def put_plain(folder: Path, store: Path, name: str) -> Path:
    """Copy an adapter into a store as somebody does by hand, without its manifest."""
    without = shutil.ignore_patterns(MANIFEST)
    place = shutil.copytree(folder, store / name, ignore=without, dirs_exist_ok=True)
    (place / CONFIG).touch()  # a copy is as old as what was copied
    return place


def application(admission: Admission, *routers: APIRouter) -> FastAPI:
    """An application with these routes, as the server has them."""
    app = FastAPI()
    app.state.aliases = admission.aliases
    app.state.args = SimpleNamespace(gate=True, log_error_stack=False)
    app.state.admin_digest = hashlib.sha256(ADMIN_KEY.encode()).digest()
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(HTTPException, http_error)  # type: ignore[arg-type]
    init_exception_handler(app)
    return app


def completion(model: str, **arguments: Any) -> CompletionRequest:
    """A request, as vLLM's handler has it."""
    return CompletionRequest(model=model, prompt="x", vllm_xargs=arguments or None)


async def nothing(*_: Any) -> Any:
    """What happens while a request is answered, where nothing does."""


async def answered(
    admission: Admission,
    model: str,
    during: Callable[[Any], Coroutine[Any, Any, None]] = nothing,
    *,
    path: str = "/",
    **arguments: Any,
) -> str:
    """Admit a request, await `during(request)`, end it. Returns the model it was bound to."""
    request = completion(model, **arguments)

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await admission.admit(request)
        await during(request)

    await RequestMiddleware(app)(
        {"type": "http", "method": "GET", "path": path, "headers": []}, nothing, nothing
    )
    return str(request.model)


async def settled(admission: Admission) -> None:
    """Let loads and drops that were begun come to their end."""
    aliases = admission.aliases
    while aliases._switching or aliases._pinning_again or aliases.cache._tasks:
        await asyncio.sleep(0)
