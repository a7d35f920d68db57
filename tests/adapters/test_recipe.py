"""Recipes: each loads, finds its models, and renders a plain user message with its instruction."""

import jinja2
import pytest

from adapters.prompt import chat_template
from adapters.recipe import Prompt, get_recipe, recipe_for, recipes

PLAIN = (
    "{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)


def render(template: str, messages: list[dict[str, str]]) -> str:
    return (
        jinja2.Environment()
        .from_string(template)
        .render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    )


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
        ("mistralai/Mistral-7B-v0.1", "mistral", "mistral"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", "deepseek-r1-distill"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", "deepseek-r1-distill"),
        ("somebody/a-fine-tune", "mistral", "mistral"),
    ],
)
def test_a_model_finds_its_family(model: str, model_type: str, family: str) -> None:
    assert recipe_for(model, model_type).family == family


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"family: .*--family.*qwen2\.5"):
        recipe_for("some-model", "mamba")
    with pytest.raises(ValueError, match=r"known: .*tiny"):
        get_recipe("nope")


@pytest.mark.parametrize("family", list(recipes()))
def test_every_family_renders_a_user_message(family: str) -> None:
    prompt = get_recipe(family).prompt
    text = render(chat_template(prompt, PLAIN), [{"role": "user", "content": "What is 2+2?"}])
    assert "What is 2+2?" in text
    if prompt.instruction:
        assert text.count(prompt.instruction) == 1


def test_an_instruction_is_not_written_twice_nor_over_the_users_own() -> None:
    system = Prompt(instruction=r"Use \boxed{}.")
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(chat_template(system, PLAIN), own) == "<system>Be brief.<user>Hi<assistant>"
    user = Prompt(instruction=r"Use \boxed{}.", instruction_role="user")
    said = [{"role": "user", "content": "Hi\nUse \\boxed{}."}]
    assert render(chat_template(user, PLAIN), said) == "<user>Hi\nUse \\boxed{}.<assistant>"


def test_no_template_at_all_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"prompt\.chat_template"):
        chat_template(Prompt(), None)
