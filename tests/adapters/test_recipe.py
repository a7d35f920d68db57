"""Recipes: each loads, and each base model finds its own, by more than its folder's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.base_checkpoint import BaseCheckpoint
from adapters.recipe import GENERIC, ModelFacts, find_recipe, get_recipe, look_up, recipes

IM_END = {"content": "<|im_end|>"}
CHATML = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    ("model", "model_type", "family"),
    [
        ("tiny-qwen2", "qwen2", "tiny"),
        ("tiny-qwen3", "qwen3", "tiny"),
        ("tiny-llama", "llama", "tiny"),
        ("tiny-qwen2-hurried", "qwen2", "tiny"),
        ("runs/models/tiny-llama-large", "llama", "tiny-large"),
        ("Qwen/Qwen2.5-1.5B", "qwen2", "qwen2.5"),
        ("Qwen/Qwen2.5-Math-7B", "qwen2", "qwen2.5"),
        ("Qwen/Qwen3-0.6B", "qwen3", "qwen3"),
        ("meta-llama/Llama-3.2-1B", "llama", "llama"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama", "llama"),
        ("mistralai/Mistral-7B-v0.1", "mistral", "mistral"),
        ("google/gemma-3-270m-it", "gemma3_text", "gemma"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", "deepseek-r1-distill"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", "deepseek-r1-distill"),
        ("somebody/a-fine-tune", "mistral", "mistral"),
        ("somebody/another", "gemma2", "gemma"),
        ("HuggingFaceTB/SmolLM2-135M", "llama", GENERIC),
        ("meta-llama/Llama-2-7b-hf", "llama", GENERIC),
        ("some-model", "mamba", GENERIC),
    ],
)
def test_a_model_finds_its_family(model: str, model_type: str, family: str) -> None:
    found = find_recipe(ModelFacts((model,), model_type))
    assert found.recipe.family == family
    assert model in found.reason or model_type in found.reason


def make_folder(folder: Path, **files: Any) -> BaseCheckpoint:
    """A model folder without weights: `config`, `tokenizer_config`, `template`, `card`, ..."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"} | files["config"]))
    for name in ("tokenizer_config", "generation_config", "tokenizer"):
        if name in files:
            (folder / f"{name}.json").write_text(json.dumps(files[name]))
    if "template" in files:
        (folder / "chat_template.jinja").write_text(files["template"])
    if "card" in files:
        (folder / "README.md").write_text(files["card"])
    return BaseCheckpoint.open(str(folder))


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"config": {}}, "qwen2.5"),
        ({"config": {"_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}}, "qwen2.5-instruct"),
        ({"config": {"_model_name_or_path": "Qwen2.5 0.5B Instruct AWQ"}}, "qwen2.5-instruct"),
        ({"config": {"_model_name_or_path": "Llama 3.2 1B"}}, "llama"),
        ({"config": {"_model_name_or_path": "DeepSeek R1 Distill Llama"}}, "deepseek-r1-distill"),
        ({"config": {}, "card": "---\nbase_model: google/gemma-2-2b\n---\n"}, "gemma"),
        ({"config": {}, "card": "---\nbase_model: [a/b, Qwen/Qwen3-4B]\n---\n"}, "qwen3"),
        ({"config": {}, "card": "---\nbase_model: {\n---\n"}, "qwen2.5"),
        # A base model's template does not contain the token that ends its answers.
        (
            {"config": {}, "template": CHATML, "tokenizer_config": {"eos_token": "<|endoftext|>"}},
            "qwen2.5",
        ),
        (
            {"config": {}, "template": CHATML, "tokenizer_config": {"eos_token": "<|im_end|>"}},
            "qwen2.5-instruct",
        ),
        (
            {
                "config": {},
                "tokenizer_config": {"eos_token": IM_END, "chat_template": CHATML},
            },
            "qwen2.5-instruct",
        ),
        # One that ends with more tokens than the tokenizer names.
        (
            {
                "config": {},
                "template": CHATML,
                "tokenizer_config": {"eos_token": "<|endoftext|>"},
                "generation_config": {"eos_token_id": [0, 7]},
                "tokenizer": {"added_tokens": [{"id": 7, "content": "<|im_end|>"}]},
            },
            "qwen2.5-instruct",
        ),
        ({"config": {"model_type": "llama", "vocab_size": 128256}}, "llama"),
        ({"config": {"model_type": "llama", "vocab_size": 49152}}, GENERIC),
        ({"config": {"model_type": "gemma3", "text_config": {"vocab_size": 9}}}, "gemma"),
    ],
)  # fmt: skip
def test_a_renamed_folder_is_found_by_what_is_in_it(
    tmp_path: Path, files: dict[str, Any], family: str
) -> None:
    base = make_folder(tmp_path / "my-model", **files)
    assert look_up(base).recipe.family == family


def test_the_generic_recipe_is_asked_last() -> None:
    assert list(recipes())[-1] == GENERIC
    assert not recipes()[GENERIC].models and not recipes()[GENERIC].model_types


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"known: .*tiny.*\.yaml file"):
        get_recipe("nope")
    with pytest.raises(ValueError, match="unknown"):  # a manifest must not name a file
        get_recipe("/etc/recipe.yaml")


def test_a_user_may_give_a_recipe_of_their_own(tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base", config={})
    mine = tmp_path / "mine.yaml"
    mine.write_text("family: mine\nprompt: {examples: [{question: 1+1, answer: '2'}]}\n")
    assert look_up(base, str(mine)).recipe.prompt.examples[0].answer == "2"
    for wrong, said in (
        ("family: mine\nprompt: {stop: ['']}", r"prompt\.stop"),
        ("family: mine\nmodels: ['(']", "mine.yaml"),
        ("family: UPPER", "family"),
        ("{", "mine.yaml"),
    ):
        mine.write_text(wrong)
        with pytest.raises(ValueError, match=said):
            look_up(base, str(mine))
    with pytest.raises(ValueError, match=r"absent\.yaml"):
        look_up(base, str(tmp_path / "absent.yaml"))
