"""Settings: precedence, what passes through to vLLM, what is refused and how."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import ROOT

from adapters import places
from adapters.store import SHIPPED
from loadtests.preloaded import Command
from serving.settings import PREFIX, SettingsError, from_command_line


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_defaults_are_the_shipped_base_and_store_on_loopback() -> None:
    settings, flags = from_command_line([])
    assert settings.model == str(ROOT / "models" / "tiny-qwen2")
    assert settings.adapters == SHIPPED
    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8000, None)
    assert flags == []


def test_an_installed_package_has_no_base_and_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SHIPPED_MODEL", tmp_path / "models" / "tiny-qwen2")
    with pytest.raises(SettingsError, match=r"--model, .*name a base model: a folder or a hub id$"):
        from_command_line([])
    assert from_command_line(["--model", "any"])[0].model == "any"


def test_flag_over_environment_over_yaml_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "serving.yaml"
    config.write_text("port: 1001\nmax_loras: 2\nfamily: tiny\nmax_lora_rank: 8\n")
    monkeypatch.setenv(f"{PREFIX}PORT", "1002")
    monkeypatch.setenv(f"{PREFIX}MAX_LORAS", "3")
    settings, _ = from_command_line(["--config", str(config), "--port", "1003"])
    assert (settings.port, settings.max_loras, settings.family) == (1003, 3, "tiny")
    assert settings.max_lora_rank == 8
    assert settings.max_cpu_loras == 16


def test_vllm_flags_pass_through_untouched_after_those_of_the_yaml_file(tmp_path: Path) -> None:
    config = tmp_path / "serving.yaml"
    config.write_text(
        "engine:\n  dtype: float32\n  enforce_eager: true\n  async_scheduling: false\n"
        "  served_model_name: [a, b]\n  revision:\n"
        "  speculative_config: {method: ngram, num_speculative_tokens: 4}\n"
    )
    line = ["--max-num-seqs", "64", "--port=7", "--max-lora", "x", "-tp", "2", "--dtype=bfloat16"]
    settings, flags = from_command_line(["--config", str(config), *line])
    assert settings.port == 7
    assert flags == [
        *("--dtype", "float32", "--enforce-eager", "--no-async-scheduling"),
        *("--served-model-name", "a", "b"),
        *("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}'),
        *("--max-num-seqs", "64", "--max-lora", "x", "-tp", "2", "--dtype=bfloat16"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--port", "0"], "--port"),
        (["--port", "eight"], "--port"),
        (["--max-lora-rank", "33"], "16, 32, 64"),
        (["--max-loras", "0"], "--max-loras"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout"),
        (["--default-gate-rate", "0.001"], "--default-gate-rate: .*0.005"),
        (["--default-gate-rate", "1"], "--default-gate-rate"),
        (["--default-gate-rate", "0.1", "--gate", "off"], "--default-gate-rate: .*--gate on"),
        (["--api-key", " "], "must not be empty"),
        (["--config", "no-such-file.yaml"], "no-such-file.yaml"),
    ],
)
def test_bad_values_are_named(line: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        from_command_line(line)


def test_bad_yaml_is_named(tmp_path: Path) -> None:
    config = tmp_path / "serving.yaml"
    for text, words in (
        ("dtype: float32", "belong under 'engine'"),
        ("[1, 2]", "must be a mapping"),
        ("a: [", "serving.yaml"),
        *(
            (f"engine: {{{name}: 1}}", f"{name} is a setting of its own")
            for name in ("model", "max-loras", "api_key")
        ),
    ):
        config.write_text(text)
        with pytest.raises(SettingsError, match=words):
            from_command_line(["--config", str(config)])


@pytest.mark.parametrize(
    "text", ["hf_token: swordfish", "engine: {port: 1, hf_token: swordfish}", "apikey: swordfish"]
)
def test_a_misplaced_secret_is_not_shown(tmp_path: Path, text: str) -> None:
    config = tmp_path / "serving.yaml"
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        from_command_line(["--config", str(config)])
    assert "swordfish" not in str(caught.value)
    assert "engine" in str(caught.value)


def test_vllms_variable_of_the_key_covers_all_paths_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    settings, _ = from_command_line([])
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "theirs"
    settings, _ = from_command_line(["--api-key", "ours"])
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "ours"
    with pytest.raises(SettingsError, match="must differ from the API key"):
        from_command_line(["--admin-key", "theirs"])


def test_our_flags_may_have_underscores_as_vllms() -> None:
    settings, flags = from_command_line(["--max_loras", "2", "--api_key=k", "--max_num_seqs", "8"])
    assert settings.max_loras == 2
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "k"
    assert flags == ["--max_num_seqs", "8"]


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}API_KEY", "s3cret")
    settings, _ = from_command_line([])
    assert "s3cret" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(SettingsError) as error:
        from_command_line(["--api-key", ""])
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--port", "eight"], "--port"),
        (["--port"], "--port"),
        (["--model", "no/such/model"], "--model no/such/model"),
        (["--model", "adapters"], "no config.json"),
        (["--adapters", "no-such-folder"], "--adapters no-such-folder"),
        (["--family", "klingon"], "known: "),
        (["--no-such-flag"], "--no-such-flag"),
        (["--pipeline-parallel-size", "2"], "--pipeline-parallel-size: not together with the gate"),
    ],
)
def test_a_server_told_wrong_ends_with_2_and_the_reason(
    serving: Command, line: list[str], words: str, base_folder: Path
) -> None:
    model = [] if "--model" in line else ["--model", str(base_folder)]
    ended = serving.run([*model, *line])
    assert ended.returncode == 2, ended.output
    assert words in ended.output
    assert "Traceback" not in ended.output
