"""Controllers of clusters: they load and unload as on vLLM, from allowed sources and no others."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fleet import ADMIN_KEY, BEARER, application, engine_of, make_admission
from hypothesis import given
from hypothesis import strategies as st
from support import make_adapter

from adapters import exchange
from adapters.store import Store, StoreAwayError, StoreError
from serving import admin_api, controller_api, models_api
from serving.admission import Admission
from serving.controller_sources import ForbiddenSourceError, MissingSourceError, Place, Sources
from serving.middleware import ApiKey

API_KEY = "a client's key"
LOAD, UNLOAD = controller_api.PATHS


# ---------------------------------------------------------------------------- the allow-list

ALLOWED = Sources.parse("hf://org/, hf://other/one ,s3://bucket/some/prefix/,/mnt/adapters/")


@pytest.mark.parametrize(
    "path",
    [
        *("hf://org/any", "org/any", "huggingface://org/any", "hf://org/any@v1.2", "other/one"),
        *("s3://bucket/some/prefix", "s3://bucket/some/prefix/math/v3", "/mnt/adapters/a/b/"),
    ],
)
def test_allowed(path: str) -> None:
    entry, source = ALLOWED.find(path)
    assert entry.holds(source)


@pytest.mark.parametrize(
    "path",
    [
        *("hf://other/two", "other/one-more", "hf://organisation/x", "hf://org", "../org/any"),
        *("s3://bucket/some/prefix-not", "s3://bucket/some", "s3://other/some/prefix/x"),
        *("gs://bucket/some/prefix", "/mnt/adapters-old/x", "/mnt", "/", "mnt/adapters/x/y"),
        *("/mnt/adapters/../../etc", "/mnt/adapters/./x", "/mnt/adapters//x", "//mnt/adapters/x"),
        *("/mnt/adapters/.ssh", "/mnt/adapters/a\x00b", "/mnt/adapters/a\n", "~/x", "", " "),
        *("s3://bucket/some/prefix/../../x", "s3://bucket/some/prefix/%2e%2e/x", "http://org/x"),
        *("s3://user:pw@bucket/some/prefix", "hf://org/any/sub", "hf://org/any@../x"),
        *("file:///mnt/adapters",),
        *("hf://org/any@", "hf://org/any@-x", "/mnt/adapters\\..\\x", "S3://bucket/some/prefix"),
    ],
)
def test_refused(path: str) -> None:
    with pytest.raises(ForbiddenSourceError, match="lora_path"), ALLOWED.fetched(path):
        pass


@given(st.text())
def test_no_text_leads_out_of_a_folder(text: str) -> None:
    """Whatever is asked for, what is found lies below /mnt/adapters, also once it is normal."""
    try:
        _, source = Sources.parse("/mnt/adapters").find(f"/mnt/adapters/{text}")
    except ForbiddenSourceError:
        return
    assert os.path.normpath(str(source)) == str(source)
    assert Path(str(source)).is_relative_to("/mnt/adapters")


@pytest.mark.parametrize(
    "text", ["adapters", "ftp://x/y", "/mnt/..", "hf://a/b/c", "hf://a/b@v1", "/"]
)
def test_a_bad_list_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("@")[0]):
        Sources.parse(f"/mnt/adapters,{text}")


def test_the_empty_list_allows_nothing() -> None:
    assert Sources.parse("").places == ()
    assert Place.parse("/mnt/a").origin is None
    assert Place.parse("org/any").origin == "org/any@main"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A folder with the plain adapters `one` and `two`."""
    place = tmp_path_factory.mktemp("mnt")
    for seed, name in enumerate(("one", "two")):
        make_adapter(place, name, base_folder, seed=seed, manifest=False)
    return place


def test_links_are_not_followed(made: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    shutil.copytree(made / "one", allowed / "one")
    (allowed / "linked").symlink_to(made / "two")
    (allowed / "way").symlink_to(made)
    shutil.copytree(made / "one", allowed / "inside")
    (allowed / "inside" / "adapter_config.json").unlink()
    (allowed / "inside" / "adapter_config.json").symlink_to(made / "one" / "adapter_config.json")
    (allowed / "pipe").mkdir()
    os.mkfifo(allowed / "pipe" / "adapter_config.json")
    (allowed / "empty").mkdir()
    (tmp_path / "mounted").symlink_to(allowed)  # the operator's own link is the operator's
    for root in (allowed, tmp_path / "mounted"):
        sources = Sources.parse(str(root))
        with sources.fetched(f"{root}/one") as copy:
            names = {path.name for path in copy.iterdir()}
            assert names == {"adapter_config.json", "adapter_model.safetensors"}
        for name, error in (
            *(("linked", ForbiddenSourceError), ("way/two", ForbiddenSourceError)),
            *(("inside", ForbiddenSourceError), ("pipe", exchange.SourceError)),
            *(("empty", MissingSourceError), ("none", MissingSourceError)),
        ):
            with pytest.raises(error, match="lora_path"), sources.fetched(f"{root}/{name}"):
                pass


# -------------------------------------------------------------------------------- the routes


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path) -> Admission:
    (tmp_path / "store").mkdir()
    return make_admission(tmp_path, base_folder)


@pytest.fixture
def client(admission: Admission, made: Path) -> Iterator[TestClient]:
    """The routes and keys as the server has them."""
    app = application(admission, controller_api.router, admin_api.router, models_api.router)
    app.state.controller_sources = Sources.parse(f"hf://org/,s3://bucket/adapters,{made}")
    also = dict.fromkeys(controller_api.PATHS) | {"/v1/models": ADMIN_KEY}
    app.add_middleware(ApiKey, key=API_KEY, also=also)
    with TestClient(app, headers=BEARER) as client:
        yield client


def load(client: TestClient, name: str, path: Path | str, **more: Any) -> Any:
    return client.post(LOAD, json={"lora_name": name, "lora_path": str(path), **more})


def models(client: TestClient) -> set[str]:
    return {one["id"] for one in client.get("/v1/models").json()["data"]} - {"base"}


def test_a_controller_loads_lists_and_unloads(
    client: TestClient, admission: Admission, made: Path
) -> None:
    assert models(client) == set()
    answer = load(client, "math", made / "one")
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'math' added successfully."
    assert models(client) == {"math"}
    serving = admission.aliases.serving("math")
    assert serving in engine_of(admission).loaded.values()
    assert admission.aliases.store.history("math")[-1].by.startswith("key ")
    # Every reconciliation asks again, and so does each replica of the store.
    assert load(client, "math", made / "one").status_code == 200
    assert len(admission.aliases.store.history("math")) == 1
    other = load(client, "math", made / "two")
    assert other.status_code == 400
    assert other.json()["error"]["type"] == "InvalidUserInput"
    assert "has already been loaded" in other.json()["error"]["message"]
    assert admission.aliases.serving("math") == serving
    assert load(client, "math", made / "two", load_inplace=True).status_code == 200
    assert admission.aliases.serving("math") != serving

    gone = client.post(UNLOAD, json={"lora_name": "math"})
    assert gone.text == "Success: LoRA adapter 'math' removed successfully."
    assert models(client) == set()
    as_client = {"Authorization": f"Bearer {API_KEY}"}
    assert client.get("/v1/models/math", headers=as_client).status_code == 404
    again = client.post(UNLOAD, json={"lora_name": "math", "lora_int_id": 3})
    assert (again.status_code, again.json()["error"]["type"]) == (404, "NotFoundError")
    assert len(Store(admission.aliases.store.root).versions("math")) == 2  # the store keeps all
    assert load(client, "math", made / "one").status_code == 200
    assert models(client) == {"math"}


def test_the_admin_api_brings_a_name_back(client: TestClient, made: Path) -> None:
    load(client, "math", made / "one")
    client.post(UNLOAD, json={"lora_name": "math"})
    assert client.post("/admin/adapters/math/load", json={}).status_code == 200
    assert models(client) == {"math"}


def test_keys(client: TestClient, made: Path) -> None:
    body = {"lora_name": "math", "lora_path": str(made / "one")}
    for key in ("", API_KEY, "wrong"):
        bearer = {"Authorization": f"Bearer {key}"}
        for path in (LOAD, UNLOAD):
            assert client.post(path, json=body, headers=bearer).status_code == 401
        for path in ("/v1/models", "/v1/models/base"):
            answer = client.get(path, headers=bearer)
            assert answer.status_code == (200 if key == API_KEY else 401)
    assert models(client) == set()


@pytest.mark.parametrize(
    ("name", "path", "status", "param"),
    [
        ("Math", "one", 400, "lora_name"),
        ("math:gated", "one", 400, "lora_name"),
        ("math@0123456789ab", "one", 400, "lora_name"),
        ("../math", "one", 400, "lora_name"),
        ("base", "one", 400, "lora_name"),
        ("math", "none", 404, "lora_path"),
        ("math", "../one", 400, "lora_path"),
        ("math", "/etc", 400, "lora_path"),
        ("math", "hf://elsewhere/x", 400, "lora_path"),
        ("math", "hf://org", 400, "lora_path"),
    ],
)
def test_refusals(
    client: TestClient, made: Path, name: str, path: str, status: int, param: str
) -> None:
    answer = load(client, name, path if ":" in path or path[0] == "/" else f"{made}/{path}")
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert models(client) == set()


@pytest.mark.parametrize(
    ("error", "status", "retry_after"), [(StoreError, 409, None), (StoreAwayError, 503, "5")]
)
def test_a_store_that_cannot_be_written(
    client: TestClient,
    admission: Admission,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[StoreError],
    status: int,
    retry_after: str | None,
) -> None:
    def publish(*_: Any, **__: Any) -> None:
        raise error("math", "cannot be written")

    monkeypatch.setattr(admission.aliases.store, "publish", publish)
    answer = load(client, "math", made / "one")
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)
    assert answer.json()["error"]["param"] == "lora_name"


def test_an_adapter_of_another_base_changes_nothing(
    client: TestClient, made: Path, base_folder: Path, admission: Admission
) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    make_adapter(made, "narrow", base_folder, manifest=False, config=shape)
    answer = load(client, "math", made / "narrow")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert admission.aliases.store.names() == []


def test_a_repository_is_fetched_as_one_and_never_read_from_the_working_directory(
    client: TestClient, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    shutil.copytree(made / "one", tmp_path / "org" / "math")
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def snapshot(repository: str, revision: str | None, local_dir: str, **_: Any) -> None:
        asked.append((repository, revision))
        shutil.copytree(made / "two", local_dir, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load(client, "math", "hf://org/math@v2").status_code == 200
    assert load(client, "again", "org/math").status_code == 200
    assert asked == [("org/math", "v2"), ("org/math", None)]
    manifest = client.get("/admin/adapters/math").json()["serving"]
    assert manifest != client.get("/admin/adapters/again").json()["serving"]


def test_objects_of_a_bucket(
    client: TestClient, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(place: Any, folder: Path) -> None:
        asked.append(str(place))
        if str(place).endswith("broken"):
            raise OSError("no such bucket")
        shutil.copytree(made / "one", folder, dirs_exist_ok=True)

    monkeypatch.setattr(exchange, "download", fetch)
    assert load(client, "math", "s3://bucket/adapters/one/").status_code == 200
    broken = load(client, "other", "s3://bucket/adapters/broken")
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "lora_path")
    assert load(client, "other", "s3://bucket/elsewhere/one").status_code == 400
    assert asked == ["s3://bucket/adapters/one", "s3://bucket/adapters/broken"]
    manifest = next((tmp_path / "store" / "math").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["made_by"] == {
        "imported from": "s3://bucket/adapters/one"
    }
