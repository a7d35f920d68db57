"""From settings to vLLM's arguments: our defaults, the user's flags over them."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.manifest import PROMPT, Base, Manifest
from adapters.prompt import PromptFormat
from adapters.recipe import get_recipe
from serving.admission import add_stop
from serving.launch import look_at_base, set_environment, vllm_arguments
from serving.prompts import ServedPrompt
from serving.settings import Settings, SettingsError

# By set_environment, unless the user has.
SET = ("HF_HUB_OFFLINE", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "VLLM_NO_USAGE_STATS")


@pytest.fixture
def settings(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Settings(model=str(base_folder), max_loras=20, max_cpu_loras=2)


def arguments(settings: Settings, tmp_path: Path, *flags: str) -> Namespace:
    base = look_at_base(settings)
    return vllm_arguments(settings, list(flags), base, tmp_path / "template.jinja")


def test_our_defaults(settings: Settings, tmp_path: Path) -> None:
    args = arguments(settings, tmp_path)
    assert args.enable_lora
    assert args.max_lora_rank == 64
    assert (args.max_loras, args.max_cpu_loras) == (20, 21)  # always more on the host
    assert args.generation_config == "vllm"
    assert (args.host, args.port, args.shutdown_timeout) == ("127.0.0.1", 8000, 30)
    assert args.served_model_name[0] == Path(settings.model).name
    assert args.kv_cache_memory_bytes == 2**30


def test_the_familys_prompt_is_the_chat_template(settings: Settings, tmp_path: Path) -> None:
    for family in ("tiny", "qwen2.5"):
        chosen = settings.model_copy(update={"family": family})
        args = arguments(chosen, tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(settings.model)
        template = Path(args.chat_template).read_text()
        wanted = PromptFormat.of(tokenizer, get_recipe(family).prompt)
        assert (template, args.prompt.format) == (wanted.template, wanted)
    assert "boxed" in template


def test_any_base_is_served_without_naming_a_family(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    for file in Path(settings.model).iterdir():
        if file.suffix == ".json":
            (folder / file.name).symlink_to(file)
    caplog.set_level("INFO")
    served = look_at_base(settings.model_copy(update={"model": str(folder)})).prompt
    assert (served.family, served.format.stop) == ("qwen2.5", ("\nQuestion:",))
    assert "recipe 'qwen2.5': model_type 'qwen2'; prompt: a plain question" in caplog.text


def test_a_recipe_of_the_users_own(settings: Settings, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "family: mine\nprompt: {stop: [END], examples: [{question: '1+1?', answer: two}]}\n"
    )
    args = arguments(settings.model_copy(update={"family": str(mine)}), tmp_path)
    assert (args.prompt.family, args.prompt.format.stop) == ("mine", ("END",))
    assert "two" in Path(args.chat_template).read_text()
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        look_at_base(settings.model_copy(update={"family": "absent.yaml"}))


def test_a_gguf_file_is_no_model_folder(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(SettingsError, match=r"python -m training\.gguf"):
        look_at_base(settings.model_copy(update={"model": str(file)}))


def test_an_adapter_of_another_prompt_is_named(settings: Settings) -> None:
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    served = ServedPrompt.of(tokenizer, get_recipe("qwen2.5"))
    manifest = Manifest(name="a", family="x", base=Base(model="m", architecture="x"), files={})

    def complaint(family: str, prompt: str | None = None) -> str | None:
        made_by = {} if prompt is None else {PROMPT: prompt}
        return served.complaint(manifest.model_copy(update={"family": family, "made_by": made_by}))

    assert complaint("qwen2.5") is None
    assert complaint("qwen2.5-instruct") is None  # the same prompt
    assert complaint("of-another-release") is None  # nothing is known of it
    assert complaint("tiny", served.format.digest) is None  # fitted with --prompt.instruction
    assert "--family tiny serves its own" in (complaint("tiny") or "")
    assert "--family FILE.yaml" in (complaint("qwen2.5", "0" * 64) or "")


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({}, ["END"]),
        ({"stop": None}, ["END"]),
        ({"stop": "x"}, ["x", "END"]),
        ({"stop": ["x", "END"]}, ["x", "END"]),
        ({"ignore_eos": True}, []),
    ],
)
def test_a_chat_gets_the_prompts_stop_strings_beside_its_own(
    own: dict[str, Any], wanted: list[str]
) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest

    messages = [{"role": "user", "content": "Hi"}]
    chat = ChatCompletionRequest(messages=messages, **own)
    response = ResponsesRequest(input="Hi", **own | {"stop": own.get("stop") or []})
    for request in (chat, response):
        add_stop(request, ("END",))
        add_stop(request, ("END",))  # vLLM asks twice on some ways
        assert request.stop == wanted
    raw = CompletionRequest(prompt="Hi", stop=["x"])
    tokens = TokenizeChatRequest(messages=messages)
    for request in (raw, tokens):
        add_stop(request, ("END",))
    assert raw.stop == ["x"]


def test_the_users_flags_win(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages }}")
    flags = ["--chat-template", str(mine), "--generation-config", "auto", "--dtype", "float32"]
    args = arguments(settings, tmp_path, *flags, "--served-model-name", "x")
    assert args.chat_template == str(mine)
    assert "replaces the prompt of family 'tiny'" in caplog.text
    assert (args.generation_config, args.dtype) == ("auto", "float32")
    assert args.served_model_name == ["x"]
    with pytest.raises(SettingsError, match="needs LoRA"):
        arguments(settings, tmp_path, "--no-enable-lora")


def test_the_environment_is_the_users_first(
    monkeypatch: pytest.MonkeyPatch, base_folder: Path
) -> None:
    for name in SET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    base = str(base_folder)
    set_environment(Settings(model="owner/model-on-the-hub"))
    controlled = {"model": base, "api_key": "clients", "admin_key": "operators"}
    set_environment(Settings(**controlled, controller_sources="/mnt/adapters/,hf://owner/"))
    for flags in (
        ["--tokenizer", "owner/other"],
        ["--tokenizer=owner/other"],
        ["--speculative-config", '{"model": "owner/draft"}'],
        ["--speculative_config.model", "owner/draft"],
        ["-sc", '{"model": "owner/draft"}'],
        ["--config", "flags.yaml"],
    ):
        set_environment(Settings(model=base), flags)
        assert "HF_HUB_OFFLINE" not in os.environ, flags
    set_environment(Settings(**controlled, controller_sources="/mnt/"), ["--max-model-len", "64"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["VLLM_PLUGINS"] == "theirs,reasonmaxxer_models"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert int(os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 60
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ
    for name in SET:
        monkeypatch.delenv(name, raising=False)  # set by the function, not by monkeypatch
