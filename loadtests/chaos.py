"""Replicas that are killed while an alias moves in the bucket they share: is any answer wrong?

    python -m loadtests.chaos                            # two replicas, 16 clients, 200 moves
    python -m loadtests.chaos --moves 40                  (about 2 minutes on one core)

An S3 server (moto) on this machine holds the store, replicas of the shipped miniature follow it.
One process moves an alias through the bucket. Another kills replicas at random and starts them
again. Clients ask replicas that are up, as behind a router, and never try again. What must hold:

- each answer is of a version that the alias pointed at while it was asked, or up to two seconds
  before;
- its text is that of this version, which an idle replica gave before the start;
- no request fails but those that a killed process was answering;
- at the end all replicas serve the last version, the history has every move in its order, and
  `store verify` finds nothing.

The report goes to runs/loadtest/chaos.json. Exit code 1: something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from adapters.audit import verify
from adapters.files import write_json
from adapters.places import open_store
from adapters.store import Store
from benchmarks.adapters import make_random_adapter
from benchmarks.bucket import own_storage
from benchmarks.report import print_table
from benchmarks.streams import Answer as Streamed
from benchmarks.streams import environment, stream
from benchmarks.swap import BASE
from demo.server import end_as_asked
from loadtests.answers import Answer, Move
from loadtests.checks import staleness
from loadtests.preloaded import Command
from loadtests.replicas import FLAGS, Replica, forking
from training.provenance import machine

NAME = "moving"
VERSIONS = 4
FOLLOWS_SECONDS = 2.0  # in which a move must have reached every replica
PROMPTS = ("What is 9-11*7+12+9?", "What is 3*4+17?", "What is 80-3*6?")


class Question(NamedTuple):
    """What a client asks of the alias, or of a version."""

    prompt: str
    gated: bool

    async def ask(self, client: httpx.AsyncClient, model: str) -> Streamed:
        """A stream of few tokens, greedy."""
        return await stream(client, model + ":gated" * self.gated, self.prompt, 6)


QUESTIONS = [Question(prompt, gated) for prompt in PROMPTS for gated in (False, True)]


@dataclass
class Run:
    """One run, and what is known of it so far. Times are seconds since its start."""

    options: argparse.Namespace
    store: Store
    versions: list[str]
    replicas: list[Replica]
    random: random.Random
    began: float = field(default_factory=time.perf_counter)
    known: dict[tuple[str, Question], str] = field(default_factory=dict)  # what idle replicas say
    answers: list[Answer] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    of_killed: int = 0  # requests that a killed process was answering
    wrong_texts: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    over: bool = False

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.began

    async def learn(self) -> None:
        """Ask every version by its hash; all replicas must agree."""
        for replica in self.replicas:
            async with httpx.AsyncClient(base_url=replica.url, timeout=120) as client:
                for version in self.versions:
                    for question in QUESTIONS:
                        text = (await question.ask(client, version)).whole()
                        if self.known.setdefault((version, question), text) != text:
                            raise RuntimeError(f"idle replicas differ on {version}")
        if len({self.known[version, QUESTIONS[0]] for version in self.versions}) == 1:
            raise RuntimeError("all versions answer alike, which would show nothing")

    async def move(self) -> None:
        """Move the alias again and again, through the bucket."""
        self.moves.append(Move(self.versions[-1], 0.0, 0.0))  # where `publish` left it
        for _ in range(self.options.moves):
            await asyncio.sleep(self.options.every * self.random.expovariate(1.0))
            others = [one for one in self.versions if one != self.moves[-1].version]
            version, start = self.random.choice(others), self.now()
            await asyncio.to_thread(self.store.alias, NAME, version)
            self.moves.append(Move(version, start, self.now()))

    async def kill(self) -> None:
        """Kill replicas, one at a time, and start them again; `options.kills` times at least.

        Raises:
            RuntimeError: one does not start any more.
        """
        while True:
            await asyncio.sleep(self.random.uniform(2, 6))
            if self.over and len(self.restarts) >= self.options.kills:
                return
            victim = self.random.choice(self.replicas)
            await asyncio.to_thread(victim.kill)
            self.restarts.append(await victim.start())

    async def ask(self) -> None:
        """One client: asks one of the replicas that are up, again and again."""
        clients = {
            replica.port: httpx.AsyncClient(base_url=replica.url, timeout=120)
            for replica in self.replicas
        }
        while not self.over:
            replica = self.random.choice([one for one in self.replicas if one.up])
            question = self.random.choice(QUESTIONS)
            kills, start = len(replica.kills), self.now()
            got = await question.ask(clients[replica.port], NAME)
            if got.error and len(replica.kills) > kills:
                self.of_killed += 1
            else:
                self.note(question, start, got)
            await asyncio.sleep(self.random.uniform(0, 2 * self.options.pause))
        for client in clients.values():
            await client.aclose()

    def note(self, question: Question, start: float, got: Streamed) -> None:
        """Keep what came of a request, and compare its text with the version's own."""
        ttft = 1000 * got.arrivals[0] if got.arrivals else None
        served = got.version.removesuffix(":gated")
        self.answers.append(
            Answer(start, NAME, served=served, status=got.status, error=got.error, ttft=ttft)
        )
        own = self.known.get((served, question))
        if not got.error and got.text != own:
            self.wrong_texts.append(f"{served} said {got.text!r}, alone {own!r}")

    async def perform(self) -> None:
        """Everything at once, until the last move is two seconds old."""
        self.began = time.perf_counter()
        asking = [asyncio.create_task(self.ask()) for _ in range(self.options.clients)]
        killing = asyncio.create_task(self.kill())
        moving = asyncio.create_task(self.move())
        try:
            await asyncio.wait([moving, killing], return_when=asyncio.FIRST_COMPLETED)
            if killing.done():
                await killing  # it goes on as long as the alias moves: a replica does not start
            await moving
            await asyncio.sleep(FOLLOWS_SECONDS)
            self.over = True
            await asyncio.gather(killing, *asking)
        finally:
            for task in (moving, killing, *asking):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def last_versions(self) -> list[str]:
        """What each replica serves in the end."""
        found = []
        for replica in self.replicas:
            async with httpx.AsyncClient(base_url=replica.url, timeout=120) as client:
                found.append((await QUESTIONS[0].ask(client, NAME)).version)
        return found


def judge(
    run: Run, last: Sequence[str], audit: Sequence[str], history: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, what did not hold)."""
    good = [one for one in run.answers if not one.error]
    late = [staleness(one, run.moves) for one in good]
    bad = [one for one in run.answers if one.error]
    figures: dict[str, Any] = {
        "replicas, clients": f"{len(run.replicas)}, {run.options.clients}",
        "seconds": round(run.moves[-1].end, 1),
        "moves": len(run.moves) - 1,
        "kills": len(run.restarts),
        "seconds to be up again": [round(one, 1) for one in run.restarts],
        "answers": len(good),
        "of a version that had moved away": sum(one > 0 for one in late),
        "longest after the move, s": f"{max(late, default=0.0):.2f}",
        "requests of killed processes": run.of_killed,
        "other requests that failed": len(bad),
    }
    moved = [move.version for move in run.moves[1:]]
    wrong = {
        f"wrong version after {FOLLOWS_SECONDS:g} s": sum(one > FOLLOWS_SECONDS for one in late),
        "text of another version": Counter(run.wrong_texts).most_common(1),
        "requests lost": Counter(f"{one.status} {one.error}" for one in bad).most_common(1),
        "last version not served": [one for one in last if one != run.moves[-1].version],
        "moves not in the history": 0 if list(history[-len(moved) :]) == moved else "differs",
        "store audit": list(audit),
        "no answers": not good,
    }
    return figures, {name: found for name, found in wrong.items() if found}


async def chaos(
    options: argparse.Namespace, url: str, work: Path, starter: Command
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publish, start, and run. Returns what `judge` does."""
    store = open_store(url, work / "mover")
    made = [make_random_adapter(work, BASE, seed) for seed in range(VERSIONS)]
    versions = [store.publish(folder, NAME).id for folder in made]
    replicas = [
        Replica(
            (*FLAGS, "--adapters", url, "--store-cache", str(work / f"cache-{number}")),
            work,
            starter,
        )
        for number in range(options.replicas)
    ]
    run = Run(options, store, versions, replicas, random.Random(options.seed))
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        await run.learn()
        await run.perform()
        last = await run.last_versions()
    finally:
        for replica in replicas:
            replica.stop()
    fresh = open_store(url, work / "auditor")
    audit = [str(problem) for problem in verify(fresh)]
    return judge(run, last, audit, [move.version for move in fresh.history(NAME)])


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", allow_abbrev=False)
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--replicas", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--moves", type=int, default=200, help="moves of the alias (%(default)s)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds a move (%(default)s)")
    parser.add_argument("--kills", type=int, default=1, help="at least (%(default)s)")
    parser.add_argument(
        "--pause", type=float, default=1.0, help="seconds between a client's requests (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("runs/loadtest"), help="(%(default)s)")
    options = parser.parse_args(argv)
    if options.replicas < 2:
        parser.error("--replicas must be 2 or more: one of them may be down")
    if min(options.clients, options.moves) < 1 or min(options.every, options.pause) < 0:
        parser.error("--clients and --moves must be positive, --every and --pause not negative")
    return options


def main(argv: list[str]) -> int:
    """Run, show the figures, and return the exit code."""
    options = parse(argv)
    end_as_asked()
    environment()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="chaos-") as folder,
            own_storage() as url,
            forking(Path(folder)) as starter,
        ):
            figures, wrong = asyncio.run(chaos(options, url, Path(folder), starter))
    except RuntimeError as error:
        print(f"python -m loadtests.chaos: {error}", file=sys.stderr)
        return 1
    print_table(["", ""], [[name, str(value)] for name, value in figures.items()])
    for name, found in wrong.items():
        print(f"WRONG: {name}: {found}")
    path = options.results / "chaos.json"
    write_json(path, {"machine": machine(), **figures, "wrong": wrong})
    print(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
