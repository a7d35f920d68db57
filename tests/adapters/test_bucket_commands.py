"""Addresses of buckets, credentials, and the commands of the store on a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cloud import BUCKET
from tiny import make_adapter

from adapters import places, vllm_loader
from adapters.__main__ import main
from adapters.adapter import CONFIG, WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.bucket import objects as objects_module
from adapters.bucket import peft_source
from adapters.bucket.objects import Objects
from adapters.calibration import add_gate
from adapters.exchange import SourceError, export_adapter, import_adapter
from adapters.manifest import Gate
from adapters.places import open_store, parse_place
from adapters.store import Store
from reasonmaxxer import doctor

if TYPE_CHECKING:
    from cloud import Cloud, Machines


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("folder", Path("folder")),
        ("a:b/c", Path("a:b/c")),
        ("file:///a/b%20c", Path("/a/b c")),
        ("file://localhost/a", Path("/a")),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/a//b/", "s3://bucket/a/b"),
        ("gs://bucket/p", "gs://bucket/p"),
        ("az://container/p", "az://container/p"),
    ],
)
def test_places(text: str, place: Path | str) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:secret@bucket/prefix",
        "s3://secret@bucket",
        "s3://bucket/p?X-Amz-Signature=secret",
        "s3://bucket/p#secret",
        "https://user:secret@host/bucket",
        "S3://key:secret@bucket",
    ],
)
def test_credentials_in_an_address_are_refused_and_never_shown(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.settings import SettingsError, from_command_line
    from training.fit_config import FitConfig

    with pytest.raises(ValueError, match="://") as caught:
        parse_place(text)
    told = str(caught.value)
    with pytest.raises(SystemExit):
        main(["list", "--store", text])
    monkeypatch.setenv("REASONMAXXER_MODEL", "any")
    with pytest.raises(SettingsError) as refused:
        from_command_line(["--adapters", text])
    told += str(refused.value)
    with pytest.raises(SystemExit):
        FitConfig.load(["--model", "any", "--publish", "a", "--store", text])
    monkeypatch.setenv("REASONMAXXER_ADAPTERS", text)
    with pytest.raises(SystemExit):
        main(["list"])
    output = capsys.readouterr()
    told += output.out + output.err
    assert told.count("address") + told.count("no storage") >= 4
    assert "secret" not in told


@pytest.mark.parametrize("text", ["ftp://a/b", "s3://", "s3:///x", "s3://b/../c", "file://host/x"])
def test_addresses_of_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"://|folder"):
        parse_place(text)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    with pytest.raises(ValueError, match=r"reasonmaxxer\[cloud\]"):
        Objects.open("s3://bucket")


def test_credentials_of_a_profile(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[Path]
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = cloud.store("profile", tmp_path / "cache")
    assert (
        store.publish(sources[0], "alpha").id
        == cloud.store("profile", tmp_path / "b").get("alpha").id
    )
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match="AWS profile"):
        cloud.store("profile", tmp_path / "c")


def test_commands(
    cloud: Cloud,
    prefix: str,
    tmp_path: Path,
    sources: list[Path],
    base: BaseCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., str],
) -> None:
    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    url = f"s3://{BUCKET}/{prefix}"
    monkeypatch.setenv(places.STORE_VARIABLE, url)
    assert "NAME" in run("list")
    monkeypatch.setattr(vllm_loader, "bring_in", lambda: None)  # half a minute
    first = run("publish", sources[0], "--name", "alpha").strip()
    second = run("publish", sources[1], "--name", "alpha").strip()
    assert second in run("list")
    assert run("alias", "prod", first).strip() == f"prod -> {first}"
    assert run("rollback", "alpha").strip() == f"alpha -> {first}"
    assert "'nobody' is not in " + url in run("show", "nobody", code=2)
    assert second in run("show", "alpha")
    given = ("--base", base.folder, "--name", "beta", "--family", "qwen2.5")
    imported = run("import", sources[2], *given)
    assert "beta@" in imported
    assert run("export", "beta", tmp_path / "exported").startswith("beta@")
    assert run("verify").startswith("sound: 3 adapter(s), 3 version(s)")
    assert second in run("gc", "--grace", 0, "--keep", 0)
    monkeypatch.setenv(places.CACHE_SIZE_VARIABLE, "much")
    assert "REASONMAXXER_STORE_CACHE_GIB: 'much'" in run("list", code=2)
    monkeypatch.delenv(places.CACHE_SIZE_VARIABLE)
    monkeypatch.setattr(objects_module, "QUICK", {"timeout": 1, "connect": 1, "retries": 0})
    state = doctor.look_at_store()
    assert (state.path, state.exists, state.writable, state.adapters) == (url, True, True, 3)
    with cloud.away():
        assert not doctor.look_at_store().writable
        assert f"{url} cannot be written" in run("alias", "prod", first, code=1)
        assert first in run("list")


def test_an_export_needs_no_more_than_the_bucket(
    machine: Machines, sources: list[Path], tmp_path: Path
) -> None:
    version = machine("a").publish(sources[0], "alpha")
    assert export_adapter(machine("b"), "alpha", tmp_path / "out").id == version.id


def test_a_gate_for_an_adapter_in_a_bucket(
    machine: Machines, sources: list[Path], base: BaseCheckpoint
) -> None:
    machine("a").publish(sources[0], "alpha", base=base)
    gate = Gate(tau=0.5, rate=0.1, tokens=100)
    there = machine("b")
    added = add_gate(there, "alpha", gate, base, family="qwen2.5")
    assert machine("c").get("alpha", base, hashes=False).gate == gate
    assert len(there.history("alpha")) == 2
    assert there.history("alpha")[-1].version == added.id


@pytest.mark.usefixtures("quick")
def test_a_fit_asks_first_whether_it_may_publish(cloud: Cloud, prefix: str) -> None:
    url = f"s3://{BUCKET}/{prefix}"
    places.check_writable(url)
    assert cloud.keys(prefix) == []
    refused = cloud.failing(lambda asked: 403 if asked.method == "PUT" else None)
    with refused, pytest.raises(ValueError, match=f"{url} cannot be written"):
        places.check_writable(url)


def test_an_import_from_a_folder_in_a_bucket(
    cloud: Cloud,
    sources: list[Path],
    base: BaseCheckpoint,
    store: Store,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vllm_loader, "bring_in", lambda: None)
    url = f"s3://{BUCKET}/{prefix}/theirs"
    with pytest.raises(SourceError, match="holds no adapter"):
        import_adapter(store, url, "alpha", base=None)
    for name in (CONFIG, WEIGHTS):
        content = (sources[0] / name).read_bytes()
        cloud.client().put_object(Bucket=BUCKET, Key=f"{prefix}/theirs/{name}", Body=content)
    for name in ("optimizer.pt", "deeper/adapter_config.json"):
        cloud.client().put_object(Bucket=BUCKET, Key=f"{prefix}/theirs/{name}", Body=b"x")
    version = import_adapter(store, url, "alpha", base=None)
    assert version.hash == Store(tmp_path / "other").publish(sources[0], "alpha").hash
    bound = import_adapter(store, url, "beta", base=base, family="qwen2.5")
    assert bound.manifest is not None
    assert bound.manifest.made_by == {"imported from": url}
    for wrong, told in ((f"{url}?key=secret", "credentials"), ("ftp://a/b", "no storage")):
        with pytest.raises(SourceError, match=told) as caught:
            import_adapter(store, wrong, "alpha", base=None)
        assert "secret" not in str(caught.value)
    with pytest.raises(SourceError, match="revisions"):
        import_adapter(store, url, "alpha", base=None, revision="main")
    monkeypatch.setattr(objects_module, "PATIENT", {"timeout": 1, "connect": 1, "retries": 0})
    with cloud.away(), pytest.raises(SourceError, match="cannot be listed"):
        import_adapter(store, url, "alpha", base=None)
    monkeypatch.setitem(peft_source.LIMITS, CONFIG, 3)
    with pytest.raises(SourceError, match="larger than 3 bytes"):
        import_adapter(store, url, "alpha", base=None)


def test_the_default_store_may_be_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.STORE_VARIABLE, "s3://bucket/prefix/")
    assert places.default_store() == "s3://bucket/prefix"
    monkeypatch.setenv(places.STORE_VARIABLE, "file:///some/folder")
    assert places.default_store() == Path("/some/folder")
    assert open_store("file:///some/folder") == Store(Path("/some/folder"))


def test_a_fit_publishes_the_same_version_into_a_bucket(
    cloud: Cloud,
    tmp_path: Path,
    prefix: str,
    base: BaseCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training.problems import Problem, read_trained_on
    from training.stages.publish import publish

    monkeypatch.setenv(places.CACHE_VARIABLE, str(tmp_path / "cache"))
    scores = SimpleNamespace(to_scores=list)
    choice: Any = SimpleNamespace(
        gate=Gate(tau=0.5, rate=0.1, tokens=10),
        base=scores,
        kept=scores,
        checkpoint=make_adapter(tmp_path / "checkpoint"),
    )

    def run(store: Path | str) -> Any:
        config = SimpleNamespace(
            **dict.fromkeys(("name", "publish", "model"), "alpha"),
            **{"output": None, "family": "qwen2.5", "seed": 0, "store": store},
            run_dir=tmp_path / "run",
            to_yaml=str,
        )
        renderer = SimpleNamespace(digest="0")
        asked = [Problem(id="1", problem="What is 1 + 1?", answer="2")]
        return SimpleNamespace(
            config=config, base=base, renderer=renderer, problems=asked, heldout=asked
        )

    in_folder = publish(run(tmp_path / "store"), choice)
    in_bucket = publish(run(f"s3://{BUCKET}/{prefix}"), choice)
    assert in_bucket.name == in_folder.name
    found = cloud.store(prefix, tmp_path / "elsewhere").get("alpha", base)
    assert found.hash == in_folder.name
    assert found.gate == choice.gate
    assert read_trained_on(found.path) == read_trained_on(in_folder)
