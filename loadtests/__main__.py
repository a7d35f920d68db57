"""One scenario, one command.

    python -m loadtests                                              which scenarios there are
    python -m loadtests steady --host http://127.0.0.1:8000 --users 16 --seconds 60
    python -m loadtests swap-storm --start                           with a server of its own
    python -m loadtests soak --start --minutes 30 --share 0.8

Flags after `--` are the server's (with --start). Results: runs/loadtest/SCENARIO-TIME/. Exit code
1: something that has to hold does not; 2: the run cannot be made as told.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from demo.server import end_as_asked
from loadtests.figures import Saturation
from loadtests.plan import ADMIN_KEY, API_KEY, Plan, PlanError, Server, make, make_problems
from loadtests.run import LocustError, perform
from loadtests.scenarios import SCENARIOS, Scenario

RESULTS = Path("runs/loadtest")


def listing() -> str:
    """The scenarios, with what each does by default."""
    lines = [
        f"  {one.name:14} {one.about} [{one.users} users, {one.seconds:g} s]"
        for one in SCENARIOS.values()
    ]
    return "\n".join(["scenarios:", *lines])


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage above it."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; exits with 2 where it is wrong."""
    own, _, flags = _split(argv)
    parser = Parser(
        prog="python -m loadtests",
        description="Load on a running server, by scenario.",
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scenario", metavar="SCENARIO", nargs="?", help="one of those below")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="http://127.0.0.1:8000", help="server (%(default)s)")
    where.add_argument(
        "--start", action="store_true", help="start a server of the shipped base and adapters"
    )
    parser.add_argument("--users", type=int, help="at a time, at most")
    parser.add_argument("--seconds", type=float, help="how long; of a ramp: one step")
    parser.add_argument("--minutes", type=float, help="how long, in minutes")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and models (%(default)s)")
    parser.add_argument("--mix", default="", help="shares of traffic, such as base=1,tiny-math=3")
    parser.add_argument("--problems", type=Path, help="JSONL with `problem`; made if left out")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.6, help="(%(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.8, help="soak: of saturation (%(default)s)"
    )
    parser.add_argument(
        "--saturation",
        type=float,
        metavar="N",
        help="soak: requests a second at saturation; found by a ramp if left out",
    )
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second of all users")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    parser.add_argument("--results", type=Path, help=f"folder ({RESULTS}/SCENARIO-TIME)")
    parser.add_argument("--api-key", default=os.environ.get(API_KEY, ""), help=f"or {API_KEY}")
    parser.add_argument(
        "--admin-key", default=os.environ.get(ADMIN_KEY, ""), help=f"or {ADMIN_KEY}"
    )
    options = parser.parse_args(own)
    options.flags = flags
    if options.scenario is not None:
        _check(parser, options)
    return options


def _split(argv: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in argv:
        return argv, "", []
    at = argv.index("--")
    return argv[:at], "--", argv[at + 1 :]


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    scenario = SCENARIOS.get(options.scenario)
    if scenario is None:
        parser.error(f"there is no scenario '{options.scenario}'\n{listing()}")
    if options.seconds is not None and options.minutes is not None:
        parser.error("--seconds and --minutes are two ways to say the same: give one")
    if options.minutes is not None:
        options.seconds = 60 * options.minutes
    options.users = scenario.users if options.users is None else options.users
    options.seconds = scenario.seconds if options.seconds is None else options.seconds
    positive = {"users": options.users, "seconds": options.seconds, "share": options.share}
    positive |= {"max-tokens": options.max_tokens}
    if options.saturation is not None:
        positive["saturation"] = options.saturation
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            parser.error(f"--{name} must be above 0, not {value:g}")
    if options.users < 2 and scenario.other:
        parser.error(f"{scenario.name} has two kinds of users: --users must be 2 or more")
    if not 0 <= options.rate < float("inf") or not 0 <= options.temperature < float("inf"):
        parser.error("--rate and --temperature must not be negative")
    if options.pid is not None and not psutil.pid_exists(options.pid):
        parser.error(f"--pid {options.pid}: no such process")
    if options.flags and not options.start:
        parser.error("flags after -- are for the server that --start starts")
    if not options.host.startswith(("http://", "https://")):
        parser.error(f"--host {options.host}: must begin with http:// or https://")
    options.host = options.host.rstrip("/")


def soak(plan: Plan, folder: Path, options: argparse.Namespace, pid: int | None) -> dict[str, Any]:
    """Find saturation unless it is given, then ask at a share of it. Returns the summary."""
    found: dict[str, Any] = {"requests_per_second": options.saturation, "given": True}
    if options.saturation is None:
        ramp = SCENARIOS["ramp"]
        step = min(ramp.seconds, max(1.0, plan.seconds / 10))
        first = replace(plan, scenario="ramp", users=ramp.users, seconds=step, rate=0.0)
        found = perform(first, folder / "saturation", pid)["saturation"]
        if not found or not found["requests_per_second"]:
            raise PlanError("the ramp found no saturation: nothing was answered")
        _say(Saturation(**found), options.share)
    rate = options.share * found["requests_per_second"]
    more = {"of_saturation": found | {"share": options.share}}
    return perform(replace(plan, rate=rate), folder, pid, more)


def _say(found: Saturation, share: float) -> None:
    rate = found.requests_per_second
    print(
        f"\nsaturation: {rate:.2f} requests/s; the soak asks {share:g} of that, {share * rate:.2f}"
    )


def run(scenario: Scenario, options: argparse.Namespace) -> int:
    """Start a server if one is to be started, and run. Returns the exit code.

    Raises:
        PlanError, LocustError, RuntimeError: as the messages say.
    """
    name = f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = options.results or RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[API_KEY] = options.api_key  # for locust; keys are on no command line
    os.environ[ADMIN_KEY] = options.admin_key
    for key in (API_KEY, ADMIN_KEY):
        if not os.environ[key]:
            del os.environ[key]
    problems = options.problems or folder / "problems.jsonl"
    if options.problems is None:
        make_problems(problems)
    with ExitStack() as stack:
        host, pid = options.host, options.pid
        if options.start:
            from loadtests.stand import started

            running = stack.enter_context(started(scenario, options.flags))
            host, pid = running.url, running.pid
        server = Server(host, options.api_key, os.environ.get(ADMIN_KEY, ""))
        plan = make(scenario, server, options, str(problems.resolve()))
        if scenario.paced and not plan.rate:
            summary = soak(plan, folder, options, pid)
        else:
            summary = perform(plan, folder, pid)
    return 0 if summary["passed"] else 1


def main(argv: list[str]) -> int:
    """The command. Returns the exit code."""
    options = parse(argv)
    if options.scenario is None:
        print(listing())
        return 0
    end_as_asked()
    try:
        return run(SCENARIOS[options.scenario], options)
    except PlanError as error:
        print(f"python -m loadtests: {error}", file=sys.stderr)
        return 2
    except (LocustError, RuntimeError) as error:
        print(f"python -m loadtests: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
