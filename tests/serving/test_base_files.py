"""The launcher looks at the files that the engine will load: revision, folder, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.base_files import BaseFiles
from serving.launch import look_at_base
from serving.settings import Settings, SettingsError
from serving.vllm_flags import parse

FIRST, SECOND = "1" * 40, "2" * 40  # commits
HUB_ID = "owner/base"


def fill(snapshot: Path, base: Path, former_name: str) -> None:
    """A revision of the shipped base whose config names what it was made from."""
    snapshot.mkdir(parents=True)
    for file in base.iterdir():
        if file.suffix in (".json", ".safetensors"):
            (snapshot / file.name).symlink_to(file.resolve())
    config = json.loads((base / "config.json").read_text())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps(config | {"_name_or_path": former_name}))


@pytest.fixture
def cache(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with two revisions of a base; the hub itself is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--owner--base"
    for commit, name, reference in ((FIRST, "tiny", "main"), (SECOND, "Qwen2.5-7B", "v2")):
        fill(repository / "snapshots" / commit, base_folder, name)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(commit)
    return tmp_path / "cache"


def flags(cache: Path, *more: str) -> list[str]:
    return ["--download-dir", str(cache), *more]


def test_the_revision_and_the_folder_are_the_engines(cache: Path) -> None:
    settings = Settings(model=HUB_ID)
    first = look_at_base(settings, flags(cache))
    second = look_at_base(settings, flags(cache, "--revision", "v2"))
    assert first.checkpoint.folder.name == FIRST
    assert second.checkpoint.folder.name == second.checkpoint.revision == SECOND
    assert second.names == [HUB_ID]
    assert "Qwen2.5-7B" in second.checkpoint.facts.names
    assert second.checkpoint.shapes  # the weights, where the engine will find them
    by_commit = look_at_base(settings, flags(cache, "--revision", SECOND))
    assert by_commit.checkpoint.folder == second.checkpoint.folder


def test_a_revision_that_is_not_there_is_named(cache: Path) -> None:
    with pytest.raises(SettingsError, match=rf"--model {HUB_ID} --revision v3: neither"):
        look_at_base(Settings(model=HUB_ID), flags(cache, "--revision", "v3"))


def test_a_folder_has_no_revisions(base_folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"--revision v2: .* is a folder, without revisions"):
        look_at_base(Settings(model=str(base_folder)), ["--revision", "v2"])


def test_the_tokenizer_is_the_one_that_renders_chats(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    other = tmp_path / "tokenizer"
    other.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((base_folder / name).read_text())
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }} of mine")
    found = look_at_base(Settings(model=str(base_folder)), ["--tokenizer", str(other)])
    assert "of mine" in found.prompt.format.template


def test_every_flag_that_names_files_is_taken(base_folder: Path) -> None:
    line = [
        *("--model", str(base_folder), "--revision", "a", "--code-revision", "b"),
        *("--tokenizer", "c", "--tokenizer-revision", "d", "--download-dir", "e"),
        *("--trust-remote-code", "--hf-token", "f"),
    ]
    assert BaseFiles.of(parse(line)) == BaseFiles(
        model=str(base_folder),
        revision="a",
        code_revision="b",
        tokenizer="c",
        tokenizer_revision="d",
        download_dir="e",
        trust_remote_code=True,
        token="f",
    )
