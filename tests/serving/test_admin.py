"""The admin API over a real store and an engine that only remembers: moves, refusals, fuzz."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fleet import ADMIN_KEY, BEARER, answered, application, engine_of, make_admission, settled

from adapters.adapter import WEIGHTS
from adapters.store import Store
from serving import admin_api
from serving.admission import Admission


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`alpha` has three versions and points at the newest; `beta` has one."""
    store = Store(tmp_path / "store")
    for folder in folders[:3]:
        store.publish(folder, "alpha")
    store.publish(folders[0], "beta")
    return make_admission(tmp_path, base_folder)


@pytest.fixture
def client(admission: Admission) -> Iterator[TestClient]:
    with TestClient(application(admission, admin_api.router), headers=BEARER) as client:
        yield client


def versions(admission: Admission) -> list[str]:
    """NAME@HASH of alpha, oldest first."""
    return [move.version for move in admission.aliases.store.history("alpha")]


def test_from_available_to_serving_and_back(admission: Admission, client: TestClient) -> None:
    first, _, newest = versions(admission)
    listed = client.get("/admin/adapters").json()
    assert [(one["name"], one["state"]) for one in listed["data"]] == [
        ("alpha", "available"),
        ("beta", "available"),
    ]
    assert (listed["slots"], listed["waiting"]) == (2, 0)
    shown = client.post("/admin/adapters/alpha/load", json={}).json()
    assert (shown["serving"], shown["alias"], shown["state"]) == (newest, newest, "device")
    assert set(shown["resident"][0]["load_seconds"]) == {"check", "engine"}
    assert sorted(shown["versions"]) == sorted(versions(admission))
    for _ in range(2):  # idempotent
        moved = client.post("/admin/adapters/alpha/alias", json={"version": first}).json()
        assert (moved["serving"], moved["alias"]) == (first, first)
    assert first in engine_of(admission).loaded.values()
    back = client.post("/admin/adapters/alpha/rollback").json()
    assert back["serving"] == back["alias"] == newest
    moves = admission.aliases.store.history("alpha")
    assert [move.action for move in moves[-2:]] == ["alias", "rollback"]
    assert moves[-1].by.startswith("key ")
    pinned = client.post("/admin/adapters/alpha/pin", json={"pinned": True}).json()
    assert [one["pinned"] for one in pinned["resident"] if one["version"] == newest] == [True]
    gone = client.post("/admin/adapters/alpha/unload").json()
    assert (gone["state"], gone["resident"]) == ("available", [])
    assert not admission.aliases.slots.pinned


async def test_a_version_in_use_drains(admission: Admission) -> None:
    first, _, newest = versions(admission)

    async def during(_: Any) -> None:
        await admission.aliases.move(
            "alpha", first, lambda: admission.aliases.store.alias("alpha", first)
        )
        state = await admin_api._shown(admission.aliases, "alpha")
        by_version = {one.version: one for one in state.resident}
        assert (by_version[newest].state, by_version[newest].in_flight) == ("draining", 1)
        assert by_version[first].state == "device"

    assert await answered(admission, "alpha", during) == newest
    await settled(admission)
    state = await admin_api._shown(admission.aliases, "alpha")
    assert [one.version for one in state.resident] == [first]


def test_the_threshold_of_gated_requests(admission: Admission, client: TestClient) -> None:
    assert client.get("/admin/adapters/alpha").json()["tau"] == 0.3
    assert client.put("/admin/adapters/alpha/tau", json={"tau": 1.5}).json()["tau"] == 1.5
    assert client.put("/admin/adapters/alpha/tau", json={"tau": None}).json()["tau"] == 0.3
    assert client.put("/admin/adapters/alpha/tau", json={"tau": -1}).status_code == 400


@pytest.mark.parametrize(
    ("way", "body", "status", "word"),
    [
        ("nothing/load", {}, 404, "no nothing"),
        ("alpha/load", {"version": "beta@000000000000"}, 400, "not one of alpha"),
        ("alpha/load", {"version": "alpha@000000000000"}, 404, "alpha@000000000000"),
        ("alpha/alias", {"version": "alpha@000000000000"}, 404, "alpha@000000000000"),
        ("beta/rollback", None, 400, "no version before"),
        ("beta/pin", {"pinned": "perhaps"}, 400, ""),
        ("alpha/alias", {"version": "../../etc"}, 400, ""),
        ("..%2Falpha/load", {}, 404, ""),
        ("Alpha/load", {}, 400, ""),
    ],
)
def test_refused(client: TestClient, way: str, body: Any, status: int, word: str) -> None:
    answer = client.post(f"/admin/adapters/{way}", json=body)
    assert answer.status_code == status
    assert word in answer.text


def test_a_version_that_does_not_load_leaves_the_alias(
    admission: Admission, client: TestClient
) -> None:
    first, _, newest = versions(admission)
    client.post("/admin/adapters/alpha/load", json={})
    weights = admission.aliases.store.root / "alpha" / first.partition("@")[2] / WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(b"\x08" + bytes(20))
    answer = client.post("/admin/adapters/alpha/alias", json={"version": first})
    assert answer.status_code == 400
    assert WEIGHTS in answer.json()["error"]["message"]
    after = client.get("/admin/adapters/alpha").json()
    assert (after["serving"], after["alias"], after["state"]) == (newest, newest, "device")


@pytest.mark.parametrize("sent", [None, "", "another key", ADMIN_KEY + "x", ADMIN_KEY[:-1]])
def test_only_the_admin_key_opens(admission: Admission, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
    with TestClient(application(admission, admin_api.router), headers=headers) as client:
        for method, way in (("GET", ""), ("GET", "/alpha"), ("POST", "/alpha/unload")):
            answer = client.request(method, f"/admin/adapters{way}")
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == 401


def test_every_action_is_logged_with_who_and_what(
    admission: Admission, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    first, _, newest = versions(admission)
    caplog.set_level(logging.INFO, "serving.admin")
    client.post("/admin/adapters/alpha/load", json={})
    client.post("/admin/adapters/alpha/alias", json={"version": first})
    client.post("/admin/adapters/nothing/unload")
    lines = [record.getMessage() for record in caplog.records if record.name == "serving.admin"]
    assert len(lines) == 3
    assert all("key " in line and ADMIN_KEY not in line for line in lines)
    assert first in lines[1] and newest in lines[1] and "done" in lines[1]
    assert "refused" in lines[2]


@pytest.mark.long  # schemathesis takes seconds to make its cases
def test_no_body_or_path_makes_it_fail(admission: Admission) -> None:
    """schemathesis over the API's own schema: whatever is sent, never a 500, always as declared."""
    import schemathesis  # slow to import, and used here alone

    app = application(admission, admin_api.router)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    with TestClient(app, headers=BEARER, raise_server_exceptions=False) as client:
        asked = 0
        for operation in schema.get_all_operations():
            for case in _examples(operation.ok()):
                answer = client.request(
                    case.method,
                    case.formatted_path,
                    json=case.body if isinstance(case.body, dict) else None,
                )
                assert answer.status_code < 500, (case, answer.text)
                asked += 1
    assert asked > 100


def _examples(operation: Any, count: int = 40) -> list[Any]:
    """Cases of one operation, the same every time."""
    from hypothesis import Phase, given, seed, settings

    found: list[Any] = []

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(case=operation.as_strategy())
    def gather(case: Any) -> None:
        found.append(case)

    gather()
    return found
