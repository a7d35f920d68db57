"""GGUF in: a file written here from a miniature becomes a folder that computes the same."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, Refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.base_checkpoint import BaseCheckpoint
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from training.gguf import GgufError, adds_bos, convert, main

gguf = pytest.importorskip("gguf")

MODEL = ROOT / "models" / "tiny-llama"
NAMES = {  # llama.cpp's names of Llama's weights
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ggml_name(name: str) -> str:
    """model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight"""
    if name.startswith("model.layers."):
        number, rest = name.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight"}.get(name, "output_norm.weight")


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q and k as llama.cpp orders them for its rotation."""
    shape = (heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


@cache
def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_gguf(path: Path, kind: str, more: dict[str, Any] | None = None, drop: str = "") -> Path:
    """The miniature Llama as a GGUF file; `kind` is the quantisation of its matrices."""
    model = load(MODEL)
    shape, words = model.config, json.loads((MODEL / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"] | {t["content"]: t["id"] for t in words["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), shape.vocab_size)]
    control = {token["content"] for token in words["added_tokens"]}
    values = {
        "general.name": "A Miniature",
        "llama.block_count": shape.num_hidden_layers,
        "llama.context_length": shape.max_position_embeddings,
        "llama.embedding_length": shape.hidden_size,
        "llama.feed_forward_length": shape.intermediate_size,
        "llama.attention.head_count": shape.num_attention_heads,
        "llama.attention.head_count_kv": shape.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": float(shape.rms_norm_eps),
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": shape.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in control else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in words["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    } | (more or {})
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add |= {str: writer.add_string, list: writer.add_array}
        if value is not None:
            add[type(value)](key, value)
    for name, weight in model.state_dict().items():
        if name in ("lm_head.weight", drop):  # tied
            continue
        array = weight.numpy()
        heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
        for module, count in heads.items():
            array = permuted(array, count) if module in name else array
        stored = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        packed = gguf.quants.quantize(np.ascontiguousarray(array), stored)
        writer.add_tensor(ggml_name(name), packed, raw_dtype=stored)
    return finished(writer, path)


def finished(writer: Any, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Path) -> torch.Tensor:
    ids = torch.arange(3, 120)[None]
    with torch.inference_mode():
        return load(model)(ids).logits


@pytest.mark.parametrize(
    ("kind", "dtype", "error"),
    [("F32", "float32", 1e-5), ("F16", "bfloat16", 0.1), ("Q8_0", "bfloat16", 0.5)],
)
def test_the_folder_computes_what_the_model_did(
    tmp_path: Path, kind: str, dtype: Any, error: float
) -> None:
    notes = convert(write_gguf(tmp_path / "m.gguf", kind), tmp_path / "folder", dtype)
    assert notes == []
    base = BaseCheckpoint.open(str(tmp_path / "folder"))
    assert "quantization_config" not in base.config
    assert base.config["dtype"] == dtype
    assert (base.architecture, base.facts.names[1]) == ("LlamaForCausalLM", "A Miniature")
    assert base.shapes  # safetensors
    wanted, found = logits(MODEL), logits(base.folder)
    assert float((wanted - found).abs().max()) < error
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_tokenizer_and_its_template_come_along(tmp_path: Path) -> None:
    sampling = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20}
    end = {"tokenizer.ggml.eot_token_id": 0}
    convert(write_gguf(tmp_path / "m.gguf", "F16", sampling | end), tmp_path / "folder")
    base = BaseCheckpoint.open(str(tmp_path / "folder"))
    renderer = PromptRenderer.load(base.folder, recipe_for(base).prompt)
    shipped = AutoTokenizer.from_pretrained(MODEL)
    text = renderer.text("What is 12+34-567?")
    assert text.startswith("<|im_start|>user\nWhat is 12+34-567?")
    wanted = shipped(text, add_special_tokens=False)["input_ids"]
    assert renderer.token_ids("What is 12+34-567?") == wanted
    assert base.facts.instruct
    generation = json.loads((base.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]
    assert (generation["temperature"], generation["top_k"]) == (0.5, 20)


def test_bos_is_added_where_the_file_asks_for_it(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": None}
    notes = convert(write_gguf(tmp_path / "m.gguf", "F16", more), tmp_path / "folder")
    assert len(notes) == 1 and "no chat template" in notes[0]
    base = BaseCheckpoint.open(str(tmp_path / "folder"))
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    assert tokenizer("a")["input_ids"][0] == 1
    renderer = PromptRenderer.load(base.folder, recipe_for(base).prompt)
    ids = renderer.token_ids("What is 2+2?")
    assert ids.count(1) == 1 and ids[0] == 1
    assert renderer.stop == ("\nQuestion:",)


def test_what_is_doubtful_is_said(tmp_path: Path) -> None:
    more = {"tokenizer.ggml.pre": "klingon", "clip.what": "no"}
    more |= {"tokenizer.chat_template.tool_use": TEMPLATE, "general.name": "Mistral 7B v0.1"}
    notes = " ".join(convert(write_gguf(tmp_path / "m.gguf", "F16", more), tmp_path / "folder"))
    for said in (
        "'klingon' is not known",
        "left out: tool_use",
        "was not read: clip.what",
        "window of 4,096",
    ):
        assert said in notes


@pytest.mark.parametrize(
    ("more", "drop", "said"),
    [
        ({"general.architecture": "klingon"}, "", "the architecture 'klingon'"),
        ({"tokenizer.ggml.model": "rwkv"}, "", "cannot rebuild its tokenizer 'rwkv'"),
        ({"tokenizer.ggml.model": None}, "", "has no tokenizer"),
        ({"split.count": 3}, "", "one of 3 parts"),
        ({}, "model.norm.weight", "lacks weights: model.norm.weight"),
    ],
)
def test_what_cannot_be_converted_says_why(
    tmp_path: Path, more: dict[str, Any], drop: str, said: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", "F16", more, drop)
    with pytest.raises(GgufError, match=said):
        convert(path, tmp_path / "folder")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_damaged_files_end_with_2(tmp_path: Path, refused: Refused) -> None:
    whole = write_gguf(tmp_path / "m.gguf", "F16").read_bytes()
    (tmp_path / "taken").mkdir()
    cases: list[tuple[str, bytes | None, str, str]] = [
        ("absent", None, "out", "No such file"),
        ("text", b"GGML is not GGUF", "out", "not a GGUF file"),
        ("empty", b"", "out", "not a GGUF file"),
        ("m", whole, "taken", "taken exists"),
    ]
    cases += [
        (f"cut-{at}", whole[:at], "out", "damaged or cut short")
        for at in (4, 20, 1000, 20_000, len(whole) // 2, len(whole) - 100)
    ]
    for name, content, out, said in cases:
        path = tmp_path / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        assert said in refused(main, [str(path), "--out", str(tmp_path / out)]), name
    assert not (tmp_path / "out").exists()


def test_bos_by_llama_cpps_defaults() -> None:
    from training.gguf import GgufFile

    def asked(**tokenizer: Any) -> bool:
        metadata = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
        return adds_bos(GgufFile(Path("x"), metadata, {}))

    assert asked(model="llama") and asked(model="gpt2", pre="llama-bpe")
    assert not asked(model="gpt2", pre="qwen2")
    assert not asked(model="llama", add_bos_token=False)


def test_llama_3s_rotary_scaling_is_recognised(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from training.gguf import GgufFile, _rope_scaling

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    shape = LlamaConfig(
        hidden_size=512, num_attention_heads=8, rope_parameters=scaling | {"rope_theta": 500000.0}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](shape, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    for factors, found in (((plain / scaled).numpy(), scaling), (np.full(32, 2.0), {})):
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_float32("llama.rope.freq_base", 500000.0)
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
        said, notes = _rope_scaling(GgufFile.open(finished(writer, path)))
        assert said == found
        assert bool(notes) == (not found)
