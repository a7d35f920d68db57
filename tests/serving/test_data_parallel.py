"""Two engines behind one server (--data-parallel-size 2): answers, residency, slots and the end.

The header X-data-parallel-rank names the engine that is to answer; without it the server chooses.
Each engine has two slots, so that four always-on adapters could answer at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from gate_reference import Asked, Reference
from support import ADMIN, Server, StartServer
from test_server_shutdown import assert_drains, family

from adapters.store import Store

TAU = 0.4
RANKS = (0, 1)
PROMPTS = ("3 + 4 * 2 =", "12 + 7 * 3 =", "What is 9-11*7+12+9?", "8", "(1 + 2) * 4")
FLAGS = (
    *("--data-parallel-size", "2", "--max-loras", "2", "--max-cpu-loras", "4"),
    *("--max-model-len", "2048"),
)


class Parallel(NamedTuple):
    """The server, and what its answers ought to be."""

    server: Server
    tokenizer: Any
    reference: Reference

    def ask(self, prompt: str, model: str, rank: int | None = None) -> Any:
        """A greedy completion; its first choice has `token_ids`."""
        mode = {"vllm_xargs": {"gate_tau": TAU}} if model.endswith(":gated") else {}
        return self.server.client().completions.create(
            model=model,
            prompt=prompt,
            max_tokens=24,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True} | mode,
            extra_headers={} if rank is None else {"X-data-parallel-rank": str(rank)},
        )

    def wanted(self, prompt: str, model: str) -> tuple[list[int], int]:
        """Tokens up to the first near tie, and how many of them are gated."""
        name, _, gated = model.partition(":")
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        adapter = None if model == self.server.base.name else name
        decoded = self.reference.decode(Asked(ids, adapter, TAU if gated else None, 24))
        return decoded.tokens, len(decoded.points)

    def check(self, prompt: str, model: str, rank: int | None = None) -> None:
        """The answer is the reference's."""
        answer, (tokens, _) = self.ask(prompt, model, rank), self.wanted(prompt, model)
        assert answer.choices[0].token_ids[: len(tokens)] == tokens, (prompt, model, rank)

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        """What the admin API says."""
        url = f"{self.server.url}/admin/adapters/{path}"
        answer = httpx.request(method, url, json=body, headers=ADMIN, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def metric(self, pattern: str) -> float:
        """The sum of the samples that a pattern finds."""
        found = re.findall(rf"^{pattern} (\S+)$", self.server.page(), re.MULTILINE)
        return sum(map(float, found))

    def where(self, name: str) -> tuple[str, list[int]]:
        """The state of an adapter, and the engines that have it in a slot."""
        shown = self.admin("GET", name)
        return shown["state"], [rank for one in shown["resident"] for rank in one["engines"]]

    def streams(self, stack: ExitStack, model: str, rank: int) -> Any:
        """A long answer under way, from one engine."""
        stream = self.server.client().completions.create(
            model=model,
            prompt="1 +",
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers={"X-data-parallel-rank": str(rank)},
        )
        stack.callback(stream.close)
        next(stream)
        return stream


@pytest.fixture(scope="module")
def parallel(
    start_server: StartServer,
    base_folder: Path,
    folders: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Parallel]:
    """Two engines over a store of three adapters."""
    from transformers import AutoTokenizer

    work = tmp_path_factory.mktemp("parallel")
    named = dict(zip(("alpha", "beta", "gamma"), folders[1:], strict=True))
    for name, folder in named.items():
        Store(work / "store").publish(folder, name)
    with start_server(base_folder, work / "store", work, *FLAGS) as running:
        tokenizer = AutoTokenizer.from_pretrained(base_folder)
        yield Parallel(running, tokenizer, Reference(base_folder, named))


def test_both_engines_give_the_references_answers(parallel: Parallel) -> None:
    """Base, always-on and gated, from each engine by name and all at once."""
    models = (parallel.server.base.name, "alpha", "alpha:gated", "beta:gated")
    asked = [
        (prompt, model, rank) for prompt in PROMPTS for model in models for rank in (*RANKS, None)
    ]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: parallel.check(*one), asked))
    for rank in RANKS:
        done = parallel.metric(rf'vllm:request_success_total{{engine="{rank}",[^}}]*}}')
        assert done >= len(PROMPTS) * len(models)
    assert parallel.metric("reasonmaxxer_gate_requests") == 0


def test_a_gated_token_is_counted_once_wherever_it_comes_from(parallel: Parallel) -> None:
    names = (r"reasonmaxxer_replays_total{[^}]*}", r"reasonmaxxer_gated_tokens_total{[^}]*}")
    before = [parallel.metric(name) for name in names]
    gated = sum(
        parallel.ask(prompt, "beta:gated", rank).usage.completion_tokens_details.gated_tokens
        for prompt in PROMPTS
        for rank in RANKS
    )
    assert gated > 0
    rises = [parallel.metric(name) - then for name, then in zip(names, before, strict=True)]
    assert rises == [gated, gated]


def test_a_cached_prefix_is_the_bases_on_each_engine(parallel: Parallel) -> None:
    """A long prompt, asked as the base, gated and always-on, in turn and from each engine."""
    prompt = " ".join(PROMPTS * 8)
    for rank in RANKS:
        for model in (parallel.server.base.name, "alpha:gated", "alpha", "gamma", "gamma:gated"):
            parallel.check(prompt, model, rank)
        hits = parallel.metric(rf'vllm:prefix_cache_hits_total{{engine="{rank}",[^}}]*}}')
        assert hits > 0


def test_slots_and_residency_are_of_each_engine(parallel: Parallel) -> None:
    assert parallel.metric("reasonmaxxer_slots") == 4
    parallel.admin("POST", "alpha/pin", {"pinned": True})
    with ExitStack() as stack:
        # Beside the pinned one each engine has one slot left.
        parallel.streams(stack, "beta", 0)
        parallel.streams(stack, "gamma", 1)
        assert parallel.where("alpha") == ("device", [0, 1])
        assert parallel.where("beta") == ("device", [0])
        assert parallel.where("gamma") == ("device", [1])
        assert parallel.metric("reasonmaxxer_slots_busy") == 4
        assert parallel.metric("reasonmaxxer_queue_requests") == 0
        for rank in RANKS:
            parallel.check(PROMPTS[0], "alpha", rank)
        parallel.check(PROMPTS[1], "beta")  # where it has its slot
        parallel.check(PROMPTS[1], "gamma")
    parallel.admin("POST", "alpha/pin", {"pinned": False})


def test_load_and_unload_reach_each_engine(parallel: Parallel) -> None:
    for _ in range(2):
        parallel.admin("POST", "gamma/load", {})
        parallel.admin("POST", "gamma/unload")
        # It goes while the server answers others.
        assert ("available", []) in (parallel.where("gamma") for _ in range(100))
    parallel.admin("POST", "gamma/load", {})
    assert parallel.where("gamma") == ("device", [0, 1])
    for rank in RANKS:
        parallel.check(PROMPTS[2], "gamma", rank)
        parallel.check(PROMPTS[2], "gamma:gated", rank)


def test_an_engine_that_there_is_not(parallel: Parallel) -> None:
    for model in (parallel.server.base.name, "alpha", "alpha:gated"):
        with pytest.raises(openai.BadRequestError, match="data_parallel_rank 7"):
            parallel.ask(PROMPTS[0], model, 7)


def test_all_engines_drain(parallel: Parallel) -> None:
    """The last one: it ends the server."""
    processes = family(parallel.server.process.pid)
    both = [(model, rank) for model in ("alpha", "beta:gated") for rank in RANKS]
    with ExitStack() as stack:
        streams = [parallel.streams(stack, *one) for one in both]
        assert_drains(parallel.server, streams, processes)
