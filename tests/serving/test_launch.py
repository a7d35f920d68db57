"""From settings to vLLM's arguments: our defaults, the user's flags over them."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from adapters.prompt import chat_template
from adapters.recipe import get_recipe
from serving.launch import look_at_base, set_environment, vllm_arguments
from serving.settings import Settings, SettingsError

# By set_environment, unless the user has.
SET = (
    "HF_HUB_OFFLINE",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "VLLM_NO_USAGE_STATS",
    "VLLM_WORKER_MULTIPROC_METHOD",
)


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
        own = (Path(settings.model) / "chat_template.jinja").read_text()
        template = Path(args.chat_template).read_text()
        assert template == chat_template(get_recipe(family).prompt, own)
    assert "boxed" in template


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
    set_environment("owner/model-on-the-hub")
    assert "HF_HUB_OFFLINE" not in os.environ
    set_environment(str(base_folder))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["VLLM_PLUGINS"] == "theirs,reasonmaxxer,reasonmaxxer_models"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert int(os.environ["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"]) > 60
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ
    for name in SET:
        monkeypatch.delenv(name, raising=False)  # set by the function, not by monkeypatch
