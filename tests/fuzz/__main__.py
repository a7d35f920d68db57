"""Fuzz a running server: random traffic for minutes, and whether anything broke, leaked or grew.

    python -m tests.fuzz --host http://127.0.0.1:8000 --minutes 30 --seed 0 --pid PID

Good requests must be answered as asked, bad ones refused with a reason, and once the traffic stops
the server must hold nothing: no request, no KV block, no gate's state. With --pid (the server's
process, on this machine) memory, open files and threads are watched too. Greedy requests known from
the idle server are mixed in, and must give the same tokens under load. Request number N of a seed
is always the same, so that a failure can be sent again alone (--only N).

traffic.py and refusals.py make the requests, good and bad; client.py sends them; oracle.py judges
the answers; server_state.py looks for leaks; report.py sums up.

The report goes to runs/fuzz/report.json. Exit code 1: something is wrong; 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from adapters.files import write_json
from tests.fuzz import oracle, server_state
from tests.fuzz.client import ANSWER_SECONDS, SETTLE_SECONDS, Users, probe
from tests.fuzz.report import report, show
from tests.fuzz.traffic import draw, witness_bodies
from training.provenance import machine


def _client(options: argparse.Namespace) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    # vLLM closes a connection that was idle for five seconds; a client must let go of it before.
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=options.users, keepalive_expiry=2
    )
    timeout = httpx.Timeout(ANSWER_SECONDS)
    return httpx.AsyncClient(base_url=options.host, headers=headers, limits=limits, timeout=timeout)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the fuzzer. Returns the report; `wrong` and `faults` are empty where all is well.

    Raises:
        httpx.HTTPError: the server cannot be reached, or does not answer before the traffic.
    """
    wrong: list[str] = []
    after: dict[str, float] = {}
    async with _client(options) as client:
        target = await probe(client)
        users = Users(client, options, target, witness_bodies(target, options.seed))
        if options.only is not None:
            return await once(users, options.only)
        print(
            f"{options.host}: {target.base}, {len(target.adapters)} adapters, seed {options.seed}"
        )
        users.lines = await users.listen()
        wrong += users.shut_gates(users.lines)
        before, leaks = await users.settle()
        wrong += [f"before the traffic: {leak}" for leak in leaks]
        idle = server_state.take_sample(options.pid, 0, 0) if options.pid is not None else None
        start = time.monotonic()
        await users.traffic(60 * options.minutes)
        seconds = time.monotonic() - start
    async with _client(options) as users.client:  # the other's connections are closed now
        try:
            after = await afterwards(users, before, idle, wrong)
        except (httpx.HTTPError, psutil.NoSuchProcess) as error:
            wrong.append(f"the server is gone: {error!r}")
    result = report(users.tally, users.samples, before, after)
    if result.get("memory_mib", {}).get("flat") is False:
        growth = result["memory_mib"]["growth"]
        wrong.append(f"memory grew by {growth:.1%} from the middle third to the last")
    return {
        "machine": machine(),
        "host": options.host,
        "models": [target.base, *target.adapters, *target.gated],
        "seed": options.seed,
        "users": options.users,
        "seconds": round(seconds, 1),
        **result,
        "wrong": wrong,
        "faults": users.tally.faults,
    }


async def afterwards(
    users: Users, before: dict[str, float], idle: server_state.Sample | None, wrong: list[str]
) -> dict[str, float]:
    """Look for what the traffic has left behind; add it to `wrong`. Returns the metrics."""
    lines = await users.listen()
    wrong += users.shut_gates(lines)
    wrong += [fault for which, line in enumerate(lines) for fault in users.compare(which, line)]
    after, leaks = await users.settle()
    wrong += [f"after the traffic: {leak}" for leak in leaks]
    wrong += server_state.never_rose(users.tally.most, gated=bool(users.target.gated))
    if after.get(server_state.GATED, 0) - before.get(server_state.GATED, 0) < users.tally.gated:
        wrong.append("the answers report more gated tokens than the counter")
    if idle is not None:
        wrong += await closed(users.options.pid, idle)
    return after


async def closed(pid: int, idle: server_state.Sample) -> list[str]:
    """What stays open in the server's processes though the traffic's clients are gone."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        left = server_state.left_open(idle, server_state.take_sample(pid, 0, 0))
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


async def once(users: Users, number: int) -> dict[str, Any]:
    """Send one request alone, and show its answer."""
    case = draw(users.options.seed, number, users.target, len(users.witnesses))
    if case.witness is not None:
        case = replace(case, body=users.witnesses[case.witness])
    print(f"{case.kind}: {', '.join(case.features)}\n{(case.content or b'')!r}")
    got = await users.send(case)
    print(got)
    if got is None:
        return {"faults": []}
    check = oracle.check_answer if case.refusal is None else oracle.check_refusal
    return {"faults": list(check(case, *got))}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--host", default="http://127.0.0.1:8000", help="server (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="how long (%(default)s)")
    parser.add_argument("--requests", type=int, metavar="N", help="end after so many, if sooner")
    parser.add_argument("--seed", type=int, default=0, help="which requests (%(default)s)")
    parser.add_argument("--users", type=int, default=24, help="at a time (%(default)s)")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--only", type=int, metavar="N", help="ask request N alone and show it")
    parser.add_argument(
        "--near-tie",
        type=float,
        default=1e-3,
        help="nats by which another batch may round; %(default)s is for float32, 0.25 for bfloat16",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("REASONMAXXER_API_KEY", ""),
        help="default: the environment's REASONMAXXER_API_KEY",
    )
    parser.add_argument("--results", type=Path, default=Path("runs/fuzz"), help="(%(default)s)")
    options = parser.parse_args(argv)
    if options.minutes <= 0 or options.users < 1 or options.near_tie < 0:
        parser.error("--minutes and --users must be positive, --near-tie not negative")
    if options.requests is not None and options.requests < 1:
        parser.error("--requests must be positive")
    if options.pid is not None and not psutil.pid_exists(options.pid):
        parser.error(f"--pid {options.pid}: no such process")
    return options


def main(argv: list[str]) -> int:
    """Run the fuzzer. Returns the exit code."""
    options = parse(argv)
    try:
        result = asyncio.run(run(options))
    except httpx.HTTPError as error:
        print(f"python -m tests.fuzz: {options.host}: {error!r}", file=sys.stderr)
        return 2
    if options.only is None:
        show(result)
        path = options.results / "report.json"
        write_json(path, result)
        print(path)
    return 1 if result["faults"] or result.get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
