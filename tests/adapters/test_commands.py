"""python -m adapters: by hand, from the first publish to the last export."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import configured, flip_bit, python
from tiny import MODULE, contents, make_adapter, make_base

from adapters.__main__ import main
from adapters.adapter import ALONGSIDE, CONFIG, FILES, WEIGHTS, AdapterError
from adapters.audit import verify
from adapters.base_checkpoint import BaseCheckpoint
from adapters.commands import COMMANDS
from adapters.exchange import SourceError, export_adapter, import_adapter
from adapters.moves import FILE as MOVES
from adapters.peft_folder import INDEX, SHARDS
from adapters.store import SHIPPED, Store

Console = Callable[..., str]


@pytest.fixture
def console(store: Store, run: Callable[..., str]) -> Console:
    """Commands on one store, and what they print."""
    return lambda *argv, code=0: run(*argv, "--store", store.root, code=code)


def test_a_store_by_hand(console: Console, tmp_path: Path, base: BaseCheckpoint) -> None:
    first = console("publish", make_adapter(tmp_path / "mine", base)).strip()
    assert first.startswith("mine@")
    second = make_adapter(tmp_path / "second", base, value=2)
    flags = ("--name", "mine", "--base", base.folder)
    new = console("publish", second, *flags, "--no-alias").strip()
    assert first in console("show", "mine") and "tau 1.0000" in console("show", "mine")
    assert console("alias", "mine", new) == f"mine -> {new}\n"
    assert console("publish", second, *flags).strip() == new  # it is there, and aliased

    (row,) = json.loads(console("list", "--json"))
    assert row == {
        **{"name": "mine", "version": new, "versions": 2, "base": "base", "tau": 1.0},
        "state": "ok",
    }
    assert new in console("list")
    shown = json.loads(console("show", "mine", "--json"))
    assert [move["action"] for move in shown["history"]] == ["publish", "alias"]
    assert [move["from"] for move in shown["history"]] == [None, first]
    assert shown["version"] == new and set(shown["versions"]) == {first, new}
    assert json.loads(console("show", first, "--json"))["version"] == first

    assert console("rollback", "mine") == f"mine -> {first}\n"
    assert "no version before" in console("rollback", "mine", code=2)
    assert console("gc") == "0 version(s)\n"
    assert f"would delete {new}" in console("gc", "--grace", "0", "--dry-run")
    assert f"deleted {new}" in console("gc", "--grace", "0")
    assert console("verify") == "sound: 1 adapter(s), 1 version(s)\n"
    console("export", "mine", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "mine")


def test_modules_without_effect_behind_the_gate_are_named(
    console: Console, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = MODULE.replace("q_proj", "v_proj")
    folder = make_adapter(tmp_path / "theirs", module=values)
    assert main(["import", str(folder), "--no-base", "--store", str(store.root)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("theirs@")
    assert err.startswith("v_proj: no effect behind the gate")
    assert "v_proj: no effect behind the gate" in console("show", "theirs")
    console("import", make_adapter(tmp_path / "plain"), "--no-base")
    assert "no effect" not in console("show", "plain")


@pytest.mark.parametrize(
    ("told", "noted"),
    [("elsewhere/other", True), ("some/Base", False), ("x/base-4bit", False), (None, False)],
)
def test_another_base_in_the_configuration_is_noted(
    store: Store,
    tmp_path: Path,
    base: BaseCheckpoint,
    capsys: pytest.CaptureFixture[str],
    told: str | None,
    noted: bool,
) -> None:
    folder = make_adapter(tmp_path / "theirs")
    configured(folder, base_model_name_or_path=told)
    flags = ["--base", str(base.folder), "--family", "tiny", "--store", str(store.root)]
    assert main(["import", str(folder), *flags]) == 0
    note = f"names the base {told!r}; the adapter was checked against 'base' by shapes alone"
    assert (note in capsys.readouterr().err) == noted


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("show", "absent"), "'absent' is not in"),
        (("show", "../x"), "'../x' is not in"),
        (("alias", "a", "b"), "'b' is a name; a version is written NAME@HASH"),
        (("alias", "a", "b@0123456789ab"), "'b@0123456789ab' is not in"),
        (("alias", "A", "b@0123456789ab"), "'A' is not a name"),
        (("rollback", "absent"), "'absent' is not in"),
        (("publish", "/nowhere/at-all"), "no such folder"),
        (("publish", "{folder}", "--name", "No"), "--name: 'No' is not a name"),
        (("publish", "{folder}", "--base", "/nowhere"), "/nowhere: neither a folder nor"),
        (("gc", "--keep", "-1"), "--keep: Input should be greater than or equal to 0 (got '-1')"),
        (("gc", "--keep", "x"), "--keep: Input should be a valid integer"),
        (("import", "{folder}"), "give one of --base MODEL and --no-base"),
        (("import", "nothing", "--no-base"), "'nothing' is neither a folder nor a hub id"),
        (("export", "absent", "{folder}-new"), "'absent' is not in"),
        (("import", "{folder}", "--no-base", "--base", "b"), "give one of --base MODEL and"),
        (("prompt", "1 + 1"), "--model: Field required"),
        (("show",), "the following arguments are required: REFERENCE"),
        (("list", "--keep", "1"), "unrecognized arguments: --keep"),
        (("exprt",), "'exprt' is no command; did you mean 'export'?"),
        (("calibrate", "a"), "run `reasonmaxxer store calibrate`"),
    ],
)
def test_bad_input_is_named(
    console: Console, store: Store, tmp_path: Path, argv: tuple[str, ...], message: str
) -> None:
    store.root.mkdir()
    folder = make_adapter(tmp_path / "folder")
    assert message in console(*(text.format(folder=folder) for text in argv), code=2)
    assert contents(store.root) == {}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name} " in out or f"\n    {name}\n" in out for name in COMMANDS)


def test_a_plain_folder_that_vllm_would_not_load_is_no_good_one(
    console: Console, store: Store
) -> None:
    configured(make_adapter(store.root / "alpha"), init_lora_weights="olora")
    (row,) = json.loads(console("list", "--json"))
    assert row["state"].startswith("refused: vLLM would not load it: ")
    assert "alpha: vLLM would not load it: " in console("verify", code=1)
    assert "vLLM would not load it: " in console("show", "alpha", code=2)


def test_verify_tells_what_is_unsound(console: Console, store: Store, tmp_path: Path) -> None:
    version = store.publish(make_adapter(tmp_path / "alpha"), "alpha")
    other = store.publish(make_adapter(tmp_path / "beta", value=2), "beta")
    store.alias("latest", other.id)
    make_adapter(store.root / "plain")
    assert verify(store) == []

    (version.path / WEIGHTS).chmod(0o644)
    flip_bit(version.path / WEIGHTS)
    shutil.rmtree(other.path)
    make_adapter(store.root / "broken", value=float("nan"))
    shutil.copy(tmp_path / "beta" / WEIGHTS, store.root / "alpha")
    with (store.root / "latest" / MOVES).open("a") as history:
        history.write(json.dumps({"version": other.id, "from": None}) + "\n")
    told = console("verify", code=1)
    assert f"{version.id}: the content of {version.id} is not what its hash names" in told
    assert f"beta: points at {other.id}, which is gone" in told
    assert "broken: adapter_model.safetensors: base_model.model." in told and "NaN" in told
    assert "alpha: adapter_model.safetensors lies beside the versions" in told
    assert "latest: moves.jsonl: line 2: action: Field required" in told
    assert len(told.splitlines()) == 5
    # An alias that cannot be read might need anything.
    assert "latest" in console("gc", "--grace", "0", code=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_weights_that_are_no_numbers_are_refused(
    store: Store, tmp_path: Path, value: float, dtype: str
) -> None:
    import torch
    from safetensors.torch import save_file as save

    folder = make_adapter(tmp_path / "alpha")
    weights = {key: torch.from_numpy(one) for key, one in load_file(folder / WEIGHTS).items()}
    for name, number in (("good", 3e4), ("bad", value)):
        weights[f"base_model.model.{MODULE}.lora_B.weight"][-1, -1] = number
        of_type = {key: one.to(getattr(torch, dtype)) for key, one in weights.items()}
        save(of_type, make_adapter(tmp_path / name) / WEIGHTS)
    store.publish(tmp_path / "good", "good")
    with pytest.raises(AdapterError, match=r"lora_B\.weight holds numbers that are NaN or"):
        store.publish(tmp_path / "bad", "bad")
    assert store.names() == ["good"]


# ------------------------------------------------------------------------------ import and export


def test_an_import_is_bound_to_its_base(store: Store, tmp_path: Path, base: BaseCheckpoint) -> None:
    folder = make_adapter(tmp_path / "theirs")
    version = import_adapter(store, str(folder), "mine", base=base, family="tiny")
    assert version.manifest is not None and version.gate is None
    assert version.manifest.base.fingerprint == base.fingerprint
    other = make_base(tmp_path / "other")
    weights = load_file(other.folder / "model.safetensors")
    save_file({k: v + 1 for k, v in weights.items()}, other.folder / "model.safetensors")
    other = BaseCheckpoint.open(str(other.folder))
    store.get("mine", base)
    with pytest.raises(AdapterError, match="made for other weights"):
        store.get("mine", other)
    make_adapter(store.root / "plain", shape=(16, 8))
    refused = store.listing(other).refused
    assert "made for other weights" in refused["mine"].reason
    assert "made for a 16 x 8 weight" in refused["plain"].reason
    # Without a base the shapes are all that can be compared.
    import_adapter(store, str(folder), "unbound", base=None)
    assert store.get("unbound", other).manifest is None
    with pytest.raises(AdapterError, match="made for a 16 x 8 weight"):
        wide = make_adapter(tmp_path / "wide", shape=(16, 8))
        import_adapter(store, str(wide), "wide", base=base, family="tiny")
    assert store.names() == ["mine", "plain", "unbound"]


def test_an_import_from_the_hub_takes_the_files_of_the_adapter_alone(
    store: Store, tmp_path: Path, base: BaseCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = make_adapter(tmp_path / "hub")
    asked = []

    def download(repo: str, *, revision: str | None, local_dir: str, allow_patterns: list[str]):
        asked.append((repo, revision, allow_patterns))
        if repo == "someone/absent":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")
        if repo == "someone/slow":
            raise TimeoutError
        if repo == "someone/cut":  # of the HTTP library below
            raise huggingface_hub.errors.HfHubHTTPError.__mro__[1]("connection refused")
        for file in allow_patterns:
            if (hub / file).exists():
                shutil.copy(hub / file, local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    version = import_adapter(
        store, "someone/their-lora", "theirs", base=base, family="tiny", revision="abc"
    )
    assert asked == [("someone/their-lora", "abc", [*FILES, *ALONGSIDE, INDEX, SHARDS])]
    assert version.manifest is not None
    assert version.manifest.made_by == {"imported from": "someone/their-lora@abc"}
    with pytest.raises(SourceError, match=r"'someone/absent' cannot be fetched.*: no network$"):
        import_adapter(store, "someone/absent", "absent", base=None)
    with pytest.raises(SourceError, match=r"'someone/slow' cannot be fetched.*: TimeoutError$"):
        import_adapter(store, "someone/slow", "absent", base=None)
    with pytest.raises(SourceError, match=r"'someone/cut' cannot be fetched.*: connection refused"):
        import_adapter(store, "someone/cut", "absent", base=None)
    (hub / WEIGHTS).unlink()  # a repository of pickled weights
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        import_adapter(store, "someone/pickled", "pickled", base=None)
    for source in ("a/b/c", "https://x/y", "-x/y", "a/..", "x\n/y"):
        with pytest.raises(SourceError, match=r"neither a folder nor a hub id|is no storage"):
            import_adapter(store, source, "x", base=None)
    assert store.names() == ["theirs"]


def test_an_oversized_file_is_refused_before_it_is_read(store: Store, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "huge")
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(FILES[WEIGHTS] + 1)  # sparse: it takes no room
    with pytest.raises(AdapterError, match="larger than 17179869184 bytes"):
        store.publish(folder, "huge")
    (folder / CONFIG).write_bytes(b" " * (FILES[CONFIG] + 1))
    with pytest.raises(AdapterError, match=r"adapter_config\.json is larger than 1048576 bytes"):
        store.publish(folder, "huge")
    assert contents(store.root) == {} if store.root.exists() else True


def test_an_export_comes_back_as_the_same_version(store: Store, tmp_path: Path) -> None:
    first = Store(tmp_path / "first")
    export_adapter(Store(SHIPPED), "tiny-math", tmp_path / "lean")  # of a version that was not
    import_adapter(first, str(tmp_path / "lean"), "tiny-math", base=None)
    version = export_adapter(first, "tiny-math", tmp_path / "out")
    with pytest.raises(FileExistsError):
        export_adapter(first, "tiny-math", tmp_path / "out")
    again = import_adapter(store, str(tmp_path / "out"), "tiny-math", base=None)
    assert again.id == version.id
    assert (tmp_path / "out" / "fit.yaml").read_bytes() == (version.path / "fit.yaml").read_bytes()
    assert (tmp_path / "out" / WEIGHTS).stat().st_mode & 0o777 == 0o644
    assert again.path.joinpath(WEIGHTS).stat().st_mode & 0o777 == 0o444


def test_an_export_loads_with_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export_adapter(Store(SHIPPED), "tiny-math", tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained("models/tiny-qwen2")
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    loaded = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    saved = load_file(tmp_path / "out" / WEIGHTS)
    assert len(loaded) == sum("lora_B" in name for name in saved) > 0
    for name, parameter in loaded.items():
        assert np.array_equal(parameter.detach().numpy(), saved[name.replace(".default", "")])


def test_a_plain_folder_becomes_a_version_that_can_be_rolled_back_to(
    store: Store, tmp_path: Path
) -> None:
    plain = make_adapter(store.root / "alpha")
    before = store.get("alpha")
    assert store.resolve("alpha").hash is None and store.lease("alpha").path == plain
    with pytest.raises(KeyError):
        store.rollback("alpha")
    new = store.publish(make_adapter(tmp_path / "new", value=2), "alpha")
    assert store.get("alpha").id == new.id
    assert not (plain / CONFIG).exists() and not (plain / WEIGHTS).exists()
    store.rollback("alpha")
    assert store.get("alpha").id == before.id
    assert verify(store) == []

    damaged = make_adapter(store.root / "beta")
    (damaged / WEIGHTS).write_bytes(b"")
    kept = contents(damaged)
    with pytest.raises(AdapterError, match=r"its plain folder cannot become a version \(.*remove"):
        store.publish(tmp_path / "new", "beta")
    assert kept.items() <= contents(damaged).items()


def test_files_beside_the_versions_become_one(store: Store, tmp_path: Path) -> None:
    first = store.publish(make_adapter(tmp_path / "first"), "alpha")
    assert store.plain("alpha") is None and store.adopt("alpha") is None
    home = store.root / "alpha"
    for file in (CONFIG, WEIGHTS):
        shutil.copy(make_adapter(tmp_path / f"next-{file}", value=2) / file, home)
        if file == CONFIG:
            assert store.plain("alpha") is None  # not complete
    version = store.adopt("alpha", by="me")
    assert version is not None and version.id not in (None, first.id)
    assert str(store.resolve("alpha")) == version.id
    assert [move.by for move in store.history("alpha")][-1] == "me"
    assert store.plain("alpha") is None and not (home / WEIGHTS).exists()
    assert store.rollback("alpha").version == first.id
    assert verify(store) == []

    outside = make_adapter(tmp_path / "outside", value=3)
    shutil.copy(outside / CONFIG, home)
    (home / WEIGHTS).symlink_to(outside / WEIGHTS)
    with pytest.raises(AdapterError, match="leads out of the store"):
        store.adopt("alpha")
    assert str(store.resolve("alpha")) == first.id and (outside / WEIGHTS).exists()


def test_a_listing_believes_names_and_a_load_does_not(store: Store, tmp_path: Path) -> None:
    version = store.publish(make_adapter(tmp_path / "alpha"), "alpha")
    with (version.path / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert store.get("alpha", hashes=False) == version
    assert list(store.listing(hashes=False).offered) == ["alpha"]
    assert list(store.listing().refused) == ["alpha"]
    with pytest.raises(AdapterError, match="not what its hash names"):
        store.get("alpha")
    with pytest.raises(AdapterError, match="not what its hash names"):
        store.alias("beta", version.id)
    assert store.names() == ["alpha"]


def test_the_shipped_store_is_sound() -> None:
    assert verify(Store(SHIPPED)) == []
    assert Store(SHIPPED).names() == ["tiny-math"]


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'vllm', 'transformers', 'peft', 'huggingface_hub', 'serving', 'training'}"
    code = f"import sys, adapters.__main__; print(sorted({heavy} & set(sys.modules)))"
    assert python("-c", code).stdout == "[]\n"
