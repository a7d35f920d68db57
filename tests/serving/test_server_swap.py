"""Swaps under load on the real server: what `benchmarks.swap` measures at length, briefly."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import httpx
import pytest
from support import ADMIN, ADMIN_KEY, KEY, Server

from adapters.store import Store
from benchmarks.swap import NAME, SwapConfig, measure
from demo.server import Running


@pytest.mark.parametrize("gated", [False, True], ids=["always", "gated"])
def test_moves_under_streams(server: Server, folders: list[Path], gated: bool) -> None:
    store = Store(server.store)
    try:
        versions = [store.publish(folder, NAME).id for folder in folders[:3]]
        options = SwapConfig(gated=gated, quiet=0.5, users=8, moves=30, answers=30, pause=0.0)
        running = Running(server.url, server.process.pid)
        found = asyncio.run(measure(running, versions, options, KEY, ADMIN_KEY))
    finally:
        shutil.rmtree(server.store / NAME)
    assert (found["failed"], found["not its version's answer"]) == (0, 0)
    assert found["moves"] >= 30
    assert found["requests"] >= 30
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


def test_an_alias_that_moves_in_mid_conversation_costs_no_prefill(
    server: Server, folders: list[Path]
) -> None:
    store, alias = Store(server.store), "midway"

    def hits() -> float:
        pattern = r"^vllm:prefix_cache_hits_total.* (\S+)$"
        return sum(map(float, re.findall(pattern, server.page(), re.MULTILINE)))

    def turn(prompt: list[int]) -> tuple[str, list[int], float]:
        """(version that answered, its tokens, tokens of the prompt found in the cache)"""
        before = hits()
        body = {"ignore_eos": True, "return_token_ids": True, "vllm_xargs": {"gate_tau": 0.1}}
        answer = server.client().completions.create(
            model=f"{alias}:gated", prompt=prompt, max_tokens=60, temperature=0, extra_body=body
        )
        assert answer.usage.completion_tokens_details.gated_tokens > 0
        assert answer.model == f"{alias}:gated"
        return answer.system_fingerprint, answer.choices[0].token_ids, hits() - before

    try:
        first, second = (store.publish(folder, alias).id for folder in folders[:2])
        move = f"{server.url}/admin/adapters/{alias}/alias"
        answered = []
        prompt = list(range(2, 102))
        for version in (first, second):
            moved = httpx.post(move, json={"version": version}, headers=ADMIN, timeout=60)
            assert moved.status_code == 200, moved.text
            who, tokens, found = turn(prompt)
            answered.append(who)
            if version == first:
                assert found == 0
            else:
                said = len(prompt) - 3 - 1  # the last token of an answer is not run
                assert found in {said // block * block for block in (16, 32, 64, 128)}
                assert found > 100, "the answer was not found"
            prompt = [*prompt, *tokens, 3, 4, 5]
    finally:
        shutil.rmtree(server.store / alias)
    assert answered == [first, second]
