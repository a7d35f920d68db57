"""Adapters of the store behind the real server: refused with a reason, added, replaced, removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from support import Reference, Server, make_adapter
from test_server_protocol import PROMPT, complete

pytestmark = pytest.mark.engine

REFUSED = {
    "corrupt": "adapter_model.safetensors: cut short",
    "tampered": "hash differs",
    "pickled": "pickled weights",
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
    warnings = [line for line in server.log.splitlines() if "WARNING" in line and "refused" in line]
    assert any(f"'{name}'" in line and REFUSED[name] in line for line in warnings)


@pytest.fixture
def guest(server: Server) -> Iterator[Path]:
    """A place in the running server's store."""
    folder = server.store / "guest"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_added_replaced_and_removed_while_the_server_runs(
    server: Server, reference: Reference, guest: Path, tmp_path: Path, base_folder: Path
) -> None:
    with pytest.raises(openai.NotFoundError):
        complete(server, "guest")
    versions = []
    for seed in (11, 12, 11):
        staged = make_adapter(tmp_path / f"{len(versions)}", "guest", base_folder, seed=seed)
        expected = Reference(base_folder, staged.parent).greedy("guest", PROMPT, 24)
        assert len(expected) >= 8
        shutil.rmtree(guest, ignore_errors=True)
        staged.rename(guest)
        assert "guest" in [card.id for card in server.client().models.list().data]
        # The prompt is the same each time: a prefix cached for old content would show.
        assert complete(server, "guest")[: len(expected)] == expected
        answer = server.client().completions.create(model="guest", prompt="x", max_tokens=1)
        versions.append(answer.model)
    assert versions[0] == versions[2] != versions[1]
    assert all(version.startswith("guest@") for version in versions)

    weights = guest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(openai.BadRequestError, match="cut short"):
        complete(server, "guest")
    shutil.rmtree(guest)
    with pytest.raises(openai.NotFoundError):
        complete(server, "guest")
    assert "guest" not in [card.id for card in server.client().models.list().data]


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
