"""GGUF adapters: what llama.cpp computes from the file is the update that PEFT computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.adapter import AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.gguf_adapter import write_gguf
from adapters.store import Store

gguf = pytest.importorskip("gguf")
from origins import ATTENTION, MLP, lora, peft_updates, small_base  # noqa: E402


def updates(path: Path) -> dict[str, Any]:
    """Weight in llama.cpp -> what it adds to it: alpha / rank of lora_b, times B A."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    found = {}
    for name in names:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found[name] = alpha / b.shape[1] * (b @ a)
    return found


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_update_is_pefts(tmp_path: Path, family: str) -> None:
    base = small_base(family, tmp_path / "base")
    folder = lora(
        base,
        tmp_path / "made",
        target_modules=ATTENTION + MLP,
        use_rslora=True,
        rank_pattern={"q_proj": 3},
        alpha_pattern={"up_proj": 5},
    )
    opened = BaseCheckpoint.open(str(base))
    write_gguf(AdapterVersion.read(folder), opened, tmp_path / "made.gguf")
    with pytest.raises(FileExistsError):
        write_gguf(AdapterVersion.read(folder), opened, tmp_path / "made.gguf")
    found, wanted = updates(tmp_path / "made.gguf"), peft_updates(base, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    assert len(found) == len(wanted) == 14
    heads = {"q_proj": 4, "k_proj": 2}
    for module, update in wanted.items():
        theirs = found[f"{names.get_name(module)}.weight"]
        last = module.rpartition(".")[2]
        if family == "llama" and last in heads:
            theirs = turned_back(theirs, heads[last])
        np.testing.assert_allclose(theirs, update, atol=1e-5)


def turned_back(weight: Any, heads: int) -> Any:
    """As transformers reads a Llama's GGUF file (its LlamaTensorProcessor)."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(2, 1).reshape(weight.shape)


def test_what_llama_cpp_cannot_apply_is_refused(
    tmp_path: Path, store: Store, run: Callable[..., str]
) -> None:
    base = small_base("llama", tmp_path / "base")
    opened = BaseCheckpoint.open(str(base))
    head = lora(base, tmp_path / "head", target_modules=["q_proj", "lm_head"])
    import_adapter(store, str(head), "head", base=opened)
    good = lora(base, tmp_path / "good")
    import_adapter(store, str(good), "good", base=opened)
    target = tmp_path / "x.gguf"
    flags = (target, "--store", store.root)
    told = run("export", "head", *flags, "--base", base, code=2)
    assert "applies no LoRA to 'lm_head'" in told
    assert "--base: a GGUF adapter needs the base" in run("export", "good", *flags, code=2)
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["XForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config))
    told = run("export", "good", *flags, "--base", base, code=2)
    assert "XForCausalLM has no GGUF adapter here" in told
    assert not target.exists()
