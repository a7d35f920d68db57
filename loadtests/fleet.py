"""Two replicas against one, what each router costs, and a rolling restart under load.

    make test-routers                       # installs the routers; one that is missing is left out
    python -m loadtests.fleet               (about 5 minutes on two cores)
    python -m loadtests.fleet --no-restart --seconds 5

Two replicas of the shipped miniature run over the shipped store, with vllm-router, nginx and the
LiteLLM proxy in front of both. Clients stream chats of the base, the adapter and its gated name:

- to one replica, to both without a router, and to both through each router, in turns;
- one client alone, for the time to the first token;
- through all routers at once, while both replicas are ended by SIGTERM and started again, one after
  the other. Clients never try again: no request may fail.

Replicas on one machine share its processors: what two bring here says nothing about two machines.
The report goes to runs/loadtest/fleet.json. Exit code 1: a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapters.files import write_json
from adapters.store import SHIPPED
from benchmarks.report import print_table, ratios, show
from benchmarks.streams import environment, stream
from demo.server import end_as_asked
from loadtests.preloaded import Command
from loadtests.replicas import FLAGS, Replica, forking
from loadtests.routers import KINDS, Router, running
from training.provenance import machine

KEY = "fleet-key"
MODELS = ("tiny-qwen2", "tiny-math", "tiny-math:gated")


@dataclass
class Tally:
    """What came of requests to one address or several."""

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    tokens: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def client_of(router: Router) -> httpx.AsyncClient:
    """A client of one address."""
    headers = {"Authorization": f"Bearer {router.key}"}
    return httpx.AsyncClient(base_url=router.url, headers=headers, timeout=120)


def question(number: int) -> str:
    """A prompt; vllm-router sends equal ones to the same replica."""
    return f"What is {number % 97}-11*{number % 89}+12+9?"


async def load(
    targets: Sequence[Router], tally: Tally, clients: int, tokens: int, over: asyncio.Event
) -> None:
    """Clients that stream without a pause, each from one of the targets, until it is over."""

    async def one(number: int) -> None:
        turn = number
        async with client_of(targets[number % len(targets)]) as client:
            while not over.is_set():
                turn += 1
                model, prompt = MODELS[turn % len(MODELS)], question(100 * number + turn)
                got = await stream(client, model, prompt, tokens, chat=True)
                if got.error or not got.text:
                    tally.failed[f"{got.status} {got.error or 'no text'}"[:200]] += 1
                else:
                    tally.answered += 1
                    tally.tokens += tokens

    start = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    tally.seconds += time.perf_counter() - start


async def throughput(
    ways: dict[str, list[Router]], options: argparse.Namespace
) -> dict[str, list[Tally]]:
    """The rounds of every way, in turns: what else the machine does falls on all of them."""
    tallies: dict[str, list[Tally]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, targets in ways.items():
            over, tally = asyncio.Event(), Tally()
            asyncio.get_running_loop().call_later(options.seconds, over.set)
            await load(targets, tally, options.clients, options.tokens, over)
            tallies[name].append(tally)
    return tallies


async def first_tokens(ways: dict[str, list[Router]], times: int) -> dict[str, float]:
    """Median seconds to the first token of one client alone, by way; every way in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    clients = {name: client_of(targets[0]) for name, targets in ways.items()}
    for turn in range(times):
        for name, client in clients.items():
            got = await stream(client, MODELS[turn % len(MODELS)], question(turn), 8, chat=True)
            got.whole()
            found[name] += got.arrivals[:1]
    for client in clients.values():
        await client.aclose()
    return {name: statistics.median(seconds) for name, seconds in found.items() if seconds}


async def rolling_restart(
    routers: Sequence[Router], replicas: Sequence[Replica], options: argparse.Namespace
) -> tuple[dict[str, Tally], list[float]]:
    """(tally of each router, seconds of each restart)."""
    tallies = {router.name: Tally() for router in routers}
    over = asyncio.Event()
    loads = [
        asyncio.create_task(load([router], tallies[router.name], 4, options.tokens, over))
        for router in routers
    ]
    try:
        seconds = [await replica.restart() for replica in replicas]
    finally:
        over.set()
        await asyncio.gather(*loads)
    return tallies, seconds


@contextmanager
def all_routers(replicas: Sequence[Replica], work: Path) -> Iterator[list[Router]]:
    """Every router that is installed, before the replicas."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(running(kind, [one.url for one in replicas], work / kind.name, KEY))
            for kind in KINDS
            if kind.find() is not None
        ]


async def measure(options: argparse.Namespace, work: Path, starter: Command) -> dict[str, Any]:
    """Start everything, and measure. Returns the figures."""
    replicas = [Replica((*FLAGS, "--adapters", str(SHIPPED)), work, starter) for _ in range(2)]
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        with all_routers(replicas, work) as routers:
            direct = [Router("direct", one.url, KEY, None) for one in replicas]
            ways = {"one replica": direct[:1], "two replicas": direct}
            ways |= {router.name: [router] for router in routers}
            await throughput(ways, argparse.Namespace(**vars(options) | {"rounds": 1}))  # warm-up
            rates = await throughput(ways, options)
            alone = {name: ways[name] for name in ways if name != "two replicas"}
            result = figures(rates, await first_tokens(alone, options.times))
            if options.restart and routers:
                tallies, seconds = await rolling_restart(routers, replicas, options)
                result["rolling restart"] = {
                    "seconds of each restart": [round(one, 1) for one in seconds],
                    "answered": {name: one.answered for name, one in tallies.items()},
                    "failed": {name: dict(one.failed) for name, one in tallies.items()},
                }
    finally:
        for replica in replicas:
            replica.stop()
    return result


def figures(rounds: dict[str, list[Tally]], firsts: dict[str, float]) -> dict[str, Any]:
    """Throughput, median (range) of rounds, and time to first token of every way, and ratios."""
    rates = {name: [tally.rate for tally in tallies] for name, tallies in rounds.items()}
    two, one = rates["two replicas"], firsts["one replica"]
    return {
        name: {
            "tokens/s": show(rates[name]),
            "of two replicas": show(ratios(rates[name], two), 2) if all(two) else None,
            "first token, ms": round(1000 * firsts[name], 1) if name in firsts else None,
            "of one replica": round(firsts[name] / one, 2) if name in firsts else None,
            "rounds, tokens/s": rates[name],
            "failed": dict(sum((tally.failed for tally in tallies), Counter())),
        }
        for name, tallies in rounds.items()
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Every request that failed."""
    restart = result.get("rolling restart", {}).get("failed", {})
    by_way = {name: each["failed"] for name, each in result.items() if "tokens/s" in each}
    both = [*by_way.items(), *((f"{name}, restart", each) for name, each in restart.items())]
    return [f"{name}: {count} times {what}" for name, each in both for what, count in each.items()]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.fleet", allow_abbrev=False)
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--clients", type=int, default=16, help="at a time (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="length of an answer (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8, help="seconds of a turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (%(default)s)")
    parser.add_argument("--times", type=int, default=30, help="first tokens (%(default)s)")
    parser.add_argument("--no-restart", dest="restart", action="store_false", help="leave it out")
    parser.add_argument("--results", type=Path, default=Path("runs/loadtest"), help="(%(default)s)")
    options = parser.parse_args(argv)
    for name in ("clients", "tokens", "seconds", "rounds", "times"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive")
    return options


def main(argv: list[str]) -> int:
    """Measure, show the figures, and return the exit code."""
    options = parse(argv)
    end_as_asked()
    environment(REASONMAXXER_API_KEY=KEY)
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder, forking(Path(folder)) as starter:
        try:
            result = asyncio.run(measure(options, Path(folder), starter))
        except RuntimeError as error:
            print(f"python -m loadtests.fleet: {error}", file=sys.stderr)
            return 1
    rows = [[name, each] for name, each in result.items() if "tokens/s" in each]
    names = [name for name in rows[0][1] if name not in ("rounds, tokens/s", "failed")]
    print(f"median (range) of {options.rounds} rounds, by turns; {options.times} first tokens\n")
    print_table(["", *names], [[name, *(str(each[one]) for one in names)] for name, each in rows])
    if "rolling restart" in result:
        print(f"rolling restart: {result['rolling restart']}")
    wrong = failures(result)
    for one in wrong:
        print(f"WRONG: {one}")
    path = options.results / "fleet.json"
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    write_json(path, {"machine": machine(), "settings": settings, **result})
    print(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
