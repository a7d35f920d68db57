"""Whatever an adapter folder holds, it is offered or refused, and nothing else is affected.

REASONMAXXER_FUZZ_FOLDERS=2000 tries that many random folders, fewer by default, from the seed
REASONMAXXER_FUZZ_FROM on.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import make_adapter, make_base, write_manifest

from adapters import vllm_loader
from adapters.adapter import CONFIG, WEIGHTS, AdapterError, AdapterVersion
from adapters.audit import verify
from adapters.base_checkpoint import BaseCheckpoint
from adapters.peft_config import PeftConfig
from adapters.peft_folder import INDEX
from adapters.store import Store

FOLDERS = int(os.environ.get("REASONMAXXER_FUZZ_FOLDERS", "200"))
FIRST = int(os.environ.get("REASONMAXXER_FUZZ_FROM", "0"))
GOOD: dict[str, Any] = {
    **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
    **{"bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False},
    **{"use_dora": False, "modules_to_save": None, "init_lora_weights": True, "lora_bias": False},
    **{"fan_in_fan_out": False, "layers_to_transform": None, "task_type": "CAUSAL_LM"},
    **{"trainable_token_indices": None, "target_parameters": None, "layer_replication": None},
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -1, 0, "LORA", "none", "(a*)*", "[", "q_proj", "all-linear"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def printable(error: Exception) -> bool:
    """Whether a message can be sent to anybody: UTF-8, not without end, one line."""
    text = str(error)
    return len(text.encode()) < 3000 and "\n" not in text and "Traceback" not in text


@settings(max_examples=700)
@given(
    st.dictionaries(st.sampled_from([*GOOD, "unknown"]), VALUES, min_size=1, max_size=1)
    | st.dictionaries(st.sampled_from([*GOOD]), VALUES, max_size=6)
)
def test_any_value_of_any_field_is_read_or_refused(changes: dict[str, object]) -> None:
    try:
        config = PeftConfig.parse(json.dumps(GOOD | changes).encode())
    except ValueError as error:
        assert type(error) is ValueError and printable(error)
    else:
        assert config.largest_rank >= 1
        assert config.rank_of("model.layers.0.self_attn.q_proj") >= 1
        assert config.targets("model.layers.0.self_attn.q_proj") in (True, False)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.text().map(lambda text: text.encode("utf-16"))
    | VALUES.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_and_any_json(content: bytes) -> None:
    with pytest.raises(ValueError) as refused:
        PeftConfig.parse(content)
    assert type(refused.value) is ValueError and printable(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 1000,
        b"[" * 10**6,
        b'{"a":' * 100_000,
        b'{"r": ' + b"9" * 10_000 + b"}",
        b'{"r": 1e999999}',
        b"NaN",
        b'{"peft_type": "LORA", "r": NaN}',
        b'{"peft_type": "LORA", "peft_type": "IA3"}',
        b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["\\udcff"]}',
        b'{"peft_type": ["LORA"]}',
        "{}".encode("utf-32"),
    ],
    ids=range(12),
)
def test_hard_cases(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"adapter_config\.json") as refused:
        PeftConfig.parse(content)
    assert type(refused.value) is ValueError and printable(refused.value)


# --------------------------------------------------------------------------------- whole folders

NAMES = (
    *(("base_model.model.", ""), (".weight", ".default.weight"), ("lora_A", "lora_embedding_A")),
    *(("model.layers", "layers"), ("lora_B", "lora_b"), ("base_model", "module.base_model")),
    *(("q_proj", "q_proj.base_layer"), (".lora_A.weight", ".lora_A.bias"), ("layers.0", "\n\x00")),
)
Change = Callable[[Path, random.Random], None]
WORDS = (
    *(None, True, False, 0, 1, 2, -1, 3.5, 1e308, float("nan"), float("inf"), 2**70, "", "x"),
    *("q_proj", ["q_proj"], [], {}, {"q_proj": 2}, {"q_proj": 3}, {"q_proj": "2"}, {"(": 1}),
    *({"(a+)+": 2}, [[]], [None], {"": {}}, "pissa", "gaussian", "\x00", "é" * 100, [[1, 2]] * 3),
)


def regular(path: Path) -> Path:
    """`path`, unless a change before has put a pipe there, which nobody would ever write to."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def other_value(folder: Path, choose: random.Random) -> None:
    config = json.loads(regular(folder / CONFIG).read_bytes())
    config[choose.choice([*GOOD, "eva_config", "alora_invocation_tokens"])] = choose.choice(WORDS)
    (folder / CONFIG).write_text(json.dumps(config))


def no_value(folder: Path, choose: random.Random) -> None:
    config = json.loads(regular(folder / CONFIG).read_bytes())
    config.pop(choose.choice([*config]))
    (folder / CONFIG).write_text(json.dumps(config))


def other_bytes(folder: Path, choose: random.Random) -> None:
    file = choose.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    content = bytearray(file.read_bytes())
    for _ in range(choose.randint(1, 8)):
        if content:
            content[choose.randrange(min(len(content), 600))] = choose.randrange(256)
    file.write_bytes(content)


def cut_short(folder: Path, choose: random.Random) -> None:
    file = choose.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
    file.write_bytes(file.read_bytes()[: choose.randrange(file.stat().st_size + 1)])


def other_names(folder: Path, choose: random.Random) -> None:
    tensors = load_file(regular(folder / WEIGHTS))
    old, new = choose.choice(NAMES)
    renamed = {key.replace(old, new): value for key, value in tensors.items()}
    save_file(renamed, folder / WEIGHTS)


def other_shapes(folder: Path, choose: random.Random) -> None:
    tensors = load_file(regular(folder / WEIGHTS))
    key = choose.choice([*tensors])
    tensors[key] = tensors[key].reshape(choose.choice([(-1,), (1, -1), (-1, 1), (1, 1, -1)]))
    save_file(tensors, folder / WEIGHTS)


def other_header(folder: Path, choose: random.Random) -> None:
    """A header of well-formed JSON that says odd things."""
    content = regular(folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    key = choose.choice([*header])
    part = choose.choice(["shape", "data_offsets", "dtype", "whole"])
    value = choose.choice([*WORDS, [0, 0], [0, 2**63], [2**62, 2**62], [5, 3], "F8_E4M3", "I64"])
    if part == "whole" or not isinstance(header[key], dict):
        header[key] = value
    else:
        header[key][part] = value
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def gone(folder: Path, choose: random.Random) -> None:
    choose.choice([path for path in sorted(folder.iterdir()) if path.is_file()]).unlink()


def something_else(folder: Path, choose: random.Random) -> None:
    """A folder, a pipe, a link in its place."""
    path = folder / choose.choice([CONFIG, WEIGHTS, "manifest.json", "README.md", "moves.jsonl"])
    path.unlink(missing_ok=True)
    choose.choice(
        [
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("/etc/hostname"),
            lambda: path.symlink_to("nowhere"),
        ]
    )()


def more_files(folder: Path, choose: random.Random) -> None:
    name = choose.choice(
        ["optimizer.pt", "adapter_model.bin", INDEX, "manifest.json", "README.md", "fit.yaml",
         "origin.json", "moves.jsonl", "0123456789ab", "tokenizer.json", "a\udcff"]
    )  # fmt: skip
    content = choose.choice(
        [b"", b"{}", b"[]", b"\x80\x04.", b"\xff" * 10, b'{"weight_map": {}}\n']
    )
    if not (folder / name).exists():
        (folder / name).write_bytes(content)


CHANGES: tuple[Change, ...] = (
    *(other_value, other_value, no_value, other_bytes, cut_short, other_names, other_shapes),
    *(other_header, gone, something_else, more_files),
)


def ruin(folder: Path, choose: random.Random) -> None:
    """One to three changes; what one has made impossible, the next leaves out."""
    for _ in range(choose.randint(1, 3)):
        try:
            choose.choice(CHANGES)(folder, choose)
        except Exception:
            continue


@pytest.fixture(scope="module")
def vllm() -> bool:
    """vLLM's own loader, to be asked."""
    return vllm_loader.bring_in()


def test_random_folders(quick_disk: Path, vllm: bool) -> None:
    base = make_base(quick_disk / "base")
    store = Store(quick_disk / "store")
    make_adapter(store.root / "good", base)
    template = make_adapter(quick_disk / "template")
    (template / CONFIG).write_text(json.dumps(GOOD))
    signed = shutil.copytree(template, quick_disk / "signed")
    write_manifest(signed, base)
    outcomes = {"offered": 0, "refused": 0, "nothing": 0}
    for seed in range(FIRST, FIRST + FOLDERS):
        choose = random.Random(seed)
        bad = store.root / "bad"
        shutil.copytree(choose.choice([template, signed]), bad)
        ruin(bad, choose)
        try:
            outcomes[judged(store, base)] += 1
            published(quick_disk, bad, base)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {sorted(p.name for p in bad.iterdir())}") from error
        shutil.rmtree(bad)
    print(outcomes)
    assert min(outcomes["offered"], outcomes["refused"]) > FOLDERS // 50


def judged(store: Store, base: BaseCheckpoint) -> str:
    """What becomes of the folder `bad` of a store; `good` is offered in any case."""
    listing = store.listing(base, max_rank=64, hashes=False)
    assert "good" in listing.offered
    store.names()
    verify(store)
    if "bad" in listing.offered:
        assert vllm_loader.refusal(listing.offered["bad"].config.raw) is None
        return "offered"
    if "bad" not in listing.refused:
        return "nothing"
    assert printable(listing.refused["bad"])
    return "refused"


def published(work: Path, folder: Path, base: BaseCheckpoint) -> None:
    """Published, it is in the form that PEFT would have written, or not there."""
    target = Store(work / "target")
    try:
        version = target.publish(folder, "x", base=base)
    except AdapterError as error:
        assert printable(error)
        assert target.names() == []
    else:
        assert AdapterVersion.read(version.path).folder.is_canonical
        assert verify(target) == []
    shutil.rmtree(target.root, ignore_errors=True)


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    make_adapter(store.root / "good")
    secret = make_adapter(store.root / "secret") / CONFIG
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    listing = store.listing()
    assert list(listing.offered) == ["good"]
    assert "adapter_config.json cannot be read: Permission denied" in str(listing.refused["secret"])
