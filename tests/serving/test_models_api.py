"""GET /v1/models: an entry for every adapter, and an answer for every name a request may give."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fleet import answered, application, make_admission, put_plain

from adapters.manifest import FILE as MANIFEST
from adapters.store import Store
from serving import models_api
from serving.admission import Admission


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`alpha` has two versions; `latest` points at the first; `plain` has no threshold."""
    store = Store(tmp_path / "store")
    first, _ = (store.publish(folder, "alpha").id for folder in folders[:2])
    store.alias("latest", first)
    put_plain(folders[0], store.root, "plain")
    (store.root / "broken").mkdir()
    (store.root / "broken" / "adapter_config.json").write_text("{")
    return make_admission(tmp_path, base_folder)


@pytest.fixture
def client(admission: Admission) -> Iterator[TestClient]:
    with TestClient(application(admission, models_api.router)) as client:
        yield client


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
            bound = asyncio.run(answered(admission, model, **arguments))
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


SCORE = {"mode": "base", "problems": "x", "metric": "pass@1", "n": 1, "temperature": 0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gate", {"tau": math.inf, "rate": 0.1, "tokens": 9}),
        ("gate", {"tau": 1.0, "rate": 0.1, "tokens": 9, "table": [[0.1, math.nan]]}),
        ("scores", [SCORE | {"value": math.nan}]),
    ],
)
def test_a_number_that_json_lacks_is_refused_and_all_others_are_listed(
    admission: Admission, client: TestClient, folders: list[Path], field: str, value: Any
) -> None:
    folder = put_plain(folders[0], admission.aliases.store.root, "odd")
    manifest = json.loads((folders[0] / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {field: value}))
    names = {card["id"] for card in client.get("/v1/models").json()["data"]}
    assert "alpha" in names and "odd" not in names
    answer = client.get("/v1/models/odd")
    assert answer.status_code == 400
    assert f"manifest.json: {field}" in answer.json()["error"]["message"]
