"""/admin: what is in the store and in the engine, and the moves between the two.

Off unless an admin key is set. Every route names no path and logs who did what to which version.
All but `rollback`, which goes one version further back each time, are idempotent. An alias moves
only after its new version is in the engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException  # vLLM's answer to FastAPI's has no headers

from adapters.adapter import AdapterError
from adapters.manifest import NAME_PATTERN, Score
from adapters.store import StoreAwayError, StoreError
from serving.aliases import Aliases
from serving.default_gate import Source
from serving.engine_cache import LoadedVersion
from serving.slots import QueueFullError

logger = logging.getLogger("serving.admin")

VERSION_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}@[0-9a-f]{12}$"
EXAMPLE = "tiny-math@f317e0480061"

Name = Annotated[str, Path(pattern=NAME_PATTERN, examples=["tiny-math"])]
Version = Annotated[str, Field(pattern=VERSION_PATTERN, examples=[EXAMPLE])]
State = Literal["available", "loading", "device", "host", "draining", "refused"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VersionState(BaseModel):
    """One version in the engine, or on its way in or out."""

    version: Version
    state: State = Field(
        description="device: in a slot of an engine; host: in host memory; draining: finishing"
    )
    engines: list[int] = Field(
        [], description="Those with it in a slot (--data-parallel-size), by rank.", examples=[[0]]
    )
    pinned: bool = False
    in_flight: int = Field(0, description="Requests it answers now.")
    waiting: int = Field(0, description="Requests that wait for its slot.")
    idle_seconds: float | None = Field(None, description="Since its last use.")
    load_seconds: dict[str, float] = Field({}, description="What loading took, by part.")


class AdapterState(BaseModel):
    """One name of the store."""

    name: str
    serving: str | None = Field(
        None, description="The version that answers now.", examples=[EXAMPLE]
    )
    alias: str | None = Field(None, description="The version the store's alias points at.")
    state: State
    reason: str | None = Field(None, description="Why the store's version is refused.")
    tau: float | None = Field(None, description="Threshold of NAME:gated, nats.")
    tau_source: Source | None = Field(
        None, description="Where it comes from: the manifest, this API, or --default-gate-rate."
    )
    temperature: float | None = Field(
        None, description="Divides the logits of NAME:gated where the gate is open."
    )
    scores: list[Score] = Field([], description="As measured when it was fitted.")
    versions: list[str] = Field([], description="In the store.", examples=[[EXAMPLE]])
    resident: list[VersionState] = []


class Adapters(BaseModel):
    """GET /admin/adapters."""

    data: list[AdapterState]
    slots: int = Field(description="LoRA slots of all engines.")
    waiting: int = Field(description="Requests that wait for a slot.")


class Load(_Strict):
    """Body of load."""

    version: Version | None = Field(None, description="Default: where the alias points.")


class Alias(_Strict):
    """Body of alias."""

    version: Version


class Pin(_Strict):
    """Body of pin."""

    pinned: bool = True


class Tau(_Strict):
    """Body of tau."""

    tau: float | None = Field(
        ge=0, allow_inf_nan=False, description="Nats; null: the manifest's, or the default gate's."
    )


bearer = HTTPBearer(auto_error=False, description="The admin key.")


async def admin(
    request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> str:
    """Who asks, for the log; 401 unless it is the admin key."""
    wanted: bytes = request.app.state.admin_digest
    digest = hashlib.sha256((sent.credentials if sent else "").encode()).digest()
    if not secrets.compare_digest(digest, wanted):
        raise HTTPException(
            401,
            "The admin key is missing or wrong; send 'Authorization: Bearer KEY'.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    host = request.client.host if request.client else "?"
    return f"key {wanted.hex()[:8]} from {host}"


async def _aliases(request: Request) -> Aliases:
    found: Aliases = request.app.state.aliases
    return found


Who = Annotated[str, Depends(admin)]
Served = Annotated[Aliases, Depends(_aliases)]
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request or the adapter cannot be used; the message says why."},
    401: {"description": "The admin key is missing or wrong."},
    404: {"description": "The store has no such name or version."},
    409: {"description": "Not now, or not any more."},
    503: {"description": "The storage is out of reach, or too many requests wait for a slot."},
}
router = APIRouter(prefix="/admin/adapters", tags=["adapters"], responses=REFUSALS)


@router.get("")
async def list_adapters(who: Who, aliases: Served) -> Adapters:  # noqa: ARG001
    """Every name of the store: what serves it, where its weights are, who uses it."""
    names = await asyncio.to_thread(aliases.names)
    locations = await aliases.cache.locations()
    states = [await _state(aliases, name, locations) for name in names]
    return Adapters(
        data=[one for one in states if one is not None],
        slots=aliases.slots.total,
        waiting=aliases.slots.waiting + aliases.host_slots.waiting,
    )


@router.get("/{name}")
async def show_adapter(name: Name, who: Who, aliases: Served) -> AdapterState:  # noqa: ARG001
    """One name."""
    return await _shown(aliases, name)


@router.post("/{name}/load")
async def load(name: Name, body: Load, who: Who, aliases: Served) -> AdapterState:
    """Have a version in the engine before anybody asks for it."""
    async with _refusing(aliases, name, f"load {body.version or ''}", who):
        _same_name(name, body.version)
        await aliases.preload(body.version or name)
    return await _shown(aliases, name)


@router.post("/{name}/unload")
async def unload(name: Name, who: Who, aliases: Served) -> AdapterState:
    """Take every version of the name out of the engine once its requests are over.

    The next request loads it again.
    """
    async with _refusing(aliases, name, "unload", who):
        await asyncio.to_thread(aliases.resolve, name)
        aliases.unload(name)
    return await _shown(aliases, name)


@router.post("/{name}/pin")
async def pin(name: Name, body: Pin, who: Who, aliases: Served) -> AdapterState:
    """Keep what serves the name in its slot, whatever else is asked for."""
    async with _refusing(aliases, name, f"pin {body.pinned}", who):
        await aliases.pin(name, body.pinned)
    return await _shown(aliases, name)


@router.post("/{name}/alias")
async def alias(name: Name, body: Alias, who: Who, aliases: Served) -> AdapterState:
    """Point the alias at a version; it is in the engine before the first request gets it."""
    async with _refusing(aliases, name, f"alias {body.version}", who):
        store, to = aliases.store, body.version
        await aliases.move(name, to, lambda: store.alias(name, to, by=who, trusted=True))
    return await _shown(aliases, name)


@router.post("/{name}/rollback")
async def rollback(name: Name, who: Who, aliases: Served) -> AdapterState:
    """Point the alias at the version before the present one."""
    async with _refusing(aliases, name, "rollback", who):
        store = aliases.store
        to = await asyncio.to_thread(_previous, aliases, name)
        await aliases.move(name, to, lambda: store.rollback(name, by=who, trusted=to))
    return await _shown(aliases, name)


@router.put("/{name}/tau")
async def set_tau(name: Name, body: Tau, who: Who, aliases: Served) -> AdapterState:
    """The threshold of NAME:gated for requests that name none, until this server ends."""
    async with _refusing(aliases, name, f"tau {body.tau}", who):
        await asyncio.to_thread(aliases.resolve, name)
        if body.tau is None:
            aliases.taus.pop(name, None)
        else:
            aliases.taus[name] = body.tau
    return await _shown(aliases, name)


# ------------------------------------------------------------------------------- the small print


class _refusing:  # noqa: N801
    """Log an action and its outcome; the store's and the engine's refusals become HTTP errors."""

    def __init__(self, aliases: Aliases, name: str, action: str, who: str) -> None:
        self._aliases, self._name, self._action, self._who = aliases, name, action, who
        self._before = aliases.serving(name)

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        after = self._aliases.serving(self._name)
        outcome = "done" if error is None else f"refused: {error}"
        logger.info(
            "%s: %s %s: %s (serving %s, before %s)",
            *(self._who, self._name, self._action, outcome, after, self._before),
        )
        if isinstance(error, KeyError):
            raise HTTPException(404, f"name: the store has no {error.args[0]}") from error
        if isinstance(error, StoreAwayError):
            raise HTTPException(503, str(error), headers={"Retry-After": "5"}) from error
        if isinstance(error, QueueFullError):
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from error
        if isinstance(error, StoreError):
            raise HTTPException(409, str(error)) from error
        if isinstance(error, ValueError):  # AdapterError is one
            raise HTTPException(400, str(error)) from error


def _previous(aliases: Aliases, name: str) -> str:
    """In a thread: the version that a roll-back goes back to."""
    with aliases.store.reached(name):
        return aliases.store.previous(name)


def _same_name(name: str, version: str | None) -> None:
    if version is not None and version.partition("@")[0] != name:
        raise ValueError(f"version: {version} is not one of {name}")


async def _shown(aliases: Aliases, name: str) -> AdapterState:
    state = await _state(aliases, name, await aliases.cache.locations())
    if state is None:
        raise HTTPException(404, f"name: the store has no {name}")
    return state


def _where(loaded: LoadedVersion, locations: dict[str, list[int]]) -> State:
    if loaded.retired:
        return "draining"
    return "device" if locations.get(loaded.version) else "host"


def _in_store(aliases: Aliases, name: str) -> tuple[str, list[str]]:
    """In a thread: what the store's alias points at, and the hashes of its versions."""
    with aliases.store.reached(name):
        return str(aliases.store.resolve(name)), aliases.store.versions(name)


async def _state(
    aliases: Aliases, name: str, locations: dict[str, list[int]]
) -> AdapterState | None:
    try:
        listing = await asyncio.to_thread(aliases.checked, name)
        target, versions = await asyncio.to_thread(_in_store, aliases, name)
    except KeyError:
        return None
    except StoreAwayError as error:
        listing, target, versions = error, "", []
    except AdapterError as error:
        return AdapterState(name=name, state="refused", reason=error.reason)
    own = None if isinstance(listing, AdapterError) else listing.gate
    found = aliases.threshold(name, own)
    manifest = None if isinstance(listing, AdapterError) else listing.manifest
    reason = listing.reason if isinstance(listing, AdapterError) else aliases.refusal(name)
    resident = [
        VersionState(
            version=one.version,
            state=_where(one, locations),
            engines=locations.get(one.version, []),
            pinned=one.pinned,
            in_flight=one.in_flight,
            waiting=aliases.waiting_for(one.version),
            idle_seconds=round(time.monotonic() - one.last_use, 3),
            load_seconds=one.seconds,
        )
        for one in aliases.of_name(name)
    ]
    serving = aliases.serving(name)
    mine = next((one.state for one in resident if one.version == serving), None)
    state: State = mine or ("refused" if reason else "available")
    if name in aliases.loading():
        state = "loading"
    return AdapterState(
        name=name,
        serving=serving,
        alias=target if "@" in target else None,
        state=state,
        reason=reason,
        tau=found.tau,
        tau_source=found.source,
        temperature=found.gate.temperature if found.gate else None,
        scores=manifest.scores if manifest else [],
        versions=[f"{name}@{digest}" for digest in versions],
        resident=resident,
    )
