"""Adapters as other programs write them: each a LoRA that PEFT made, in another form.

made = make_all(base, folder)       # name -> Origin
made["shards"].folder               # what somebody would import
made["shards"].judge                # the same LoRA as PEFT itself wrote it, for its logits
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from support import configured

from adapters.peft_config import FILE as CONFIG
from adapters.peft_folder import INDEX, WEIGHTS

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model."
STRENGTH = 0.6
PEFT_CONFIGS = Path(__file__).parent / "adapters" / "data" / "peft-configs.json"  # by version


class Origin(NamedTuple):
    """A folder to import, and PEFT's own folder of the same LoRA."""

    folder: Path
    judge: Path


def lora(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A LoRA with random weights as PEFT saves it; `settings` are those of LoraConfig."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    save = settings.pop("save", {})
    options = {"r": 8, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": False}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(task_type="CAUSAL_LM", **(options | settings)),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.normal_(0, STRENGTH / weight.shape[1] ** 0.5)
            elif "lora_embedding_A" in name:
                weight.normal_(0, 1)
    model.save_pretrained(str(folder), **({"save_embedding_layers": False} | save))
    return folder


def small_base(family: str, folder: Path) -> Path:
    """A random base of two layers: four heads, two of keys and values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **{"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(str(folder))
    return folder


def peft_updates(base: Path, folder: Path) -> dict[str, Any]:
    """Module -> PEFT's own update of its weight."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().numpy()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


# ----------------------------------------------------------------- the same LoRA, written otherwise


def rekeyed(folder: Path, rename: Callable[[str], str]) -> None:
    """Give every tensor another name."""
    tensors = {rename(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def trainer(folder: Path) -> None:
    """What transformers' Trainer leaves beside the weights."""
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (folder / name).write_bytes(b"\x80\x04.")
    (folder / "trainer_state.json").write_text('{"global_step": 500}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "global_step500").mkdir()


def sharded(folder: Path, count: int = 3) -> None:
    """Several files and an index, as transformers saves what is larger than max_shard_size."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where: dict[str, str] = {}
    for number in range(count):
        name = f"adapter_model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key].clone() for key in sorted(tensors)[number::count]}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))


def value_head(folder: Path) -> None:
    """TRL's model with a value head, saved as a whole."""
    rekeyed(folder, lambda key: f"pretrained_model.{key}")
    tensors = load_file(folder / WEIGHTS)
    tensors |= {"v_head.summary.weight": torch.ones(1, 64), "v_head.summary.bias": torch.ones(1)}
    save_file(tensors, folder / WEIGHTS)


def unsloth(folder: Path) -> None:
    """Unsloth names modules by a regular expression, and the base by its quantised copy."""
    inner = "(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    configured(
        folder,
        base_model_name_or_path="unsloth/qwen3-8b-unsloth-bnb-4bit",
        auto_mapping={"base_model_class": "Qwen3ForCausalLM", "unsloth_fixed": True},
        target_modules=r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?" + inner + ".*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:" + inner + "))",
    )


def old_peft(folder: Path) -> None:
    """The keys that PEFT 0.10 wrote, and no others."""
    config = json.loads((folder / CONFIG).read_text())
    keys = json.loads(PEFT_CONFIGS.read_text())["0.10.0"]
    (folder / CONFIG).write_text(json.dumps({key: config[key] for key in keys}))


def half(folder: Path) -> None:
    """The weights in bfloat16, as most are."""
    tensors = {key: value.bfloat16() for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def marked(folder: Path) -> None:
    """A configuration that an editor on Windows saved."""
    (folder / CONFIG).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())


def default_keys(key: str) -> str:
    """As in the state dict of a PEFT model."""
    return key.replace(".weight", ".default.weight")


def between(key: str) -> str:
    """With what torch.compile, FSDP and activation checkpoints put into names."""
    return key.replace("model.layers", "_orig_mod.model._fsdp_wrapped_module.layers").replace(
        ".mlp.", "._checkpoint_wrapped_module.mlp."
    )


FORMS: dict[str, Callable[[Path], None]] = {
    "checkpoint of Trainer": trainer,
    "shards with an index": sharded,
    "names of a state dict": lambda folder: rekeyed(folder, default_keys),
    "names without PEFT's prefix": lambda folder: rekeyed(
        folder, lambda key: key.removeprefix(PREFIX)
    ),
    "names of DDP": lambda folder: rekeyed(folder, lambda key: f"module.{key}"),
    "names of torch.compile and FSDP": lambda folder: rekeyed(folder, between),
    "names of a bare AutoModel": lambda folder: rekeyed(
        folder, lambda key: key.replace("model.model.layers", "model.layers")
    ),
    "TRL with a value head": value_head,
    "Unsloth": unsloth,
    "PEFT 0.10": old_peft,
    "bfloat16": half,
    "UTF-8 with a byte order mark": marked,
}
# What LoraConfig is asked for; PEFT's own folder is imported as it is.
SETTINGS: dict[str, dict[str, Any]] = {
    "PEFT": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 4},
    "a rank pattern": {"rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 16}},
    "an alpha pattern": {"alpha_pattern": {"o_proj": 32, "^model.layers.0.self_attn.k_proj": 1}},
    "rsLoRA with both patterns": {
        "use_rslora": True,
        "target_modules": ATTENTION + MLP,
        "rank_pattern": {"mlp.up_proj": 2, r".*\.1\.self_attn\.q_proj": 12},
        "alpha_pattern": {"up_proj": 3.5, "down_proj": 16, "model.layers.1.self_attn.q_proj": 5},
    },
    "Gaussian initial weights": {"init_lora_weights": "gaussian"},
    "LoRA on head and embedding": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "a copy of the embedding": {"save": {"save_embedding_layers": True}},
}


def make_all(base: Path, folder: Path) -> dict[str, Origin]:
    """Every form and every setting, on `base`."""
    made = {}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        path = lora(base, folder / f"setting-{seed}", seed, **dict(settings))
        made[name] = Origin(path, path)
    judge = lora(base, folder / "judge", 100, target_modules=ATTENTION + MLP)
    judge_half = shutil.copytree(judge, folder / "judge-half")
    half(judge_half)
    for number, (name, write) in enumerate(FORMS.items()):
        path = shutil.copytree(judge, folder / f"form-{number}")
        write(path)
        made[name] = Origin(path, judge_half if write is half else judge)
    return made
