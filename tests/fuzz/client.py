"""The fuzzer's clients: they send requests by number, judge the answers, and watch the server."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import psutil
from tqdm import tqdm

from tests.fuzz import oracle, server_state
from tests.fuzz.report import Tally
from tests.fuzz.traffic import CHAT, COMPLETIONS, NEVER, SUFFIX, TOOL, Case, Target, draw, question

ANSWER_SECONDS = 120  # more than any answer takes, also behind preemptions
SETTLE_SECONDS = 60
SAMPLE_SECONDS = 1.0
GIVE_UP = 50  # faults in a row: the server is gone


@dataclass
class Users:
    """Clients of one server, who send requests and judge the answers."""

    client: httpx.AsyncClient
    options: argparse.Namespace
    target: Target
    witnesses: list[dict[str, Any]]
    lines: list[oracle.Greedy] = field(default_factory=list)  # the witnesses, from the idle server
    tally: Tally = field(default_factory=Tally)
    samples: list[server_state.Sample] = field(default_factory=list)

    @property
    def gave_up(self) -> bool:
        """Whether the server seems to be gone."""
        return self.tally.in_a_row >= GIVE_UP

    async def send(self, case: Case) -> tuple[int, bytes] | None:
        """(status, whole body), or None if the client has hung up before the end."""
        method = "GET" if case.body is None else "POST"
        got = bytearray()

        async def read() -> int | None:
            headers = {"Content-Type": "application/json"}
            request = self.client.build_request(
                method, case.path, content=case.content, headers=headers
            )
            response = await self.client.send(request, stream=True)
            leaves = case.hang_up if case.streams else None  # 0: before the first event
            try:
                if leaves == 0:
                    return None
                async for piece in response.aiter_raw():
                    got.extend(piece)
                    if leaves is not None and got.count(b"\n\n") >= leaves:
                        return None
                return response.status_code
            finally:
                await response.aclose()

        if case.hang_up is not None and not case.streams:
            try:
                status = await asyncio.wait_for(read(), case.hang_up)
            except TimeoutError:
                return None
        else:
            status = await asyncio.wait_for(read(), ANSWER_SECONDS)
        return None if status is None else (status, bytes(got))

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Post `body`; the answer must be 200."""
        response = await self.client.post(path, json=body)
        response.raise_for_status()
        return response.json()

    async def metrics(self) -> dict[str, float]:
        """Read /metrics."""
        return server_state.read_metrics((await self.client.get("/metrics")).text)

    async def run_case(self, number: int) -> None:
        """Send request `number` and judge what comes."""
        case = draw(self.options.seed, number, self.target, len(self.witnesses))
        start = time.perf_counter()
        outcome, faults = "answered", []
        try:
            if case.witness is not None:
                answer = await self.post(case.path, self.witnesses[case.witness])
                faults = self.compare(case.witness, oracle.greedy(answer))
            else:
                got = await self.send(case)
                if got is None:
                    outcome = "aborted"
                elif case.refusal is not None:
                    outcome = "refused"
                    faults = list(oracle.check_refusal(case, *got))
                else:
                    faults = list(oracle.check_answer(case, *got))
                    if not faults:
                        self.tally.gated += oracle.gated_tokens(case, got[1])
        except TimeoutError:
            faults = [f"no answer in {ANSWER_SECONDS} s"]
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            faults = [f"{type(error).__name__}: {error}"]
        self.tally.note(case, outcome, time.perf_counter() - start, faults)

    def compare(self, which: int, line: oracle.Greedy) -> list[str]:
        """A witness's answer against the idle server's."""
        arguments = self.witnesses[which].get("vllm_xargs", {})
        tau = arguments.get("gate_tau")
        differs, fault = oracle.divergence(self.lines[which], line, tau, self.options.near_tie)
        self.tally.parted += differs and fault is None
        return [f"witness {which}: {fault}"] if fault else []

    async def listen(self) -> list[oracle.Greedy]:
        """Ask every witness, one after another, twice: prompts are then cached for all alike."""
        lines = []
        for body in self.witnesses:
            await self.post(COMPLETIONS, body)
            lines.append(oracle.greedy(await self.post(COMPLETIONS, body)))
        return lines

    def shut_gates(self, lines: list[oracle.Greedy]) -> list[str]:
        """A gate that never opens gives the base's tokens, one for one, on an idle server."""
        faults = []
        for which, (body, line) in enumerate(zip(self.witnesses, lines, strict=True)):
            if body.get("vllm_xargs", {}).get("gate_tau") != NEVER:
                continue
            if (line.tokens, line.gaps) != (lines[which - 1].tokens, lines[which - 1].gaps):
                faults.append(f"witness {which}: a gate that never opens is not the base")
        return faults

    async def traffic(self, seconds: float) -> None:
        """Users who ask one request after another until the time, or `--requests`, is over."""
        most = self.options.requests
        numbers = itertools.count() if most is None else iter(range(most))
        end = time.monotonic() + seconds

        async def user() -> None:
            for number in numbers:  # all users take from the same
                await self.run_case(number)
                if time.monotonic() >= end or self.gave_up:
                    return

        users = asyncio.gather(*(user() for _ in range(self.options.users)))
        await asyncio.gather(users, self.watch(users, seconds))

    async def watch(self, users: asyncio.Future[Any], seconds: float) -> None:
        """Sample the server and show progress until the users are done."""
        start = time.monotonic()
        with tqdm(total=int(seconds), unit="s", mininterval=1) as bar:
            while not users.done():
                passed = time.monotonic() - start
                await self.look(passed)
                bar.update(min(int(passed), int(seconds)) - bar.n)
                rss = f"{self.samples[-1].rss:.0f} MiB" if self.samples else "-"
                bar.set_postfix(
                    requests=self.tally.ended, faults=len(self.tally.faults), memory=rss
                )
                await asyncio.wait([users], timeout=SAMPLE_SECONDS)

    async def look(self, seconds: float) -> None:
        """What is held just now, and one more sample where there is a process to look at."""
        try:
            metrics = await self.metrics()
        except httpx.HTTPError:
            metrics = {}  # the users' requests will say so
        for name in server_state.HELD:
            most = self.tally.most.get(name, 0)
            self.tally.most[name] = max(most, metrics.get(name, 0))
        if self.options.pid is not None:
            with suppress(psutil.NoSuchProcess):  # likewise
                self.samples.append(
                    server_state.take_sample(self.options.pid, seconds, self.tally.ended)
                )

    async def settle(self) -> tuple[dict[str, float], list[str]]:
        """(metrics, leaks) once the server is idle, or when it has had its time.

        vLLM brings its gauges up to date when it steps, we ours when a request comes: so a small
        request goes before each look.
        """
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            await self.post(
                COMPLETIONS, {"model": self.target.base, "prompt": [self.target.ids[0]]}
            )
            metrics = await self.metrics()
            leaks = server_state.still_held(metrics)
            if not leaks or time.monotonic() > end:
                return metrics, leaks
            await asyncio.sleep(0.2)


async def probe(client: httpx.AsyncClient) -> Target:
    """Ask the server for its models, its limits and some tokens.

    Raises:
        httpx.HTTPError: it does not answer, or not as this project's server.
    """
    answer = await client.get("/v1/models")
    answer.raise_for_status()
    cards = answer.json()["data"]
    base, names = cards[0], [card["id"] for card in cards[1:]]

    async def count(body: dict[str, Any]) -> list[int]:
        answer = await client.post("/tokenize", json={"model": base["id"], **body})
        answer.raise_for_status()
        tokens: list[int] = answer.json()["tokens"]
        return tokens

    async def takes(path: str, **body: Any) -> bool:
        answer = await client.post(path, json={"max_tokens": 1, **body})
        return answer.status_code == 200

    async def takes_rates(name: str) -> bool:
        return await takes(COMPLETIONS, model=name, prompt="1", vllm_xargs={"gate_rate": 0.05})

    length, text = base["max_model_len"], ""
    ids: list[int] = []
    random = Random(0)
    while len(ids) < length:
        text += "".join(question(random) for _ in range(8))
        ids = await count({"prompt": text, "add_special_tokens": False})
    message = [{"role": "user", "content": "1"}]
    gated = [name for name in names if name.endswith(SUFFIX)]
    return Target(
        base=base["id"],
        adapters=tuple(name for name in names if not name.endswith(SUFFIX)),
        gated=tuple(gated),
        by_rate=tuple([name for name in gated if await takes_rates(name)]),
        length=length,
        ids=tuple(ids),
        overhead=len(await count({"messages": message})),
        tools=await takes(
            CHAT, model=base["id"], messages=message, tools=[TOOL], tool_choice="required"
        ),
        bias=await takes(COMPLETIONS, model=base["id"], prompt="1", logit_bias={"1": 1}),
    )
