"""Push and pull, against a stand-in for the hub; and what the hub reads of an adapter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import Repositories, running_hub
from huggingface_hub import EvalResult, ModelCard
from support import ROOT
from tiny import contents, make_adapter, make_base, write_manifest

from adapters.adapter import CONFIG
from adapters.exchange import export_adapter, import_adapter
from adapters.manifest import Base, Gate, Manifest, Score
from adapters.model_card import BaseFacts, base_facts, model_card
from adapters.peft_config import DEFAULTS, REQUIRED, lean
from adapters.store import SHIPPED, Store


def run(home: Path, endpoint: str, *arguments: object, token: str = "hf_right") -> tuple[int, str]:
    """A store command in a process of its own: huggingface_hub reads its settings at import."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": token}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-m", "adapters", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_is_pushed_can_be_pulled(tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    base = make_base(tmp_path / "base")
    made = make_adapter(tmp_path / "mine")
    (made / CONFIG).write_text(json.dumps(json.loads((made / CONFIG).read_text()) | {"x": None}))
    write_manifest(made, base)
    here.publish(made, "mine")
    with running_hub() as (endpoint, repositories, metadata):
        code, told = run(tmp_path / "home", endpoint, "push", "mine", "someone/math",
                         "--store", here.root)  # fmt: skip
        assert code == 0, told
        assert told.startswith(f"{here.get('mine').id} -> someone/math@")
        pushed = repositories["someone/math"]
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= pushed.keys()
        assert "x" not in json.loads(pushed["adapter_config.json"])
        assert metadata and "library_name: peft" in metadata[0]

        code, told = run(tmp_path / "home", endpoint, "pull", "someone/math", "--name", "theirs",
                         "--base", base.folder, "--store", there.root)  # fmt: skip
        assert code == 0, told
        assert there.get("theirs", base).gate == here.get("mine").gate
        refused(tmp_path, endpoint, there, repositories)


def refused(work: Path, endpoint: str, store: Store, repositories: Repositories) -> None:
    """What cannot be pushed or pulled ends with one line."""
    before = repositories["someone/math"].copy()
    cases = [
        (("push", "theirs", "nowhere"), "'nowhere' is no repository", 2),
        (("push", "absent", "someone/math"), "'absent' is not in", 2),
        (("pull", "/etc", "--no-base"), "'/etc' is no repository", 2),
        (("pull", "someone/absent", "--no-base", "--name", "x"), "cannot be fetched from the", 2),
    ]
    for arguments, message, wanted in cases:
        code, told = run(work / "home", endpoint, *arguments, "--store", store.root)
        assert (code, message in told, "Traceback" in told) == (wanted, True, False), told
    code, told = run(work / "home", endpoint, "push", "theirs", "someone/math",
                     "--store", store.root, token="hf_wrong")  # fmt: skip
    assert code == 1
    assert "'someone/math' cannot be pushed to: " in told
    assert repositories["someone/math"] == before


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


@pytest.mark.parametrize("place", ["one", "another"])
def test_the_same_adapter_from_another_place_is_the_same_version(
    tmp_path: Path, place: str
) -> None:
    base = make_base(tmp_path / "base")
    folder = make_adapter(tmp_path / place / "theirs")
    store = Store(tmp_path / "store")
    version = import_adapter(store, str(folder), "x", base=base, family="tiny")
    assert version.manifest is not None
    assert version.manifest.made_by == {}
