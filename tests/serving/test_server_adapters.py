"""Adapters of the store behind the real server: refused with a reason, added, replaced, removed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support import Reference, Server, make_adapter, until
from test_server_protocol import PROMPT, complete

from adapters.collect import collect
from adapters.store import Store

REFUSED = {
    "corrupt": "adapter_model.safetensors: cut short",
    "tampered": "hash differs",
    "pickled": "pickled weights",
    "odd-config": "adapter_config.json: rank_pattern: input should be a valid dictionary",
    "pissa": "vLLM would not load it: vLLM does not support init_lora_weights='pissa'",
    "too-large": "rank 65 is over the limit 64",
    "wrong-shape": "weight, the base",
    "wrong-weights": "made for other weights",
    "link": "leads out of the store",
    "empty": "adapter_config.json is missing",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_with_the_reason(server: Server, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client().completions.create(model=name, prompt="x", max_tokens=1)
    message = refused.value.body["message"]  # type: ignore[index]
    assert message.startswith(f"adapter '{name}': ")
    assert REFUSED[name] in message
    assert refused.value.body["param"] == "model"  # type: ignore[index]
    warnings = [
        line for line in server.log.splitlines() if "[warning" in line and "refused" in line
    ]
    assert any(f"'{name}'" in line and REFUSED[name] in line for line in warnings)


@pytest.fixture
def guest(server: Server) -> Iterator[Path]:
    """A place in the running server's store."""
    folder = server.store / "guest"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def version_of(server: Server, name: str) -> str:
    """NAME@HASH that answers for `name` now."""
    answer = server.client().completions.create(model=name, prompt="x", max_tokens=1)
    assert answer.model == name
    return str(answer.system_fingerprint)


def other_version(server: Server, name: str, before: str) -> str:
    """The version that answers once it is no longer `before`; until then nobody is refused."""
    deadline = time.monotonic() + 60
    while (now := version_of(server, name)) == before:
        assert time.monotonic() < deadline
    return now


def test_added_replaced_and_removed_while_the_server_runs(
    server: Server, guest: Path, tmp_path: Path, base_folder: Path
) -> None:
    with pytest.raises(openai.NotFoundError):
        complete(server, "guest")
    versions: list[str] = []
    for seed in (11, 12, 11):
        staged = make_adapter(tmp_path / f"{len(versions)}", "guest", base_folder, seed=seed)
        expected = Reference(base_folder, staged.parent).greedy("guest", PROMPT, 24)
        assert len(expected) >= 8
        shutil.rmtree(guest, ignore_errors=True)
        staged.rename(guest)
        until(lambda: "guest" in [card.id for card in server.client().models.list().data])
        before = versions[-1] if versions else ""
        versions.append(other_version(server, "guest", before))
        # The prompt is the same each time: a prefix cached for old content would show.
        assert complete(server, "guest")[: len(expected)] == expected
        card = server.client().models.retrieve("guest")
        assert (card.root, card.parent) == (versions[-1], server.base.name)
    assert versions[0] == versions[2] != versions[1]
    assert all(version.startswith("guest@") for version in versions)

    broken = make_adapter(tmp_path / "broken", "guest", base_folder, seed=14)
    for file in broken.iterdir():
        content = file.read_bytes()
        (guest / file.name).write_bytes(content[:-8] if file.suffix == ".safetensors" else content)
    # What is put beside its versions becomes one, or is refused, and it answers as before.
    assert complete(server, "guest")[: len(expected)] == expected
    assert "guest" in [card.id for card in server.client().models.list().data]
    until(lambda: "adapter 'guest': adapter_model.safetensors: cut short" in server.log)
    shutil.rmtree(guest)
    with pytest.raises(openai.NotFoundError):
        complete(server, "guest")


def test_an_alias_is_followed_and_what_it_left_can_still_be_named(
    server: Server, tmp_path: Path, base_folder: Path
) -> None:
    store = Store(server.store)
    made = [make_adapter(tmp_path / str(n), "followed", base_folder, seed=20 + n) for n in range(2)]
    try:
        versions = [store.publish(folder, "followed").id for folder in made]
        expected = [Reference(base_folder, f.parent).greedy("followed", PROMPT, 24) for f in made]
        assert expected[0] != expected[1]
        before = ""
        for turn in (1, 0, 1):
            store.alias("followed", versions[turn])
            before = other_version(server, "followed", before)
            assert before == versions[turn]
            assert complete(server, "followed")[: len(expected[turn])] == expected[turn]
        assert complete(server, versions[0])[: len(expected[0])] == expected[0]
        assert collect(store, keep=0, grace=0) == []  # its lease: somebody named it just now
        assert store.rollback("followed").version == versions[0]
        assert other_version(server, "followed", versions[1]) == versions[0]
        assert complete(server, "followed")[: len(expected[0])] == expected[0]
        # What nobody uses and no alias serves is let go of.
        gone = until(lambda: collect(store, keep=0, grace=0))
        assert [str(reference) for reference in gone] == [versions[1]]
    finally:
        shutil.rmtree(server.store / "followed", ignore_errors=True)


def test_an_adapter_named_like_a_content_type_is_not_put_on_base_requests(
    server: Server, base_folder: Path
) -> None:
    """vLLM applies a loaded adapter called "text" to base messages made of text parts."""
    folder = make_adapter(server.store, "text", base_folder, seed=13)

    def chat() -> str:
        answer = server.client().chat.completions.create(
            model=server.base.name,
            messages=[{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
            max_tokens=16,
            temperature=0,
        )
        text: str = answer.choices[0].message.content
        return text

    try:
        before = chat()
        assert complete(server, "text")
        assert chat() == before
    finally:
        shutil.rmtree(folder)
