"""Swaps under load on the real server: what `benchmarks.swap` measures at length, briefly."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from support import ADMIN_KEY, KEY, Server, make_adapter

from adapters.store import Store
from benchmarks.swap import NAME, measure
from demo.server import Running

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("gated", [False, True], ids=["always", "gated"])
def test_moves_under_streams(
    server: Server, tmp_path: Path, base_folder: Path, gated: bool
) -> None:
    store = Store(server.store)
    made = [make_adapter(tmp_path, f"s{n}", base_folder, seed=30 + n) for n in range(3)]
    try:
        versions = [store.publish(folder, NAME).id for folder in made]
        options = SimpleNamespace(gated=gated, quiet=0.5, users=8, moves=30, pause=0.0)
        running = Running(server.url, server.process.pid)
        found = asyncio.run(measure(running, versions, options, KEY, ADMIN_KEY))
    finally:
        shutil.rmtree(server.store / NAME)
    assert (found["moves"], found["failed"], found["not its version's answer"]) == (30, 0, 0)
    assert found["requests"] > 8
    assert found["versions that answered"] > 1
    # The weights of all others have left the engine, and nothing else is held.
    assert found["left when idle"] == {"residents": 1, "requests and KV blocks": 0.0}


def test_the_two_keys_open_different_doors(server: Server) -> None:
    def status(path: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{server.url}{path}", headers=headers, timeout=30).status_code

    assert status("/admin/adapters", ADMIN_KEY) == 200
    assert status("/admin/adapters", KEY) == 401
    assert status("/v1/models", ADMIN_KEY) == 401
    assert status("/v1/models", KEY) == 200
