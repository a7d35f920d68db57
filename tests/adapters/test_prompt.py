"""Prompts: whose template is used, what a recipe adds to it, and how it becomes token ids.

SmolLM2's tokenizer (Apache-2.0, as `training.gguf` rebuilds it) lies packed in `data/`.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, Refused
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapters.__main__ import main
from adapters.base_checkpoint import BaseCheckpoint
from adapters.prompt import PLAIN_STOP, PromptFormat, PromptRenderer
from adapters.recipe import FewShot, Prompt, Recipe, get_recipe, recipe_for, recipes

SMOLLM2 = Path(__file__).parent / "data" / "smollm2.json.xz"
DIGEST = "63aed9ed1d7cc5c6d748db59080585b52d8187fa21124b14d0451ed2cddc7b19"  # the miniatures'
QUESTION = "What is 17 + 25?"
MARKED = (
    "{%- for m in messages -%}<{{ m['role'] }}>{{ m['content'] }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
)
EXAMPLES = [FewShot(question="1+1?", answer="2"), FewShot(question="2+2?", answer="4 \U0001f600")]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct without its weights."""
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    folder.mkdir()
    for name, content in json.loads(lzma.decompress(SMOLLM2.read_bytes())).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def words(smollm2: Path) -> PreTrainedTokenizerFast:
    """A tokenizer without a chat template that begins texts with a BOS, as Gemma's and Llama's."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.add_bos_token = True
    return tokenizer


def rendered(tokenizer: Any, prompt: Prompt, messages: list[dict[str, str]]) -> str:
    template = PromptFormat.of(tokenizer, prompt).template
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    )


def user(text: str = QUESTION) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# ------------------------------------------------------------------------- whose template it is


def test_smollm2_gets_its_own_template_and_not_llama_3s(smollm2: Path) -> None:
    base = BaseCheckpoint.open(str(smollm2))
    assert base.model_type == "llama" and base.facts.instruct
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for family in recipes():
        found = PromptFormat.of(tokenizer, get_recipe(family).prompt)
        assert found.source == "the tokenizer's own chat template"
        assert found.template.endswith(tokenizer.chat_template)
        assert found.stop == ()
    renderer = PromptRenderer.load(smollm2, recipe_for(base).prompt)
    asked = f"{QUESTION}\n{recipe_for(base).prompt.instruction}"
    ids = renderer.token_ids(QUESTION)
    assert (
        ids == tokenizer.apply_chat_template(user(asked), add_generation_prompt=True)["input_ids"]
    )
    assert tokenizer.decode(ids).count("<|im_start|>system") == 1
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<|im_start|>", "system"]
    assert "17" not in tokenizer.tokenize("17")  # digit by digit, as it was trained


def test_a_tokenizer_without_one_gets_the_recipes_or_a_plain_prompt(words: Any) -> None:
    assert rendered(words, Prompt(chat_template=MARKED), user("Hi")) == "<user>Hi<assistant>"
    plain = PromptFormat.of(words, Prompt())
    assert plain.stop == PLAIN_STOP == ("\nQuestion:",)
    assert "plain" in plain.source
    assert rendered(words, Prompt(), user()) == f"<|endoftext|>Question: {QUESTION}\nAnswer:"
    talk = [{"role": "system", "content": "Be brief."}, *user("1?"), *user("2?")]
    talk.insert(2, {"role": "assistant", "content": " one "})
    assert rendered(words, Prompt(bos=False), talk) == (
        "Be brief.\n\nQuestion: 1?\nAnswer: one\n\nQuestion: 2?\nAnswer:"
    )


def test_a_plain_prompt_has_the_bos_once_where_the_tokenizer_adds_it(words: Any) -> None:
    ids = PromptRenderer.of(words, Prompt()).token_ids(QUESTION)
    assert ids == words(f"Question: {QUESTION}\nAnswer:")["input_ids"]
    assert ids[0] == words.bos_token_id and words.bos_token_id not in ids[1:]
    words.add_bos_token = False
    try:
        without = PromptRenderer.of(words, Prompt()).token_ids(QUESTION)
        assert without == ids[1:]
        assert PromptRenderer.of(words, Prompt(bos=True)).token_ids(QUESTION) == ids
    finally:
        words.add_bos_token = True


def test_of_several_named_templates_the_default_serves_chats(words: Any) -> None:
    words.chat_template = {"default": MARKED, "rag": "{{ documents }}"}
    try:
        assert rendered(words, Prompt(), user("Hi")) == "<user>Hi<assistant>"
    finally:
        words.chat_template = None


# ---------------------------------------------------------------------------- what recipes add


@pytest.mark.parametrize("family", list(recipes()))
def test_every_family_renders_a_user_message(words: Any, family: str) -> None:
    prompt = get_recipe(family).prompt
    text = rendered(words, prompt, user())
    assert text.count(QUESTION) == 1
    if prompt.instruction:
        assert text.count(prompt.instruction) == 1


def test_an_instruction_is_not_written_twice_nor_over_the_users_own(words: Any) -> None:
    system = Prompt(chat_template=MARKED, instruction=r"Use \boxed{}.")
    own = [{"role": "system", "content": "Be brief."}, *user("Hi")]
    assert rendered(words, system, own) == "<system>Be brief.<user>Hi<assistant>"
    in_user = system.model_copy(update={"instruction_role": "user"})
    assert (
        rendered(words, in_user, user("Hi\nUse \\boxed{}."))
        == "<user>Hi\nUse \\boxed{}.<assistant>"
    )


def test_few_shot_examples_are_part_of_the_template(words: Any) -> None:
    shots = "<user>1+1?<assistant>2<user>2+2?<assistant>4 \U0001f600"
    bare = Prompt(chat_template=MARKED, examples=EXAMPLES)
    assert rendered(words, bare, user("Hi")) == f"{shots}<user>Hi<assistant>"
    own = [{"role": "system", "content": "Be brief."}, *user("Hi")]
    assert rendered(words, bare, own) == f"<system>Be brief.{shots}<user>Hi<assistant>"
    asked = bare.model_copy(update={"instruction": "Box it."})
    assert rendered(words, asked, user("Hi")) == f"<system>Box it.{shots}<user>Hi<assistant>"
    in_user = asked.model_copy(update={"instruction_role": "user"})
    assert rendered(words, in_user, user("Hi")) == (
        "<user>1+1?\nBox it.<assistant>2<user>2+2?\nBox it.<assistant>4 \U0001f600"
        "<user>Hi\nBox it.<assistant>"
    )
    assert rendered(words, Prompt(examples=EXAMPLES[:1], bos=False), user("Hi")) == (
        "Question: 1+1?\nAnswer: 2\n\nQuestion: Hi\nAnswer:"
    )


def test_stop_strings_of_the_recipe_win_over_the_plain_prompts(words: Any, smollm2: Path) -> None:
    own = Prompt(stop=["\n\n", "Q:"])
    assert PromptFormat.of(words, own).stop == ("\n\n", "Q:")
    assert PromptFormat.of(AutoTokenizer.from_pretrained(smollm2), own).stop == ("\n\n", "Q:")
    assert PromptFormat.of(words, Prompt(stop=[])).stop == ()
    assert PromptFormat.of(words, Prompt(chat_template=MARKED)).stop == ()


# ------------------------------------------------------------ the miniatures' published prompts


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama", "tiny-qwen3", "tiny-qwen2-hurried"])
def test_shipped_adapters_keep_the_prompt_that_they_were_fitted_with(name: str) -> None:
    base = BaseCheckpoint.open(str(ROOT / "models" / name))
    renderer = PromptRenderer.load(base.folder, recipe_for(base).prompt)
    assert renderer.stop == ()
    assert renderer.text(QUESTION) == (
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderer.digest == DIGEST


# ------------------------------------------------------------------------------- the command


def test_the_command_shows_a_prompt_to_the_token(
    smollm2: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["prompt", "--model", str(smollm2), QUESTION]) == 0
    out = capsys.readouterr().out
    assert "generic: no other recipe is for 'SmolLM2-135M-Instruct'" in out
    assert "the tokenizer's own chat template" in out
    assert "       1  '<|im_start|>'" in out
    renderer = PromptRenderer.load(smollm2, get_recipe("generic").prompt)
    assert renderer.text(QUESTION) in out

    mine = tmp_path / "mine.yaml"
    mine.write_text("family: mine\nprompt: {stop: [END]}\n")
    main(["prompt", "--model", str(smollm2), "--family", str(mine), "--json", QUESTION])
    facts = json.loads(capsys.readouterr().out)
    own = PromptRenderer.load(smollm2, Recipe(family="mine").prompt)
    assert facts["token_ids"] == own.token_ids(QUESTION)
    assert (facts["recipe"], facts["stop"]) == ("mine", ["END"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "BASE", "--family", "klingon"], "'klingon' is unknown"),
        (["--model", "EMPTY"], "no tokenizer"),
        (["--model", "FILE"], "python -m training.gguf"),
    ],
)
def test_bad_input_ends_with_2(
    smollm2: Path, tmp_path: Path, refused: Refused, flags: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "file.gguf").write_bytes(b"GGUF")
    paths = {"BASE": smollm2, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file.gguf"}
    argv = [str(paths.get(flag, flag)) for flag in flags]
    assert said in refused(main, ["prompt", *argv, QUESTION])
