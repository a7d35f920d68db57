"""GET /v1/models: an entry for every adapter, and an answer for every name a request may give."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from fleet import answered, make_admission
from support import make_adapter

from adapters.manifest import FILE as MANIFEST
from adapters.store import Store
from serving import models_api
from serving.admission import Admission


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path) -> Admission:
    """`alpha` has two versions; `latest` points at the first; `plain` has no threshold."""
    store = Store(tmp_path / "store")
    versions = [
        store.publish(make_adapter(tmp_path, f"v{seed}", base_folder, seed=seed), "alpha").id
        for seed in range(2)
    ]
    store.alias("latest", versions[0])
    make_adapter(store.root, "plain", base_folder, manifest=False)
    (store.root / "broken").mkdir()
    (store.root / "broken" / "adapter_config.json").write_text("{")
    return make_admission(tmp_path, base_folder)


@pytest.fixture
def client(admission: Admission) -> Iterator[TestClient]:
    app = FastAPI()
    app.state.aliases = admission.aliases
    app.state.args = SimpleNamespace(gate=True)
    app.include_router(models_api.router)
    with TestClient(app) as client:
        yield client


async def nothing(_: Any) -> None: ...


def test_every_adapter_is_listed_with_the_version_that_answers(
    admission: Admission, client: TestClient
) -> None:
    store = admission.aliases.store
    cards = {card["id"]: card["root"] for card in client.get("/v1/models").json()["data"]}
    assert list(cards) == ["base", "alpha", "alpha:gated", "latest", "latest:gated", "plain"]
    assert cards["alpha"] == cards["alpha:gated"] == str(store.resolve("alpha"))
    assert cards["latest"] == str(store.resolve("latest"))
    assert cards["plain"] == str(store.resolve("plain"))


MODELS = ("base", "alpha", "alpha:gated", "latest", "latest:gated", "OLD", "OLD:gated", "plain")
MODELS += ("plain:gated",)  # where a request names the threshold; so it is not listed
STRANGERS = {"nobody": 404, "alpha@000000000000": 404, "alpha:gated:gated": 404}
REFUSED = {"broken": 400, "broken:gated": 400}


@pytest.mark.parametrize("first", ["GET", "POST"])
def test_one_is_found_where_a_request_for_it_is_answered(
    admission: Admission, client: TestClient, first: str
) -> None:
    old = str(admission.aliases.store.resolve("latest"))

    def post(model: str) -> tuple[int, str]:
        try:
            arguments = {"gate_tau": 1.0} if model == "plain:gated" else {}
            bound = asyncio.run(answered(admission, model, nothing, **arguments))
        except KeyError:
            return 404, ""
        except ValueError:
            return 400, ""
        return 200, bound.removesuffix(":gated")

    for model in (*MODELS, *STRANGERS, *REFUSED):
        name = model.replace("OLD", old)
        if first == "POST":
            post(name)
        answer = client.get(f"/v1/models/{name}")
        status, root = post(name)
        assert answer.status_code == status == (STRANGERS | REFUSED).get(model, 200), name
        if status == 200:
            assert (answer.json()["id"], answer.json()["root"]) == (name, root)
        else:
            assert answer.json()["error"]["code"] == status


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gate", {"tau": math.inf, "rate": 0.1, "tokens": 9}),
        ("gate", {"tau": 1.0, "rate": 0.1, "tokens": 9, "table": [[0.1, math.nan]]}),
        (
            "scores",
            [
                {"mode": "base", "problems": "x", "metric": "pass@1", "value": math.nan}
                | {"n": 1, "temperature": 0}
            ],
        ),
    ],
)
def test_a_number_that_json_lacks_is_refused_and_all_others_are_listed(
    admission: Admission, client: TestClient, base_folder: Path, field: str, value: Any
) -> None:
    folder = make_adapter(admission.aliases.store.root, "odd", base_folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {field: value}))
    names = {card["id"] for card in client.get("/v1/models").json()["data"]}
    assert "alpha" in names and "odd" not in names
    answer = client.get("/v1/models/odd")
    assert answer.status_code == 400
    assert f"manifest.json: {field}" in answer.json()["error"]["message"]
