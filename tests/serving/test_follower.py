"""A server follows its store: aliases that are moved on another machine, and a store that is away.

Two machines share a bucket over a real S3; the engine only remembers what it was told.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cloud import BUCKET
from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.testclient import TestClient
from fleet import (
    BEARER,
    answered,
    application,
    completion,
    engine_of,
    make_admission,
    put_plain,
    settled,
)

from adapters.adapter import CONFIG, WEIGHTS
from adapters.audit import verify
from adapters.bucket import objects
from adapters.bucket.store import BucketStore
from adapters.collect import collect
from adapters.store import Store, StoreAwayError
from serving import admin_api, controller_api, health, models_api
from serving.admission import Admission
from serving.controller_sources import Sources
from serving.follower import Follower
from serving.metrics_page import Gauges

if TYPE_CHECKING:
    from cloud import Asked, Cloud


@pytest.fixture
def elsewhere(
    cloud: Cloud, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BucketStore:
    """The store as another machine has it."""
    limits = {"timeout": 1, "connect": 1, "retries": 0}
    monkeypatch.setattr(objects, "QUICK", limits)
    monkeypatch.setattr(objects, "PATIENT", limits)
    return cloud.store(f"followed/{request.node.name}", tmp_path / "elsewhere")


@pytest.fixture
def replica(
    elsewhere: BucketStore, tmp_path: Path, base_folder: Path, folders: list[Path]
) -> Callable[[str], Follower]:
    """A server by name; `alpha` has two versions and points at the second, `beta` has one."""
    for folder in folders[:2]:
        elsewhere.publish(folder, "alpha")
    elsewhere.publish(folders[0], "beta")

    def make(name: str) -> Follower:
        from adapters.places import open_store

        store = open_store(elsewhere.place, tmp_path / name, 1.0)
        aliases = make_admission(tmp_path, base_folder, store=store).aliases
        return Follower(aliases, 1.0)

    return make


def admission(follower: Follower) -> Admission:
    return Admission(follower.aliases, gated=True)


def loaded(follower: Follower) -> list[str]:
    """The versions in its engine."""
    return list(engine_of(admission(follower)).loaded.values())


async def ask(follower: Follower, model: str) -> str:
    return await answered(admission(follower), model)


async def look(follower: Follower) -> None:
    """One look, and what it began."""
    await follower.look()
    await settled(admission(follower))


async def test_a_move_elsewhere_is_served_by_every_replica(
    replica: Callable[[str], Follower], elsewhere: BucketStore, folders: list[Path]
) -> None:
    first, second = [move.version for move in elsewhere.history("alpha")]
    both = [replica("one"), replica("two")]
    for one in both:
        assert await ask(one, "alpha") == second
    elsewhere.rollback("alpha")
    third = elsewhere.publish(folders[2], "beta").id
    for one in both:
        assert await ask(one, "alpha") == second  # nobody has looked
        await look(one)
        # Nobody asked for it meanwhile, and the old version has left the engine.
        assert loaded(one) == [first]
        assert await ask(one, "alpha") == first
        assert await ask(one, "beta") == third
        assert one.behind() == {"alpha": pytest.approx(0, abs=60)}
        await look(one)
        assert one.behind() == {}
    collect(elsewhere, 0, 0)
    for one in both:
        assert await ask(one, first) == first


async def test_a_replica_whose_store_is_away_serves_on_and_catches_up(
    replica: Callable[[str], Follower],
    elsewhere: BucketStore,
    cloud: Cloud,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = [move.version for move in elsewhere.history("alpha")]
    caplog.set_level(logging.INFO)
    one = replica("one")
    assert await ask(one, "alpha") == second
    await look(one)
    assert one.facts() == {"reached": True, "age_seconds": pytest.approx(0, abs=60), "behind": 0}
    good = one.looked
    elsewhere.rollback("alpha")
    with cloud.away():
        for _ in range(3):
            await look(one)
        assert await ask(one, "alpha") == second
        assert await ask(one, f"{second}:gated") == f"{second}:gated"
        assert not one.facts()["reached"]
        assert one.looked == good
        # What was never downloaded can be asked for later.
        for name in ("beta", first):
            with pytest.raises(StoreAwayError):
                await ask(one, name)
        refused = await refusal(one, "beta")
        assert (refused["code"], refused["type"]) == (503, "ServiceUnavailableError")
        assert elsewhere.place in refused["message"]
    await look(one)
    assert await ask(one, "alpha") == first
    assert (await ask(one, "beta")).startswith("beta@")
    assert one.facts()["reached"]
    said = [record.message for record in caplog.records if "within reach" in record.message]
    missed = [record for record in caplog.records if "out of reach" in record.message]
    assert len(said) == 1
    assert len([one for one in missed if one.name == "serving.follower"]) == 1


async def refusal(follower: Follower, model: str) -> dict[str, Any]:
    """The error that a client is answered with."""
    from vllm.entrypoints.serve.engine.serving import BaseServing

    serving: Any = BaseServing.__new__(BaseServing)
    found: Any = await admission(follower).check(serving, completion(model))
    return dict(found.error.model_dump())


async def test_two_replicas_through_faults(
    replica: Callable[[str], Follower], elsewhere: BucketStore, cloud: Cloud
) -> None:
    """Three move, while one request in twelve fails somehow: no wrong version after a look."""
    versions = [move.version for move in elsewhere.history("alpha")]
    random, made = Random(7), []

    def unwell(asked: Asked) -> int | str | None:
        if random.random() > 1 / 24:  # before the storage, and once more behind it
            return None
        return random.choice([500, 503, "cut", "half"])

    replicas = [replica("one"), replica("two")]
    movers = [elsewhere, *(one.aliases.store for one in replicas)]
    for one in replicas:
        assert await ask(one, "alpha") == versions[-1]
    truth = versions[-1]
    for turn in range(24):
        with cloud.failing(unwell), suppress(StoreAwayError):
            mover = random.choice(movers)
            version = next(one for one in versions if one != truth)
            made.append(await asyncio.to_thread(mover.alias, "alpha", version, by=str(turn)))
        truth = elsewhere.history("alpha")[-1].version
        for one in replicas:
            with cloud.failing(unwell):
                await look(one)
            await look(one)
            assert await ask(one, "alpha") == truth
    history = elsewhere.history("alpha")
    assert verify(elsewhere) == []
    assert len({move.by for move in made}) >= 3
    assert [history.count(move) for move in made] == [1] * len(made)
    assert len(set(history)) == len(history)


async def test_a_server_starts_from_its_cache_while_the_store_is_away(
    replica: Callable[[str], Follower], elsewhere: BucketStore, cloud: Cloud
) -> None:
    second = str(elsewhere.resolve("alpha"))
    assert await ask(replica("one"), "alpha") == second
    with cloud.away():
        again = replica("one")
        await look(again)
        assert await ask(again, "alpha") == second
        listed = {card.id for card in models_api.model_cards(again.aliases, True)}
        assert {"alpha", "alpha:gated"} <= listed


async def test_a_version_that_cannot_be_used_leaves_the_replica_behind_and_says_so(
    replica: Callable[[str], Follower], elsewhere: BucketStore, folders: list[Path], cloud: Cloud
) -> None:
    second = str(elsewhere.resolve("alpha"))
    one = replica("one")
    assert await ask(one, "alpha") == second
    bad = elsewhere.publish(folders[2], "alpha")
    prefix = elsewhere.place.removeprefix(f"s3://{BUCKET}/")
    key = f"{prefix}/files/alpha/{bad.hash}/adapter_model.safetensors"
    cloud.client().put_object(Bucket=BUCKET, Key=key, Body=b"damaged")
    for _ in range(3):
        await look(one)
    assert await ask(one, "alpha") == second
    assert list(one.behind()) == ["alpha"]
    assert one.aliases.refused() == ["alpha"]
    page = Gauges(one.aliases, one).page()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
    assert float(lines['reasonmaxxer_adapter_behind_seconds{adapter="alpha"}']) >= 0
    assert float(lines["reasonmaxxer_store_age_seconds"]) < 60
    assert float(lines['reasonmaxxer_store_requests_total{kind="get"}']) > 3
    elsewhere.alias("alpha", second)
    await look(one)
    assert one.behind() == {}


def test_health_says_how_the_store_is_and_no_more(
    replica: Callable[[str], Follower], cloud: Cloud
) -> None:
    one = replica("one")
    app = FastAPI()
    engine_status = 200

    @app.get("/health")
    async def vllms_own(request: Request) -> Response:
        return Response(status_code=engine_status)

    app.state.follower = one
    health.install(app)
    with TestClient(app) as client:
        told = client.get("/health")
        assert told.json()["status"] == "ok"
        assert set(told.json()["store"]) == {"reached", "age_seconds", "behind"}
        with cloud.away():
            asyncio.run(one.look())
            told = client.get("/health")
        assert (told.status_code, told.json()["store"]["reached"]) == (200, False)
        engine_status = 503
        assert client.get("/health").status_code == 503


def test_the_admin_api_moves_for_all_replicas_and_names_a_store_that_is_away(
    replica: Callable[[str], Follower], elsewhere: BucketStore, cloud: Cloud
) -> None:
    first, second = [move.version for move in elsewhere.history("alpha")]
    one, two = replica("one"), replica("two")
    with TestClient(application(admission(one), admin_api.router), headers=BEARER) as client:
        shown = client.post("/admin/adapters/alpha/alias", json={"version": first}).json()
        assert (shown["serving"], shown["alias"]) == (first, first)
        assert sorted(shown["versions"]) == sorted([first, second])
        with cloud.away():
            refused = client.post("/admin/adapters/alpha/rollback")
            assert refused.status_code == 503, refused.text
            assert refused.headers["Retry-After"]
        listed = client.get("/admin/adapters").json()["data"]
        assert {entry["name"]: entry["serving"] for entry in listed} == {
            "alpha": first,
            "beta": None,
        }

    async def follows() -> None:
        await look(two)
        assert await ask(two, "alpha") == first

    asyncio.run(follows())


def test_models_are_listed_while_the_store_is_away(
    replica: Callable[[str], Follower], cloud: Cloud
) -> None:
    app = application(admission(replica("one")), models_api.router)
    with TestClient(app) as client, cloud.away():
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models/alpha@000000000000").status_code == 503


async def test_a_folder_is_followed_too(
    tmp_path: Path, base_folder: Path, folders: list[Path]
) -> None:
    store = Store(tmp_path / "store")
    old, new = (store.publish(folder, "alpha").id for folder in folders[:2])
    one = Follower(make_admission(tmp_path, base_folder).aliases, 1.0)
    assert await ask(one, "alpha") == new
    Store(tmp_path / "store").alias("alpha", old)
    await look(one)
    assert loaded(one) == [old]
    store.root.rename(tmp_path / "unmounted")
    await look(one)
    assert not one.facts()["reached"]
    assert loaded(one) == [old]
    (tmp_path / "unmounted").rename(store.root)
    await look(one)
    assert await ask(one, "alpha") == old


UNWELL = [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOLCK]


@contextmanager
def failing(place: Path, code: int) -> Iterator[None]:
    """Every look at `place`, or below it, fails with this error of the system."""

    def guarded(real: Any) -> Any:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if text.startswith(str(place)):
                raise OSError(code, os.strerror(code), text)
            return real(path, *args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "stat"), (os, "open"), (os, "scandir"), (io, "open")):
            patch.setattr(module, name, guarded(getattr(module, name)))
        yield


@contextmanager
def moved_away(store: Store) -> Iterator[None]:
    store.root.rename(store.root.with_name("elsewhere"))
    try:
        yield
    finally:
        store.root.with_name("elsewhere").rename(store.root)


@contextmanager
def unmounted(store: Store) -> Iterator[None]:
    """The folder was a place to mount at, and is empty."""
    with moved_away(store), pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_mounted", True)
        store.root.mkdir()
        yield
        store.root.rmdir()


AWAY: dict[str, Callable[[Store], AbstractContextManager[None]]] = {
    "moved": moved_away,
    "unmounted": unmounted,
    **{
        errno.errorcode[code]: lambda store, code=code: failing(store.root, code) for code in UNWELL
    },
}


@pytest.fixture
def folder(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Follower:
    """A server over a folder: `alpha` has two versions, `beta` has one."""
    store = Store(tmp_path / "store")
    for one in folders[:2]:
        store.publish(one, "alpha")
    store.publish(folders[2], "beta")
    return Follower(make_admission(tmp_path, base_folder).aliases, 1.0)


@pytest.mark.parametrize("away", AWAY.values(), ids=AWAY)
async def test_a_server_whose_folder_is_away_serves_on(
    folder: Follower, folders: list[Path], away: Callable[[Store], AbstractContextManager[None]]
) -> None:
    aliases = folder.aliases
    serving = await ask(folder, "alpha")
    listed = models_api.model_cards(aliases, True)
    transport = httpx.ASGITransport(application(admission(folder), admin_api.router))
    admin = httpx.AsyncClient(transport=transport, base_url="http://server", headers=BEARER)
    with away(aliases.store):
        await look(folder)
        assert not folder.facts()["reached"]
        assert await ask(folder, "alpha") == serving
        assert loaded(folder) == [serving]
        for name in ("beta", "new"):
            assert (await refusal(folder, name))["code"] == 503
        again = models_api.model_cards(aliases, True)
        assert [card.id for card in again] == [card.id for card in listed]
        assert models_api.model_card(aliases, "alpha", True).root == serving
        shown = (await admin.get("/admin/adapters")).json()["data"]
        assert [(one["name"], one["serving"]) for one in shown] == [
            ("alpha", serving),
            ("beta", None),
        ]
        assert 'adapter="alpha"' in Gauges(aliases, folder).page()
        for path, body in (
            ("load", {}),
            ("unload", None),
            ("alias", {"version": serving}),
            ("rollback", None),
        ):
            answer = await admin.post(f"/admin/adapters/beta/{path}", json=body)
            assert (path, answer.status_code) == (path, 503)
        load = controller_api.Load(lora_name="new", lora_path=str(folders[3]))
        with pytest.raises(StoreAwayError):  # else it would be written where the store was
            controller_api._import(aliases, Sources.parse(str(folders[3])), load, "a controller")
        with pytest.raises(StoreAwayError):
            await aliases.move("alpha", serving, lambda: aliases.store.alias("alpha", serving))
    await look(folder)
    assert folder.facts()["reached"]
    # What was refused meanwhile was not remembered.
    assert await ask(folder, "beta")
    assert aliases.refused() == []
    await admin.aclose()


@pytest.mark.parametrize("code", UNWELL, ids=errno.errorcode.get)
@pytest.mark.parametrize("file", [".lease", WEIGHTS, CONFIG, "moves.jsonl"])
async def test_an_error_while_an_adapter_is_read_is_no_verdict(
    folder: Follower, file: str, code: int
) -> None:
    store = folder.aliases.store
    version = store.path(store.resolve("alpha"))
    with failing(version.parent / file if file == "moves.jsonl" else version / file, code):
        assert (await refusal(folder, "alpha"))["code"] == 503
        listing = folder.aliases.listing()
        assert isinstance(listing.refused.get("alpha"), StoreAwayError) or file == ".lease"
    assert await ask(folder, "alpha") == str(store.resolve("alpha"))
    assert folder.aliases.refused() == []
    assert list(folder.aliases.listing().offered) == ["alpha", "beta"]


@pytest.mark.parametrize("code", UNWELL, ids=errno.errorcode.get)
async def test_an_error_while_a_plain_folder_is_adopted_is_no_verdict(
    folder: Follower, folders: list[Path], code: int
) -> None:
    store = folder.aliases.store
    before = await ask(folder, "beta")
    for name in ("beta", "plain"):
        put_plain(folders[3], store.root, name)
    with (
        failing(store.root / "plain" / WEIGHTS, code),
        failing(store.root / "beta" / ".lock", code),
    ):
        assert (await refusal(folder, "plain"))["code"] == 503
        assert await ask(folder, "beta") == before
        await settled(admission(folder))
    assert (await ask(folder, "plain")).startswith("plain@")
    await ask(folder, "beta")
    await settled(admission(folder))
    assert await ask(folder, "beta") != before
    assert folder.aliases.refused() == []


async def test_a_file_that_may_not_be_read_is_a_verdict(folder: Follower) -> None:
    store = folder.aliases.store
    with failing(store.path(store.resolve("alpha")) / CONFIG, errno.EACCES):
        assert (await refusal(folder, "alpha"))["code"] == 400
    assert folder.aliases.refused() == ["alpha"]


async def test_it_looks_again_and_again_whatever_happens(
    replica: Callable[[str], Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replica("one")
    one.seconds = 0.0
    looks = 0
    over = asyncio.Event()

    async def look_once() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            over.set()
        raise RuntimeError("a fault")

    monkeypatch.setattr(one, "look", look_once)

    one.start()
    await asyncio.wait_for(over.wait(), 60)
    assert one._task is not None
    one._task.cancel()
