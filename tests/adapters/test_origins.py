"""Adapters from elsewhere that cannot be served: each is refused at import, and says why."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from safetensors.numpy import load_file, save_file
from support import ROOT
from tiny import MODULE, make_adapter, make_base

from adapters import vllm_loader
from adapters.adapter import CONFIG, WEIGHTS, AdapterError, AdapterVersion, read_origin
from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.peft_config import PeftConfig
from adapters.peft_folder import INDEX
from adapters.store import Store

KEY = f"base_model.model.{MODULE}"
PEFT_VERSIONS = json.loads(
    (Path(__file__).with_name("data") / "peft-configs.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseCheckpoint:
    return make_base(tmp_path_factory.mktemp("base") / "base")


SLOW = r"(\w|\.|[a-z])*j_?p"  # on q_proj `re` would take for ever


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow patterns are given up soon."""
    monkeypatch.setattr("adapters.patterns.SECONDS", 0.2)


def configured(**changes: Any) -> Callable[[Path], None]:
    """Changes keys of adapter_config.json; Ellipsis takes one away."""
    return lambda folder: support.configured(folder, **changes)


def tensors(make: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Writes other tensors."""
    return lambda folder: save_file(make(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return tensors(lambda found: {key.replace(old, new): value for key, value in found.items()})


def added(*keys: str) -> Callable[[Path], None]:
    return tensors(lambda found: found | dict.fromkeys(keys, np.ones((2, 2), "f4")))


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / CONFIG).write_bytes(content)


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Writes other bytes of weights."""
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def weights_named(name: str) -> Callable[[Path], None]:
    """Gives the weights another name, beside what a trainer leaves."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / name)
        (folder / "training_args.bin").write_bytes(b"")

    return change


def instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Puts something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return change


def _number(value: float, dtype: str) -> Callable[[Path], None]:
    """Puts a number into one tensor, of another type perhaps."""

    def change(found: dict[str, Any]) -> dict[str, Any]:
        other = found[f"{KEY}.lora_A.weight"].astype(dtype)
        other[0, 0] = value
        return found | {f"{KEY}.lora_A.weight": other}

    return tensors(change)


def _pointer(file: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return lambda folder: (folder / file).write_text(text) and None


def _below(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    for file in (CONFIG, WEIGHTS):
        (folder / file).rename(folder / "checkpoint-500" / file)


def _index(content: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "elsewhere.safetensors")
        (folder / INDEX).write_text(json.dumps(content))

    return write


# What stands in docs/adapters-from-elsewhere.md, and more: name -> (how it is made, why it is not).
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "PiSSA": (configured(init_lora_weights="pissa"), r"vLLM would not load it: .*'pissa'.*Convert"),
    "PiSSA, iterated": (configured(init_lora_weights="pissa_niter_4"), "would not load it.*pissa"),
    "OLoRA": (configured(init_lora_weights="olora"), "vLLM would not load it: .*'olora'"),
    "LoftQ": (configured(init_lora_weights="loftq"), "vLLM would not load it: .*'loftq'"),
    "CorDA": (configured(init_lora_weights="corda"), "vLLM would not load it: .*'corda'"),
    "an unknown initialisation": (configured(init_lora_weights="xyz"), "would not load it.*'xyz'"),
    "aLoRA": (configured(alora_invocation_tokens=[1, 2]), "would not load it: .*aLoRA"),
    "a LoRA bias": (configured(lora_bias=True), "vLLM would not load it: .*lora_bias"),
    "layer replication": (configured(layer_replication=[[0, 1]]), "would not.*layer_replication"),
    "QALoRA": (configured(use_qalora=True), "vLLM would not load it: .*QALoRA"),
    "BD-LoRA": (configured(use_bdlora={"nblocks": 2}), "vLLM would not load it: .*BD-LoRA"),
    "DoRA": (configured(use_dora=True), "use_dora cannot be served; fit without it"),
    "DoRA's tensors": (added(f"{KEY}.lora_magnitude_vector"), "belongs to DoRA"),
    "retrained modules": (configured(modules_to_save=["lm_head"]), "modules_to_save cannot be"),
    "their tensors": (added("base_model.model.modules_to_save.lm_head.weight"), "modules_to_save"),
    "a bias": (configured(bias="all"), "bias: a trained bias cannot be served"),
    "a bias of LoRA's alone": (configured(bias="lora_only"), "bias: a trained bias cannot be"),
    "a bias that is null": (configured(bias=None), "bias"),
    "new tokens": (configured(trainable_token_indices=[1]), "trainable_token_indices: retrained"),
    "fused experts": (configured(target_parameters=["mlp.experts"]), "target_parameters: LoRA on"),
    "Arrow": (configured(arrow_config={"top_k": 3}), "arrow_config: Arrow, a router"),
    "another kind": (configured(peft_type="IA3"), "peft_type is not LORA but 'IA3'"),
    "LoHa": (configured(peft_type="LOHA"), "peft_type is not LORA but 'LOHA'"),
    "AdaLoRA": (configured(peft_type="ADALORA"), "peft_type is not LORA but 'ADALORA'"),
    "mlx-lm": (raw(b'{"fine_tune_type": "lora", "lora_parameters": {}}'), "adapter of mlx-lm; con"),
    "mlx-lm's names": (renamed(".lora_A.weight", ".lora_a"), "is written as mlx-lm does"),
    "Kohya": (renamed(".lora_A.weight", ".lora_down.weight"), "is written as Kohya's scripts do"),
    "NeMo": (renamed(".lora_A.weight", ".linear_in.weight"), "is written as NeMo does"),
    "pickled weights": (weights_named("adapter_model.bin"),
                        r"only pickled weights \(adapter_model\.bin\).*as safetensors"),
    "weights of another name": (weights_named("pytorch_lora_weights.safetensors"),
                                r"safetensors is missing \(there is 'pytorch_lora"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"model\.safetensors is missing"),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), r"config\.json is missing"),
    "weights cut short": (weights(lambda content: content[:-8]), "cut short"),
    "an endless header": (weights(lambda _: b"\0" * 7 + b"\x40{}"), "not a safetensors file"),
    "no tensors of a LoRA": (tensors(lambda _: {"lm_head.weight": np.ones((2, 2), "f4")}),
                             "holds no tensors of a LoRA"),
    "no alpha": (configured(lora_alpha=...), "lora_alpha is missing; add the value that"),
    "an alpha of null": (configured(lora_alpha=None), "lora_alpha is null; add the value that"),
    "an alpha of text": (configured(lora_alpha="16"), "lora_alpha: input should be a valid number"),
    "an endless alpha": (configured(lora_alpha=float("inf")), "lora_alpha: input should be"),
    "an alpha of NaN": (configured(lora_alpha=float("nan")), "lora_alpha: input should be"),
    "an alpha beyond all": (configured(lora_alpha=10**400), "lora_alpha: input should be"),
    "no targets": (configured(target_modules=...), "target_modules is missing; add the value"),
    "targets of null": (configured(target_modules=None), "target_modules is null; add the value"),
    "empty targets": (configured(target_modules=[]), "target_modules is neither a list"),
    "targets of numbers": (configured(target_modules=[1]), "target_modules is neither a list"),
    "targets that are no pattern": (configured(target_modules="(("), "target_modules is neither"),
    "other targets": (configured(target_modules=["k_proj"]), "target_modules does not name model"),
    "its module excluded": (configured(exclude_modules=["q_proj"]), "exclude_modules leaves out"),
    "excluded by a pattern": (configured(exclude_modules=".*q_proj"), "exclude_modules leaves out"),
    "another layer": (configured(layers_to_transform=[5]), "layers_to_transform leaves out model"),
    "one other layer": (configured(layers_to_transform=1), "layers_to_transform leaves out model"),
    "layers elsewhere": (configured(layers_to_transform=[0], layers_pattern="h"),
                         "layers_to_transform leaves out"),
    "layers of text": (configured(layers_to_transform="0"), "layers_to_transform is neither a"),
    "layers of true": (configured(layers_to_transform=True), "layers_to_transform is neither a"),
    "excluded numbers": (configured(exclude_modules=[1]), "exclude_modules is neither a list"),
    "a layers' pattern of 3": (configured(layers_pattern=3), "layers_pattern is neither a pattern"),
    "one of several": (configured(target_modules=["all-linear"]), "does not name model.*leave it"),
    "weights beyond all": (_number(1e300, "f8"), "holds numbers of 65536 or more"),
    "weights of float16's end": (_number(65536, "f4"), "holds numbers of 65536 or more"),
    "weights of NaN": (_number(float("nan"), "f4"), "holds numbers that are NaN or infinite"),
    "weights of integers": (_number(1, "i1"), "is I8; save it as one of F64, F32, F16, BF16"),
    "a pointer of Git LFS": (_pointer(WEIGHTS), "safetensors: a pointer of Git LFS.*git lfs pull"),
    "a configuration of Git LFS": (_pointer(CONFIG), "config.json: a pointer of Git LFS"),
    "a page of HTML": (lambda folder: (folder / WEIGHTS).write_text("<html>"), "not a safetensors"),
    "a folder of checkpoints": (_below, "is missing; name the folder below that has it: 'checkpo"),
    "a whole model": (lambda folder: (folder / CONFIG).rename(folder / "config.json"),
                      "what is there is a whole model .config.json., which can be"),
    "an empty Arrow": (configured(arrow_config={}), "arrow_config: Arrow, a router"),
    "no rank": (configured(r=...), "r is missing; add the value that the adapter was trained with"),
    "a rank of null": (configured(r=None), "r is null; add the value"),
    "a rank of nought": (configured(r=0), "r is not a positive whole number"),
    "a rank of true": (configured(r=True), "r is not a positive whole number"),
    "a rank of 2.5": (configured(r=2.5), "r is not a positive whole number"),
    "a rank beyond vLLM's": (configured(r=10**9), "r is not a positive whole number, 65536 at"),
    "another rank": (configured(r=3), "its tensors have rank 2, adapter_config.json .r. says 3"),
    "a list for a pattern": (configured(rank_pattern=["q_proj"]), "rank_pattern: input should be"),
    "a pattern of text": (configured(rank_pattern={"q_proj": "2"}), r"rank_pattern\['q_proj'\]: "),
    "a false pattern": (configured(rank_pattern={"q_proj": 4}), "rank 2, .*rank_pattern. says 4"),
    "a pattern that is none": (configured(alpha_pattern={"q[": 1}), "is no regular expression"),
    "an endless pattern": (configured(rank_pattern={SLOW: 2}), "is too complex a pattern"),
    "endless targets": (configured(target_modules=SLOW), "is too complex a pattern"),
    "endless exceptions": (configured(exclude_modules=SLOW), "is too complex a pattern"),
    "a book of a pattern": (configured(alpha_pattern={"q" * 3000: 1}), "is too complex a pattern"),
    "an alpha pattern of null": (configured(alpha_pattern={"q_proj": None}), "alpha_pattern.'q_p"),
    "a flag of text": (configured(use_rslora="yes"), "use_rslora: input should be a valid boolean"),
    "a key twice": (raw(b'{"peft_type": "LORA", "r": 1, "r": 2}'), "the key 'r' is there twice"),
    "UTF-16": (raw('{"peft_type": "LORA"}'.encode("utf-16")), "not UTF-8; save it again as UTF-8"),
    "half a character": (raw(b'{"peft_type": "LORA", "\\ud800": 1}'), "half a character"),
    "no JSON": (raw(b"peft_type: LORA"), "is not JSON; copy it again"),
    "an abyss": (raw(b"[" * 200_000), "is not JSON"),
    "a number of numbers": (raw(b"7"), "the file holds no object"),
    "a folder for a file": (instead(CONFIG, Path.mkdir), "what has its name is a folder"),
    "a pipe for a file": (instead(WEIGHTS, os.mkfifo), "what has its name is no ordinary file"),
    "a circle of links": (instead(WEIGHTS, lambda path: path.symlink_to(path.name)),
                          "(in a circle|cannot be read)"),
    "another's manifest": (
        lambda folder: (folder / "manifest.json").write_text('{"version": 2, "files": []}'),
        "manifest.json: .*remove the file if another progr"),
    "two adapters": (added(f"{KEY}.lora_A.default.weight"), "holds several adapters"),
    "half a pair": (tensors(lambda found: {f"{KEY}.lora_A.weight": found[f"{KEY}.lora_A.weight"]}),
                    "lora_A or lora_B is missing"),
    "an index of nothing": (_index({}), "is no index of shards"),
    "an index that leads out": (_index({"weight_map": {"a": "../x.safetensors"}}), "other files"),
    "a lost shard": (_index({"weight_map": {"a": "adapter_model-1.safetensors"}}), "is missing, w"),
    "a tensor with an endless name": (added("module." * 500 + "x"), "has a name of 3501 letters"),
    "a strange tensor": (added("base_model.model.x.weight"), "unexpected tensor 'base_model.model"),
    "no module of the base": (renamed("q_proj", "k_proj"), "target_modules does not name"),
}  # fmt: skip


def rows(title: str) -> dict[str, str]:
    """First cell -> second cell of a table of docs/adapters-from-elsewhere.md."""
    text = (ROOT / "docs" / "adapters-from-elsewhere.md").read_text()
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| ([^|`]+) \| ([^|]+) \|$", section, re.MULTILINE)[1:])


DOCUMENTED = rows("What is refused")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_at_import(
    tmp_path: Path, base: BaseCheckpoint, store: Store, name: str
) -> None:
    write, reason = REFUSED[name]
    folder = make_adapter(tmp_path / "theirs")
    write(folder)
    with pytest.raises(AdapterError, match=reason) as error:
        import_adapter(store, str(folder), "theirs", base=base, family="tiny")
    assert DOCUMENTED.get(name, "").strip("`") in str(error.value)
    assert store.names() == []

    # A plain folder in the store is refused by name, and takes no other one down.
    make_adapter(store.root / "good")
    folder.rename(store.root / "bad")
    listing = store.listing(base)
    assert list(listing.offered) == ["good"]
    assert list(listing.refused) == ["bad"]
    assert re.search(f"'bad'.*{reason}", str(listing.refused["bad"]))


def test_the_docs_tell_of_adapters_that_are_refused_here() -> None:
    assert len(DOCUMENTED) > 20
    assert DOCUMENTED.keys() <= REFUSED.keys()


def test_the_docs_tell_what_is_served() -> None:
    from origins import FORMS, SETTINGS

    assert set(rows("What is served")) == {*FORMS, *SETTINGS}


@pytest.mark.parametrize("version", PEFT_VERSIONS)
def test_the_configuration_of_every_peft_is_read(tmp_path: Path, version: str) -> None:
    """As these versions wrote them for the same adapter of models/tiny-qwen2."""
    config = PeftConfig.parse(json.dumps(PEFT_VERSIONS[version]).encode())
    assert (config.r, config.lora_alpha, config.largest_rank) == (4, 8, 4)
    assert config.rank_of("model.layers.0.self_attn.o_proj") == 2
    assert config.targets("model.layers.3.mlp.up_proj")
    assert not config.targets("model.layers.3.mlp.down_proj")
    assert vllm_loader.bring_in()
    assert vllm_loader.refusal(config.raw) is None


MADE = {
    "target_modules": ["q_proj", "up_proj"],
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1},
        {"layers_to_transform": []},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        {"layers_to_transform": [1], "layers_pattern": ["h"]},
        {"exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"exclude_modules": ".*0.*proj"},
        {"exclude_modules": ["mlp"], "target_modules": ["self_attn.q_proj"]},
    ],
    ids=str,
)
def test_modules_are_targets_as_in_peft(changes: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    settings = MADE | changes
    ours = PeftConfig.parse(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2} | settings).encode()
    )
    theirs = peft.LoraConfig(**settings)
    for layer in range(3):
        for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
            name = f"model.layers.{layer}.{module}"
            found = check_target_module_exists(theirs, name)
            assert ours.targets(name) == (found is True or bool(found)), name


def test_files_that_are_not_the_adapters_do_not_matter(
    tmp_path: Path, base: BaseCheckpoint
) -> None:
    folder = make_adapter(tmp_path / "theirs")
    plain = import_adapter(Store(tmp_path / "plain"), str(folder), "theirs", base=None)
    others = ("training_args.bin", "optimizer.pt", "adapter_model.bin", "origin.json")
    for file in others:
        (folder / file).write_bytes(b"\x80\x04.")
    (folder / "README.md").write_bytes(b" " * 2**21)  # larger than a card may be
    (folder / "fit.yaml").mkdir()
    version = import_adapter(Store(tmp_path / "store"), str(folder), "theirs", base=None)
    assert version.id == plain.id
    assert sorted(file.name for file in version.path.glob("[!.]*")) == [CONFIG, WEIGHTS]


def test_what_was_changed_is_told_and_a_plain_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = make_adapter(store.root / "alpha")
    renamed("base_model.model.", "")(folder)
    kept = (folder / WEIGHTS).read_bytes()
    new = store.publish(make_adapter(tmp_path / "new", value=2), "alpha")
    old = store.get(store.previous("alpha"))
    assert read_origin(old.path).changes == ["tensors have PEFT's names"]
    assert read_origin(new.path).changes == []
    assert set(load_file(old.path / WEIGHTS)) == {f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"}
    assert sorted(path.name for path in folder.glob("adapter*")) == []
    # Somebody puts it there again: it is in a version already, in other words.
    (folder / WEIGHTS).write_bytes(kept)
    assert store.leftovers("alpha") == [WEIGHTS]


# ------------------------------------------------------------------------ bases of several kinds


def make_wrapped(folder: Path, prefix: str, **config: Any) -> BaseCheckpoint:
    """A base whose language model is a part of it, beside a vision tower."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["XForConditionalGeneration"], "text_config": {}} | config)
    )
    names = {
        f"{prefix}layers.0.self_attn.q_proj.weight": (12, 8),
        f"{prefix}embed_tokens.weight": (20, 8),
        "visual.blocks.0.attn.q_proj.weight": (12, 8),
    }
    weights = {name: np.ones(shape, "f4") for name, shape in names.items()}
    save_file(weights, folder / "model.safetensors")
    return BaseCheckpoint.open(str(folder))


@pytest.mark.parametrize(
    "prefix", ["model.language_model.", "language_model.model.", "model.", "language_model."]
)
def test_an_adapter_of_the_text_model_gets_the_names_of_the_wrapper(
    tmp_path: Path, store: Store, prefix: str
) -> None:
    wrapped = make_wrapped(tmp_path / "wrapped", prefix)
    folder = make_adapter(tmp_path / "theirs")
    configured(rank_pattern={"layers.0.self_attn.q_proj": 2}, r=5)(folder)
    version = import_adapter(store, str(folder), "theirs", base=wrapped, family="tiny")
    assert list(version.modules()) == [f"{prefix}layers.0.self_attn.q_proj"]
    assert version.config.targets(f"{prefix}layers.0.self_attn.q_proj")
    assert not store.listing(wrapped).refused
    # Without a base at its import nothing is renamed, so it is refused: never left out silently.
    import_adapter(store, str(folder), "unbound", base=None)
    refused = store.listing(wrapped).refused
    assert ("unbound" in refused) == (prefix != "model.")
    if refused:
        assert "import the adapter with --base, which renames" in refused["unbound"].reason


def test_an_adapter_of_the_wrapper_fits_the_text_model(
    tmp_path: Path, base: BaseCheckpoint
) -> None:
    folder = make_adapter(
        tmp_path / "theirs", module="model.language_model.layers.0.self_attn.q_proj"
    )
    version = import_adapter(Store(tmp_path / "s"), str(folder), "t", base=base, family="tiny")
    assert list(version.modules()) == [MODULE]


def test_an_adapter_of_the_vision_tower_is_refused(tmp_path: Path) -> None:
    wrapped = make_wrapped(tmp_path / "wrapped", "model.language_model.")
    folder = make_adapter(tmp_path / "theirs", module="visual.blocks.0.attn.q_proj")
    with pytest.raises(AdapterError, match="lies outside the language model; vLLM would leave it"):
        import_adapter(Store(tmp_path / "s"), str(folder), "t", base=wrapped, family="tiny")


def test_target_modules_are_looked_up_in_the_base(base: BaseCheckpoint) -> None:
    qwen = BaseCheckpoint.open(str(ROOT / "models" / "tiny-qwen2")).modules
    linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert qwen.targets(["all-linear"]) == linear
    assert qwen.targets(["layers.0.mlp.up_proj", "q_proj", "q_proj"]) == [
        *("layers.0.mlp.up_proj", "q_proj")
    ]
    with pytest.raises(ValueError, match="the base has no module 'q_prj'; it has down_proj, gate_"):
        qwen.targets(["o_proj", "q_prj"])


def on_vocabulary(folder: Path, module: str, vocab: int, hidden: int) -> Path:
    """An adapter of a head, or of an embedding."""
    make_adapter(folder, module=module, shape=(vocab, hidden))
    if module.endswith("embed_tokens"):
        key = f"base_model.model.{module}.lora_embedding_"
        pair = {f"{key}A": np.ones((2, vocab), "f4"), f"{key}B": np.ones((hidden, 2), "f4")}
        save_file(pair, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_a_head_that_shares_the_embedding_is_compared_with_it(tmp_path: Path, module: str) -> None:
    def tied(architecture: str) -> BaseCheckpoint:
        folder = tmp_path / architecture
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"architectures": [architecture], "tie_word_embeddings": True})
        )
        weights = {"model.embed_tokens.weight": np.ones((20, 8), "f4")}
        save_file(weights, folder / "model.safetensors")
        return BaseCheckpoint.open(str(folder))

    store = Store(tmp_path / "store")
    good = on_vocabulary(tmp_path / "good", module, 20, 8)
    import_adapter(store, str(good), "good", base=tied("Qwen3ForCausalLM"), family="tiny")
    wrong = on_vocabulary(tmp_path / "wrong", module, 24, 8)
    with pytest.raises(AdapterError, match=r"made for a 24 x 8 weight, the base .* has 20 x 8"):
        import_adapter(store, str(wrong), "wrong", base=tied("LlamaForCausalLM"), family="tiny")
    # vLLM's class of Qwen2 adapts neither.
    with pytest.raises(AdapterError, match=r"vLLM serves no LoRA on .* of Qwen2ForCausalLM"):
        import_adapter(store, str(good), "no", base=tied("Qwen2ForCausalLM"), family="tiny")


def test_a_copy_of_the_bases_embedding_is_left_out_if_it_is_one(tmp_path: Path) -> None:
    base = make_wrapped(tmp_path / "base", "model.")
    store = Store(tmp_path / "store")
    folder = make_adapter(tmp_path / "theirs")
    key = "base_model.model.model.embed_tokens.weight"
    for value in (1, 2):
        tensors(lambda found, value=value: found | {key: np.full((20, 8), value, "f2")})(folder)
        if value == 1:
            version = import_adapter(store, str(folder), "t", base=base, family="tiny")
            assert len(version.shapes) == 2
            assert read_origin(version.path).changes == [
                "copies of the base's weights were left out"
            ]
        else:
            with pytest.raises(AdapterError, match="is another weight than the base's"):
                import_adapter(store, str(folder), "t", base=base, family="tiny")
    with pytest.raises(AdapterError, match="a copy of a weight of the base's; import"):
        import_adapter(store, str(folder), "t", base=None)


def quantised(folder: Path, method: str, packed: dict[str, tuple[int, ...]]) -> BaseCheckpoint:
    """A base whose q_proj is packed in some way."""
    folder.mkdir()
    config = {
        **{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 20},
        **{"intermediate_size": 16, "num_hidden_layers": 1},
        "quantization_config": {"quant_method": method, "bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"{MODULE}.{part}": np.ones(shape, "i4") for part, shape in packed.items()}
    save_file(weights, folder / "model.safetensors")
    return BaseCheckpoint.open(str(folder))


PACKED = {
    "awq": {"qweight": (8, 1), "qzeros": (1, 1), "scales": (1, 8)},
    "gptq": {"qweight": (1, 8), "qzeros": (1, 1), "scales": (1, 8)},
    "bitsandbytes": {"weight": (32, 1)},
    "fp8": {"weight": (8, 8), "weight_scale": (1,)},
    "compressed-tensors": {"weight_packed": (8, 1), "weight_scale": (8, 1)},
}


@pytest.mark.parametrize("method", PACKED)
def test_the_shapes_of_a_quantised_base_follow_from_its_configuration(
    tmp_path: Path, store: Store, method: str
) -> None:
    base = quantised(tmp_path / "base", method, PACKED[method])
    assert base.modules.shape(MODULE) == [8, 8]
    if vllm_loader.bring_in() and vllm_loader.refused_quantisation(method):
        assert method == "bitsandbytes"  # vLLM has it in a plugin
        return
    good = make_adapter(tmp_path / "good", shape=(8, 8))
    import_adapter(store, str(good), "good", base=base, family="tiny")
    with pytest.raises(AdapterError, match="made for a 12 x 8 weight, the base 'base' has 8 x 8"):
        wrong = make_adapter(tmp_path / "wrong")
        import_adapter(store, str(wrong), "wrong", base=base, family="tiny")


def test_a_quantisation_that_vllm_does_not_know_is_named(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "sqish", PACKED["awq"])
    folder = make_adapter(tmp_path / "theirs", shape=(8, 8))
    with pytest.raises(AdapterError, match="quantised base: vLLM knows no quantisation 'sqish'"):
        import_adapter(Store(tmp_path / "s"), str(folder), "t", base=base, family="tiny")


def test_a_quantised_base_of_unknown_shapes_is_named(tmp_path: Path) -> None:
    base = quantised(tmp_path / "base", "awq", PACKED["awq"])
    config = json.loads((base.folder / "config.json").read_text()) | {"model_type": "unknown"}
    (base.folder / "config.json").write_text(json.dumps(config))
    folder = make_adapter(tmp_path / "theirs", shape=(8, 8))
    with pytest.raises(AdapterError, match=r"quantised base \(awq\): transformers cannot tell its"):
        import_adapter(
            Store(tmp_path / "s"), str(folder), "t",
            base=BaseCheckpoint.open(str(base.folder)), family="tiny",
        )  # fmt: skip


def test_a_folder_is_read_the_same_with_every_name_peft_gives(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "theirs")
    first = AdapterVersion.read(folder)
    assert first.folder.is_canonical
    for prefix in ("", "module.", "_orig_mod.base_model.model.", "base_model.model." * 2):
        other = make_adapter(tmp_path / f"other{len(prefix)}")
        renamed("base_model.model.", prefix)(other)
        assert AdapterVersion.read(other).shapes == first.shapes
        assert not AdapterVersion.read(other).folder.is_canonical


def test_a_strangers_readme_is_copied_unless_it_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    folder = make_adapter(tmp_path / "theirs")
    (folder / "README.md").symlink_to("../secret")
    (folder / "notes.md").write_text("theirs")
    (folder / "fit.yaml").symlink_to("notes.md")
    (tmp_path / "copy").mkdir()
    AdapterVersion.read(folder).copy_to(tmp_path / "copy")
    assert not (tmp_path / "copy" / "README.md").exists()
    assert (tmp_path / "copy" / "fit.yaml").read_text() == "theirs"

    # As huggingface_hub's cache keeps what it has downloaded.
    snapshot = tmp_path / "models--they--theirs" / "snapshots" / "abc"
    blob = snapshot.parent.parent / "blobs" / "123"
    blob.parent.mkdir(parents=True)
    blob.write_text("card")
    shutil.copytree(folder, snapshot, symlinks=True)
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to("../../blobs/123")
    (tmp_path / "other").mkdir()
    AdapterVersion.read(snapshot).copy_to(tmp_path / "other")
    assert (tmp_path / "other" / "README.md").read_text() == "card"
