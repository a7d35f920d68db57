"""Any base that vLLM knows, over HTTP: found without a family, prompted as in training, exact.

A miniature Gemma 3 without a chat template is served in every run, with the gate off. A real model
whose folder REASONMAXXER_REAL_MODEL names (Gemma-3-270m, say) is served gated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from gate_models import WINDOW, make_adapters, make_model
from gate_reference import Asked, Reference
from support import ROOT, Server, StartServer, adapter_folder, sign
from transformers import AutoTokenizer

from adapters.base_checkpoint import BaseCheckpoint
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for

TAU = 1.5
RECIPE = """
family: few-shot
prompt:
  stop: [e]
  examples:
    - question: What is 3+4?
      answer: The answer is 7.
"""


def chat(server: Server, model: str, question: str, **more: Any) -> Any:
    """A greedy answer with its token ids."""
    body = {"return_token_ids": True} | more.pop("extra_body", {})
    return server.client(timeout=600).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        extra_body=body,
        **{"max_tokens": 40} | more,
    )


# ------------------------------------------------------------------------- a miniature Gemma 3


@pytest.fixture(scope="module")
def gemma(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a miniature Gemma 3 under a name that tells nothing, with the gate off."""
    work = tmp_path_factory.mktemp("any-base")
    folder = make_model("gemma3", work / "some-model", vocab=384)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-qwen2")
    tokenizer.chat_template, tokenizer.bos_token = None, "<|im_start|>"
    tokenizer.add_bos_token = True
    tokenizer.save_pretrained(folder)
    make_adapters(folder, work / "store", ["all"])
    sign(work / "store" / "all", folder)
    (work / "recipe.yaml").write_text(RECIPE)
    flags = ("--gate", "off", "--family", str(work / "recipe.yaml"))
    with start_server(folder, work / "store", work, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def trained(gemma: Server) -> PromptRenderer:
    """What the trainer renders with."""
    base = BaseCheckpoint.open(str(gemma.base))
    assert recipe_for(base).family == "gemma"  # by its architecture
    return PromptRenderer.load(
        base.folder, recipe_for(base, f"{gemma.store.parent}/recipe.yaml").prompt
    )


def test_a_plain_prompt_is_the_trainers_token_for_token(
    gemma: Server, trained: PromptRenderer
) -> None:
    question = "What is 5+6?"
    for model in (gemma.base.name, "all"):
        ids = chat(gemma, model, question, max_tokens=1).prompt_token_ids
        assert ids == trained.token_ids(question)
        assert ids[0] == 1 and ids.count(1) == 1  # BOS
    assert trained.text(question).endswith(
        "Question: What is 3+4?\nAnswer: The answer is 7.\n\nQuestion: What is 5+6?\nAnswer:"
    )


def test_the_recipes_stop_strings_end_chats_alone(gemma: Server, trained: PromptRenderer) -> None:
    assert trained.stop == ("e",)
    ended = 0
    for number in range(6):
        question = f"What is {number}+6?"
        whole = chat(gemma, "all", question, extra_body={"ignore_eos": True}).choices[0]
        text = whole.message.content
        stopped = chat(gemma, "all", question, stop=["never said"]).choices[0]
        if stopped.stop_reason == "e":
            ended += 1
            assert stopped.message.content == text[: text.index("e")]
            assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
        raw = gemma.client().completions.create(
            model="all", prompt=trained.token_ids(question), max_tokens=40, temperature=0
        )
        assert text.startswith(raw.choices[0].text)
        assert raw.choices[0].stop_reason != "e"
    assert ended > 2


def test_a_prompt_longer_than_the_window_equals_peft(
    gemma: Server, trained: PromptRenderer
) -> None:
    reference = Reference(gemma.base, {"all": adapter_folder(gemma.store, "all")})
    compared = 0
    for number in range(4):
        question = "What is 5+6? " * (6 + number)
        ids = trained.token_ids(question)
        assert len(ids) > 3 * WINDOW
        for model, adapter in ((gemma.base.name, None), ("all", "all")):
            answer = chat(gemma, model, question, extra_body={"ignore_eos": True})
            wanted = reference.decode(Asked(ids, adapter)).tokens
            assert answer.choices[0].token_ids[: len(wanted)] == wanted
            compared += len(wanted)
    assert compared > 50


def test_gate_off(gemma: Server) -> None:
    names = [model.id for model in gemma.client().models.list()]
    assert names == [gemma.base.name, "all"]
    with pytest.raises(openai.NotFoundError):
        chat(gemma, "all:gated", "Hi")
    chat(gemma, "all", "Hi")
    page = gemma.page()
    assert 'reasonmaxxer_generated_tokens_total{adapter="all"' in page
    assert "reasonmaxxer_gated_tokens_total{" not in page


def test_an_adapter_of_another_prompt_is_named_in_the_log(gemma: Server) -> None:
    assert "recipe 'few-shot': read from" in gemma.log
    assert "was fitted with the prompt of family 'tiny'" in gemma.log


# ------------------------------------------------------------------------------ a real model


@pytest.mark.timeout(1800)  # minutes on two cores
@pytest.mark.skipif(
    "REASONMAXXER_REAL_MODEL" not in os.environ, reason="REASONMAXXER_REAL_MODEL=FOLDER"
)
def test_a_real_model_gated_equals_transformers_and_peft(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = Path(os.environ["REASONMAXXER_REAL_MODEL"]).absolute()
    store = tmp_path / "store"
    make_adapters(folder, store, ["all"], strength=0.1)
    sign(store / "all", folder)
    base = BaseCheckpoint.open(str(folder))
    renderer = PromptRenderer.load(folder, recipe_for(base).prompt)
    window = base.config.get("sliding_window") or 0
    questions = ["What is 17 * 3 + 5?", "Who wrote Faust?", "Name a prime above 90."]
    sentence = "Anna has 3 apples, and Ben has 4 more than she. "
    questions.append(sentence * (1 + (window + 60) // 12) + "How many has Ben?")
    lengths = [len(renderer.token_ids(question)) for question in questions]
    assert lengths[-1] > window + 40
    flags = ("--max-model-len", str(lengths[-1] + 64), "--kv-cache-memory-bytes", str(2**29))
    answers, points = 0, 0
    with start_server(folder, store, tmp_path, *flags) as server:
        reference = Reference(folder, {"all": adapter_folder(store, "all")})
        for question in questions:
            ids = renderer.token_ids(question)
            for model, adapter, tau in (
                (base.name, None, None),
                ("all", "all", None),
                ("all:gated", "all", TAU),
            ):
                gate = {"vllm_xargs": {"gate_tau": TAU, "gate_trace": 1}} if tau else {}
                more = {"ignore_eos": True} | gate
                answer = chat(server, model, question, max_tokens=24, extra_body=more)
                assert answer.prompt_token_ids == ids
                wanted = reference.decode(Asked(ids, adapter, tau, 24))
                count = len(wanted.tokens)
                choice = answer.choices[0]
                assert choice.token_ids[:count] == wanted.tokens, (model, question)
                if tau:
                    trace = [entry["position"] for entry in choice.gate_trace]
                    opened = [len(ids) - 1 + at for at in trace if at < count]
                    assert opened == wanted.points
                    points += len(opened)
                answers += count > 0
    print(f"{base.name}: {answers} answers of 12, {points} decision points, prompts {lengths}")
    assert answers >= 10
    assert points > 5
