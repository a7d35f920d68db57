"""Push and pull, against a stand-in for the hub; and what the hub reads of an adapter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import Hub, running_hub
from huggingface_hub import EvalResult, ModelCard
from support import configured, free_port, python
from tiny import contents, make_adapter, write_manifest

from adapters.adapter import CONFIG
from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import export_adapter, import_adapter
from adapters.manifest import Base, Gate, Manifest, Score
from adapters.model_card import BaseFacts, base_facts, model_card
from adapters.peft_config import DEFAULTS, REQUIRED, lean
from adapters.store import SHIPPED, Store

ENVIRONMENT = {"HF_TOKEN": "hf_right", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def run_apart(home: Path, endpoint: str, *arguments: object) -> tuple[int, str]:
    """A store command in a process of its own, told of the hub by its environment."""
    environment = os.environ | ENVIRONMENT | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    environment.pop("HF_HUB_OFFLINE", None)
    environment["HF_HUB_DISABLE_XET"] = "1"
    done = python("-m", "adapters", *arguments, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub of this process, whose huggingface_hub has read its settings long ago."""
    from huggingface_hub import constants

    with running_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        path = template[template.index("/{repo_id}") :]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{found.url}{path}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def here(tmp_path: Path, base: BaseCheckpoint) -> Store:
    """A store with the adapter `mine`."""
    made = make_adapter(tmp_path / "mine")
    configured(made, x=None)
    write_manifest(made, base)
    store = Store(tmp_path / "here")
    store.publish(made, "mine")
    return store


def test_what_is_pushed_can_be_pulled(
    hub: Hub, here: Store, base: BaseCheckpoint, tmp_path: Path, run: Callable[..., str]
) -> None:
    code, told = run_apart(
        tmp_path / "home", hub.url, "push", "mine", "someone/math", "--store", here.root
    )
    assert code == 0, told
    assert told.startswith(f"{here.get('mine').id} -> someone/math@")
    pushed = hub.repositories["someone/math"]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= pushed.keys()
    assert "x" not in json.loads(pushed["adapter_config.json"])
    assert hub.metadata and "library_name: peft" in hub.metadata[0]

    there = Store(tmp_path / "there")
    flags = ("--name", "theirs", "--base", base.folder, "--store", there.root)
    run("pull", "someone/math", *flags)
    assert there.get("theirs", base).gate == here.get("mine").gate


def test_what_cannot_be_pushed_or_pulled_ends_with_one_line(
    hub: Hub, here: Store, monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]
) -> None:
    for arguments, message in [
        (("push", "mine", "nowhere"), "'nowhere' is no repository"),
        (("push", "absent", "someone/math"), "'absent' is not in"),
        (("pull", "/etc", "--no-base"), "'/etc' is no repository"),
        (("pull", "someone/absent", "--no-base", "--name", "x"), "cannot be fetched from the"),
    ]:
        assert message in run(*arguments, "--store", here.root, code=2)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    told = run("push", "mine", "someone/math", "--store", here.root, code=1)
    assert "'someone/math' cannot be pushed to: " in told
    assert hub.repositories == {}


# --------------------------------------------------------------------------- what the hub reads


def manifest(name: str = "math") -> Manifest:
    scores = [
        Score(mode=mode, problems="GSM8K test", metric=metric, value=0.5, n=9, temperature=0)
        for mode in ("base", "always", "gated")
        for metric in ("pass@1", "avg@8")
    ]
    return Manifest(
        name=name,
        family="tiny",
        base=Base(model="base", architecture="Qwen2ForCausalLM"),
        gate=Gate(tau=1.0, rate=0.05, tokens=100),
        scores=scores,
        files={},
    )


def test_a_card_has_metadata_that_the_hub_accepts() -> None:
    base = BaseFacts("Qwen/Qwen2.5-0.5B", {"license": "other", "license_name": "qwen"})
    card = ModelCard(model_card(manifest(), 8, base, command="reasonmaxxer fit"))
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert (card.data.license, card.data.license_name) == ("other", "qwen")
    results = card.data.eval_results
    assert results is not None and len(results) == 4  # the base's own are not the adapter's
    assert all(isinstance(one, EvalResult) and one.metric_value == 0.5 for one in results)
    assert {one.dataset_config for one in results} == {"always", "gated"}
    assert "    reasonmaxxer fit\n" in card.content
    assert len(yaml.safe_load(card.content.split("---\n")[1])["model-index"]) == 1


def test_a_card_names_no_path_and_no_licence_that_nobody_gave(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert base_facts(folder, str(folder)) == BaseFacts(None, {})
    data = ModelCard(model_card(manifest(), 8, base_facts(folder, str(folder)))).data
    assert data.base_model is None and data.license is None
    (folder / "README.md").write_text("---\nlicense: llama3.2\nlicense_link: x\n---\n# A base\n")
    assert base_facts(folder, "meta-llama/Llama-3.2-1B") == BaseFacts(
        "meta-llama/Llama-3.2-1B", {"license": "llama3.2", "license_link": "x"}
    )
    cached = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
    assert base_facts(cached, str(cached)).hub_id == "Qwen/Qwen3-0.6B"
    for broken in ("---\n- a\n---\n", "---\nlicense: [a, b]\n---\n", "---\n{{{\n---\n", "no front"):
        (folder / "README.md").write_text(broken)
        assert base_facts(folder, "x").licence == {}


def test_an_exported_configuration_has_no_defaults(tmp_path: Path) -> None:
    version = export_adapter(Store(SHIPPED), "tiny-math", tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config.keys() <= {*REQUIRED, "peft_version", "revision"}
    # All that PEFT would assume stays assumed.
    from peft import LoraConfig

    again = LoraConfig.from_pretrained(str(tmp_path / "out")).to_dict()
    first = LoraConfig.from_pretrained(str(version.path)).to_dict()
    assert again == first
    store = Store(tmp_path / "store")
    same = import_adapter(store, str(tmp_path / "out"), "tiny-math", base=None)
    second = export_adapter(store, "tiny-math", tmp_path / "second")
    assert second.id == same.id
    assert contents(tmp_path / "second") == contents(tmp_path / "out")


def test_the_defaults_are_pefts() -> None:
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    for key, value in DEFAULTS.items():
        assert defaults[key] == value
    assert lean(defaults).keys() <= {*REQUIRED, "peft_version"}
    assert lean({"layers_to_transform": 0, "use_dora": False}) == {"layers_to_transform": 0}


def test_a_hub_that_is_out_of_reach_is_one_line(here: Store, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    code, told = run_apart(tmp_path, nobody, "push", "mine", "a/b", "--store", here.root)
    assert code == 1
    assert len(told.splitlines()) == 1 and "'a/b' cannot be pushed to" in told


def test_the_same_adapter_from_another_place_is_the_same_version(
    tmp_path: Path, base: BaseCheckpoint, store: Store
) -> None:
    versions = [
        import_adapter(store, str(make_adapter(folder)), "x", base=base, family="tiny")
        for folder in (tmp_path / "one" / "theirs", tmp_path / "another" / "theirs")
    ]
    assert versions[0].id == versions[1].id
    assert versions[0].manifest is not None
    assert versions[0].manifest.made_by == {}
