"""/v1/load_lora_adapter and /v1/unload_lora_adapter, as controllers of clusters call them on vLLM.

    POST /v1/load_lora_adapter    {"lora_name": "math", "lora_path": "hf://org/math-lora"}
    POST /v1/unload_lora_adapter  {"lora_name": "math"}

Loading imports the adapter into the store as a version of its name, has it in the engine and moves
the alias to it. The same content again changes nothing, so a controller may call every replica of
one store. Unloading withdraws the name from this server alone; the store keeps version and history.

Off unless an admin key and an allow-list of sources are set (controller_sources.py). Answers have
vLLM's forms, which controllers read: a line of text, or an error of type InvalidUserInput.
"""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, PlainTextResponse, Response

from adapters.adapter import AdapterError
from adapters.exchange import SourceError, import_adapter
from adapters.manifest import is_name
from adapters.store import StoreAwayError, StoreError
from serving.admin_api import Served, Who
from serving.aliases import Aliases
from serving.controller_sources import ForbiddenSourceError, MissingSourceError, Sources
from serving.middleware import error_response

logger = logging.getLogger("serving.controller")

PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
router = APIRouter(tags=["controllers"])
_changing = asyncio.Lock()  # one fetch at a time: each needs room on the disk


class Load(BaseModel):
    """Body of vLLM's load_lora_adapter."""

    lora_name: str = Field(min_length=1, examples=["math"])
    lora_path: str = Field(min_length=1, examples=["hf://org/math-lora"])
    load_inplace: bool = Field(False, description="Replace what the name means now.")


class Unload(BaseModel):
    """Body of vLLM's unload_lora_adapter."""

    lora_name: str = Field(min_length=1, examples=["math"])


@router.post(PATHS[0])
async def load_lora_adapter(body: Load, who: Who, aliases: Served, request: Request) -> Response:
    """Import an adapter from an allowed source, and serve it under its name."""
    sources: Sources = request.app.state.controller_sources
    try:
        async with _changing:
            version = await load(aliases, sources, body, who)
    except AlreadyLoadedError as error:
        refusal = _invalid(str(error), "lora_name")
    except MissingSourceError as error:
        refusal = error_response(404, str(error), "NotFoundError", param="lora_path")
    except (ForbiddenSourceError, SourceError) as error:
        refusal = _invalid(str(error), "lora_path")
    except StoreAwayError as error:
        kind, headers = "ServiceUnavailableError", {"Retry-After": "5"}
        refusal = error_response(503, str(error), kind, headers, param="lora_name")
    except StoreError as error:
        refusal = error_response(409, str(error), "Conflict", param="lora_name")
    except ValueError as error:  # AdapterError is one
        refusal = _invalid(str(error), "lora_name")
    else:
        logger.info("%s: loaded %s from %s as %s", who, version, body.lora_path, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")
    logger.info("%s: load %s refused: %s", who, body.lora_name, bytes(refusal.body).decode())
    return refusal


@router.post(PATHS[1])
async def unload_lora_adapter(body: Unload, who: Who, aliases: Served) -> Response:
    """Serve the name no longer, on this server, until it is loaded again."""
    name = body.lora_name
    try:
        await asyncio.to_thread(aliases.described, name)
    except KeyError:
        message = f"The lora adapter '{name}' cannot be found."
        return error_response(404, message, "NotFoundError", param="lora_name")
    except AdapterError:
        pass  # it could not be served, and need not be
    aliases.withdraw(name)
    logger.info("%s: unloaded %s", who, name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


class AlreadyLoadedError(ValueError):
    """The name serves other content."""


async def load(aliases: Aliases, sources: Sources, body: Load, who: str) -> str:
    """Import, load and alias. Returns the version, NAME@HASH.

    Raises:
        AlreadyLoadedError, SourceError, ForbiddenSourceError, AdapterError, ValueError: nothing
            has changed for clients.
    """
    name = body.lora_name
    if not is_name(name):
        raise ValueError(
            f"lora_name: {name[:100]!r} is not a name; use lower case letters, digits, . _ -"
        )
    if aliases.cache.models.is_base_model(name):
        raise ValueError(f"lora_name: the lora adapter '{name}' conflicts with a served base model")
    version = await asyncio.to_thread(_import, aliases, sources, body, who)
    present = await asyncio.to_thread(_target, aliases, name)
    free = present in (None, version) or name in aliases.withdrawn
    if not (free or body.load_inplace):
        raise AlreadyLoadedError(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True."
        )
    store = aliases.store
    await aliases.move(name, version, lambda: store.alias(name, version, by=who, trusted=True))
    return version


def _import(aliases: Aliases, sources: Sources, body: Load, who: str) -> str:
    """In a thread: the adapter as a version of the store, with the alias where it was."""
    store, name = aliases.store, body.lora_name
    if not store.reachable():  # it would be written where the store was
        raise StoreAwayError(name, f"{store.place} is out of reach")
    with sources.fetched(body.lora_path) as folder:
        found = import_adapter(
            store,
            str(folder),
            name,
            base=aliases.cache.base,
            alias=False,
            by=who,
            place=sources.find(body.lora_path)[1].origin,
        )
    return found.id


def _target(aliases: Aliases, name: str) -> str | None:
    """In a thread: the version that the store's alias points at."""
    try:
        found = aliases.resolve(name)
    except KeyError:
        return None
    return str(found) if found.hash is not None else None


def _invalid(message: str, param: str) -> JSONResponse:
    return error_response(400, message, "InvalidUserInput", param=param)
