"""What the metrics cost: throughput with and without them, and a scrape with 200 adapters.

    python -m benchmarks.metrics                      (about 5 minutes)

Throughput: the shipped miniature, whose steps are so short that a cost by token shows most, in this
process, gated, batch 16, one thread; the same engine counts and does not count in turns. A scrape:
the real server over a store of 200 adapters, each of which has answered at every step and gated,
idle and with eight clients streaming.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import httpx
from pydantic import Field

from adapters.command_line import CommandLine
from benchmarks.adapters import make_random_adapter, random_store
from benchmarks.engines import exactly, make_engine, prepare
from benchmarks.report import print_table, ratios, save, show, spread
from benchmarks.streams import environment, stream
from benchmarks.swap import BASE
from demo.server import end_as_asked, running_server
from vllm_gate.token_report import ANSWER, AnswerContext

BATCH, TOKENS = 16, 64
TAU = 0.4  # nats; gates about 6 % of the miniature's tokens
PROBLEMS = [f"What is {number}-11*7+{number % 20}?" for number in range(64)]


class MetricsConfig(CommandLine):
    """Measure what the metrics cost: throughput with and without them, and a scrape."""

    program: ClassVar[str] = "python -m benchmarks.metrics"

    runs: int = Field(15, ge=1, description="Runs with and without, by turns; and scrapes.")
    adapters: int = Field(200, ge=1, description="Adapters of the server that is scraped.")


class Counting(AnswerContext):
    """Follows each request as the server does (serving/request.py), where it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.requests: list[Any] = []

    def begin(self, request: Any) -> Any:
        """A request of its own for each sequence."""
        if not self.on:
            return None
        from serving.metrics import GATED
        from serving.request import RequestContext

        mine = RequestContext()
        mine.bind("one:gated", "one@000000000000", GATED)
        self.requests.append(mine)
        return mine.begin(request)

    @contextmanager
    def turn(self, on: bool) -> Iterator[list[Any]]:
        """A block in which everything is counted, or nothing; the requests in it."""
        import torch

        from vllm_gate import runner_v1

        def unseen(logits: Any, _: bool) -> tuple[Any]:
            return (torch.empty((logits.shape[0], 0), dtype=torch.int64),)

        self.on, self.requests = on, []
        with nullcontext() if on else mock.patch.object(runner_v1, "best", unseen):
            yield self.requests


def cost(counting: Counting, folder: Path, runs: int) -> dict[str, Any]:
    """Tokens per second with and without, and the ratio of each turn."""
    from vllm.lora.request import LoRARequest

    adapter = make_random_adapter(folder, BASE, 0)
    engine = make_engine(BASE, gate=True, max_num_seqs=BATCH, max_model_len=256)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = [{"prompt_token_ids": tokenizer(text)["input_ids"]} for text in PROBLEMS]
    params = exactly(TOKENS, temperature=1, seed=1, extra_args={"gate_tau": TAU})
    lora = LoRARequest("one@000000000000", 1, str(adapter))
    speeds: dict[bool, list[float]] = {True: [], False: []}
    gated = 0
    for turn in range(runs + 1):  # the first is a warm-up
        for on in (True, False) if turn % 2 else (False, True):
            with counting.turn(on) as requests:
                start = time.perf_counter()
                engine.generate(prompts, params, lora_request=lora, use_tqdm=False)
                for request in requests:
                    request.end(200, aborted=False, broken=False)
                seconds = time.perf_counter() - start
            if on:
                assert sum(request.generated for request in requests) == len(prompts) * TOKENS
                gated = sum(request.gated_tokens for request in requests)
            if turn:
                speeds[on].append(len(prompts) * TOKENS / seconds)
    ratio = ratios(speeds[True], speeds[False])
    return {
        "gate rate": round(gated / (len(prompts) * TOKENS), 3),
        "tokens/s, counted": spread(speeds[True]),
        "tokens/s, not counted": spread(speeds[False]),
        "ratio": spread(ratio),
        "shown": [show(speeds[True]), show(speeds[False]), show(ratio, 4)],
    }


async def scrape_ms(url: str) -> float:
    """Milliseconds of one GET, to the last byte, by curl: a client that costs little itself."""
    command = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{time_total}", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    seconds, _ = await process.communicate()
    return 1000 * float(seconds)


async def scrapes(url: str, adapters: int, runs: int) -> dict[str, Any]:
    """Milliseconds of GET /metrics, idle and under load, and the size of the page."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for number in range(adapters):
            for name in (f"a{number}", f"a{number}:gated"):
                (await stream(client, name, "What is 1+2?", 4)).whole()

        async def timed() -> list[float]:
            found = []
            for _ in range(runs):
                found.append(await scrape_ms(f"{url}/metrics"))
                page = (await client.get("/metrics")).text
                assert page.count("time_to_first_token_seconds_count{adapter=") >= 2 * adapters
            return found

        async def user(name: str, prompt: str) -> None:
            while True:  # until it is cancelled: no scrape must find the server idle
                (await stream(client, name, prompt, 480)).whole()

        idle = await timed()
        users = [
            asyncio.create_task(user(f"a0{mode}", PROBLEMS[n]))
            for n, mode in enumerate(4 * ("", ":gated"))
        ]
        await asyncio.sleep(1)
        busy = await timed()
        failed = [task for task in users if task.done()]
        assert not failed, failed
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        size = (await client.get("/metrics")).text.count("\n")
    return {
        "adapters": adapters,
        "lines": size,
        "idle_ms": spread(idle),
        "busy_ms": spread(busy),
        "shown": [show(idle, 1), show(busy, 1)],
    }


def main() -> None:
    """Measure both."""
    options = MetricsConfig.load()
    end_as_asked()
    prepare()
    counting = Counting()
    ANSWER.set(counting)
    environment()
    with tempfile.TemporaryDirectory() as folder:
        throughput = cost(counting, Path(folder), options.runs)
        store = random_store(Path(folder), BASE, options.adapters)
        flags: tuple[str, ...] = ("--model", str(BASE), "--adapters", str(store.root))
        flags += ("--dtype", "float32", "--max-model-len", "512")
        flags += ("--max-cpu-loras", str(options.adapters + 1))
        with running_server(*flags) as server:
            page = asyncio.run(scrapes(server.url, options.adapters, options.runs))
    print(f"\nmedian (range) of {options.runs} runs\n")
    on, off, ratio = throughput.pop("shown")
    idle, busy = page.pop("shown")
    print_table(
        ["", "median (range)"],
        [
            [f"tokens/s, counted, gate rate {throughput['gate rate']:.1%}", on],
            ["tokens/s, not counted", off],
            ["ratio", ratio],
            [f"scrape, ms, {page['adapters']} adapters, {page['lines']:,} lines, idle", idle],
            ["scrape, ms, 8 clients streaming", busy],
        ],
    )
    save("metrics", {"throughput": throughput, "scrape": page})


if __name__ == "__main__":
    main()
