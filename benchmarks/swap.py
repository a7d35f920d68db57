"""What moving an alias costs those who are being served.

    python -m benchmarks.swap                      (about 5 minutes)

32 streams ask one alias without pause. In turns nobody moves it, and it is moved among five
versions through the admin API, 1,000 times in all. Every answer must be the one that its version
gives alone. Random LoRAs of the shipped miniature, float32, greedy.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import httpx
from pydantic import Field

from adapters.command_line import CommandLine
from adapters.store import SHIPPED, Store
from benchmarks.adapters import make_random_adapter
from benchmarks.report import print_table, ratios, save, show
from benchmarks.streams import Answer, environment, percentile, resident_mib, stream
from demo.server import Running, end_as_asked, running_server

BASE = SHIPPED.parents[1] / "models" / "tiny-qwen2"
ADMIN_KEY = "the benchmark's own"
NAME, VERSIONS, PROMPTS, TOKENS = "moving", 5, 8, 48


class SwapConfig(CommandLine):
    """Measure what moving an alias costs those who are being served."""

    program: ClassVar[str] = "python -m benchmarks.swap"

    users: int = Field(32, ge=1, description="Streams at a time.")
    moves: int = Field(1000, ge=1, description="Moves of the alias.")
    answers: int = Field(0, ge=0, description="Go on moving until there are so many answers.")
    quiet: float = Field(30, ge=0, description="Seconds without moves, of all runs together.")
    runs: int = Field(3, ge=1, description="Runs without moves and with a share of them, in turns.")
    pause: float = Field(0.1, ge=0, description="Seconds between moves.")
    gated: bool = Field(False, description="Ask NAME:gated.")


class Load:
    """Streams that ask the alias until they are told to stop."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self.client, self.model = client, model
        self.answers: list[tuple[int, Answer]] = []  # (prompt, its answer)
        self._stop = False

    async def _user(self, choose: random.Random) -> None:
        while not self._stop:
            number = choose.randrange(PROMPTS)
            self.answers.append((number, await ask(self.client, self.model, number)))

    async def during(self, work: Any, users: int) -> float:
        """Run `users` streams while `work` lasts. Returns the seconds."""
        start = time.perf_counter()
        tasks = [asyncio.create_task(self._user(random.Random(n))) for n in range(users)]
        await work
        self._stop = True
        await asyncio.gather(*tasks)
        return time.perf_counter() - start

    @property
    def gaps(self) -> list[float]:
        return [gap for _, answer in self.answers for gap in answer.gaps]


async def ask(client: httpx.AsyncClient, model: str, number: int) -> Answer:
    prompt = f"What is {number + 3}-{number + 11}*7+12+{number}?"
    return await stream(client, model, prompt, TOKENS)


async def move_about(
    client: httpx.AsyncClient,
    versions: list[str],
    moves: int,
    pause: float,
    enough: Callable[[], bool],
) -> list[float]:
    """Move the alias elsewhere, `moves` times and until there is `enough`. Returns the seconds of
    each move.
    """
    choose = random.Random(0)
    seconds: list[float] = []
    now = versions[-1]
    while len(seconds) < moves or not enough():
        now = choose.choice([one for one in versions if one != now])
        start = time.perf_counter()
        answer = await client.post(f"/admin/adapters/{NAME}/alias", json={"version": now})
        answer.raise_for_status()
        assert answer.json()["serving"] == now
        seconds.append(time.perf_counter() - start)
        await asyncio.sleep(pause)
    return seconds


async def until_idle(client: httpx.AsyncClient) -> dict[str, Any]:
    """What is left in the engine once it has nothing to do."""
    deadline = time.monotonic() + 60
    while True:
        state = (await client.get(f"/admin/adapters/{NAME}")).json()
        text = (await client.get("/metrics")).text
        used = sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(("vllm:num_requests_running{", "vllm:kv_cache_usage_perc{"))
        )
        left = {"residents": len(state["resident"]), "requests and KV blocks": used}
        if left == {"residents": 1, "requests and KV blocks": 0.0} or time.monotonic() > deadline:
            return left


async def measure(
    server: Running,
    versions: list[str],
    options: SwapConfig,
    key: str = "",
    admin_key: str = ADMIN_KEY,
) -> dict[str, Any]:
    """The figures; `versions` are those of NAME, the alias stands at the last."""

    def client(key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=300,
            limits=httpx.Limits(max_connections=None),
        )

    model = f"{NAME}:gated" if options.gated else NAME
    async with client(key) as users, client(admin_key) as admin:
        alone = {
            version: [
                (await ask(users, model.replace(NAME, version), number)).whole()
                for number in range(PROMPTS)
            ]
            for version in versions
        }
        quiet: list[Load] = []
        busy: list[Load] = []
        moves: list[float] = []
        memory: list[float] = []
        seconds = 0.0

        async def work(load: Load) -> None:
            moves.extend(
                await move_about(
                    admin,
                    versions,
                    math.ceil(options.moves / options.runs),
                    options.pause,
                    lambda: len(load.answers) >= options.answers / options.runs,
                )
            )

        for _ in range(options.runs):
            quiet.append(Load(users, model))
            await quiet[-1].during(asyncio.sleep(options.quiet / options.runs), options.users)
            memory.append(resident_mib(server.pid))
            busy.append(load := Load(users, model))
            seconds += await load.during(work(load), options.users)
        left = await until_idle(admin)
        memory = [memory[0], resident_mib(server.pid)]
    asked = [one for load in busy for one in load.answers]
    answers = [answer for _, answer in asked]
    wrong = sum(
        answer.text != alone[answer.version][number] for number, answer in asked if not answer.error
    )

    def gaps_ms(loads: list[Load], share: float) -> list[float]:
        return [1000 * percentile(load.gaps, share) for load in loads]

    before, during = gaps_ms(quiet, 0.99), gaps_ms(busy, 0.99)
    return {
        "runs": options.runs,
        "moves": len(moves),
        "seconds": round(seconds, 1),
        "requests": len(answers),
        "failed": sum(bool(answer.error) for answer in answers),
        "not its version's answer": wrong,
        "versions that answered": len({answer.version for answer in answers}),
        "inter-token p99, ms, nobody moves": show(before, 2),
        "inter-token p99, ms, moving": show(during, 2),
        "ratio": show(ratios(during, before), 3),
        "inter-token p50, ms": [show(gaps_ms(loads, 0.5), 2) for loads in (quiet, busy)],
        "a move, ms, p50 and p99": [round(1000 * percentile(moves, s), 1) for s in (0.5, 0.99)],
        "left when idle": left,
        "memory MiB, before and after": [round(one) for one in memory],
    }


def main() -> int:
    """Measure; exit code 1 if an answer failed or was another version's."""
    options = SwapConfig.load()
    end_as_asked()
    environment(REASONMAXXER_ADMIN_KEY=ADMIN_KEY)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder, "store"))
        versions = [
            store.publish(make_random_adapter(Path(folder), BASE, seed), NAME).id
            for seed in range(VERSIONS)
        ]
        flags: tuple[str, ...] = ("--model", str(BASE), "--adapters", str(store.root))
        flags += ("--dtype", "float32", "--max-num-seqs", "64", "--max-model-len", "512")
        with running_server(*flags) as server:
            result = asyncio.run(measure(server, versions, options))
    print("\nmedian (range) of the runs\n")
    print_table(["", ""], [[name, str(value)] for name, value in result.items()])
    save("swap-gated" if options.gated else "swap", result)
    return int(bool(result["failed"] or result["not its version's answer"]))


if __name__ == "__main__":
    sys.exit(main())
