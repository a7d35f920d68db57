"""The command: one scenario on a running server, or on a server of its own.

    python -m loadtests                                              lists the scenarios
    python -m loadtests steady --host http://127.0.0.1:8000 --users 16 --seconds 60
    python -m loadtests swap-storm --start                           starts a server for the run
    python -m loadtests soak --start --minutes 30 --share 0.8

Flags after `--` are passed to the server that --start starts. The results go to
runs/loadtest/SCENARIO-TIME/. Exit code 1: a check failed; 2: the run is not possible as requested.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from demo.server import end_as_asked
from loadtests.plan import ADMIN_KEY, API_KEY, PROBLEMS, Plan, PlanError, Server, make_plan
from loadtests.run import LocustError, perform
from loadtests.scenarios import SCENARIOS, Scenario

RESULTS = Path("runs/loadtest")
SHARE = 0.8


def list_scenarios() -> str:
    """The scenarios, with their default users and seconds."""
    lines = ["scenarios:"]
    for one in SCENARIOS.values():
        lines.append(f"  {one.name:14} {one.about} [{one.users} users, {one.seconds:g} s]")
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line; exit with 2 if it is wrong."""
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m loadtests", allow_abbrev=False)
    parser.description = "Put load on a running server, by scenario."
    parser.epilog, parser.formatter_class = list_scenarios(), argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("scenario", metavar="SCENARIO", nargs="?", help="one of those below")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", default="http://127.0.0.1:8000", help="server (%(default)s)")
    where.add_argument("--start", action="store_true", help="start a server of the shipped models")
    add("--users", type=int, help="users at a time, at most")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--seconds", type=float, help="duration; of a ramp: of one step")
    duration.add_argument("--minutes", type=float, help="duration, in minutes")
    add("--seed", type=int, default=0, help="seed of prompts and models (%(default)s)")
    add("--mix", default="", help="shares of traffic, such as base=1,tiny-math=3")
    add("--problems", type=Path, default=PROBLEMS, help="JSONL with `problem` (shipped ones)")
    add("--max-tokens", type=int, default=128, help="length of an answer (%(default)s)")
    add("--temperature", type=float, default=0.6, help="(%(default)s)")
    add("--share", type=float, help=f"soak: of saturation ({SHARE})")
    add("--saturation", type=float, metavar="N", help="soak: requests per second (by a ramp)")
    add("--rate", type=float, default=0.0, help="requests per second of all users")
    add("--pid", type=int, help="the server's process, to watch its memory")
    add("--results", type=Path, help=f"folder ({RESULTS}/SCENARIO-TIME)")
    add("--api-key", default=os.environ.get(API_KEY, ""), help=f"or {API_KEY}")
    add("--admin-key", default=os.environ.get(ADMIN_KEY, ""), help=f"or {ADMIN_KEY}")
    options = parser.parse_args(argv[:at])
    options.flags = argv[at + 1 :]
    if options.scenario is not None:
        _complete(parser, options)
    return options


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Check the options, and fill in the scenario's defaults."""
    scenario = SCENARIOS.get(options.scenario)
    if scenario is None:
        parser.error(f"there is no scenario '{options.scenario}'\n{list_scenarios()}")
    for name in ("users", "seconds", "minutes", "max_tokens", "share", "saturation"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    options.users = options.users or scenario.users
    options.seconds = options.seconds or 60 * (options.minutes or 0) or scenario.seconds
    if options.users < 2 and scenario.other:
        parser.error(f"{scenario.name} has two kinds of users: --users must be 2 or more")
    if not 0 <= options.rate < float("inf") or not 0 <= options.temperature < float("inf"):
        parser.error("--rate and --temperature must not be negative")
    if options.rate and {stage.users for stage in scenario.stages} != {1.0}:
        parser.error(f"--rate: {scenario.name} has not the same users all the time")
    for name in ("share", "saturation"):
        if getattr(options, name) is not None and (options.rate or not scenario.paced):
            parser.error(f"--{name} is for a soak without --rate")
    options.share = options.share or SHARE
    if options.pid is not None and options.start:
        parser.error("--pid: what --start starts is watched without it")
    if options.pid is not None and not psutil.pid_exists(options.pid):
        parser.error(f"--pid {options.pid}: no such process")
    if options.flags and not options.start:
        parser.error("flags after -- are for the server that --start starts")
    if not options.host.startswith(("http://", "https://")):
        parser.error(f"--host {options.host}: must begin with http:// or https://")
    options.host = options.host.rstrip("/")


def soak(plan: Plan, folder: Path, options: argparse.Namespace, pid: int | None) -> dict[str, Any]:
    """Find saturation unless it is given, then run at a share of it. Returns the summary."""
    found: dict[str, Any] = {"requests_per_second": options.saturation, "given": True}
    if options.saturation is None:
        ramp = SCENARIOS["ramp"]
        step = min(ramp.seconds, max(1.0, plan.seconds / 10))
        first = replace(plan, scenario="ramp", users=ramp.users, seconds=step, rate=0.0)
        found = perform(first, folder / "saturation", pid)["saturation"]
        if not found or not found["requests_per_second"]:
            raise PlanError("the ramp found no saturation: nothing was answered")
    rate = options.share * found["requests_per_second"]
    print(f"\n{options.share:g} of {found['requests_per_second']:.2f} requests/s: {rate:.2f}")
    more = {"of_saturation": found | {"share": options.share}}
    return perform(replace(plan, rate=rate), folder, pid, more)


def run(scenario: Scenario, options: argparse.Namespace) -> int:
    """Run a scenario, on a server of its own with --start. Returns the exit code."""
    name = f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = options.results or RESULTS / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"--results: {error}") from error
    for variable, key in ((API_KEY, options.api_key), (ADMIN_KEY, options.admin_key)):
        os.environ.pop(variable, None)
        if key:
            os.environ[variable] = key  # locust reads them here: no key is on a command line
    with ExitStack() as stack:
        host, pid = options.host, options.pid
        if options.start:
            from loadtests.local_server import started

            running = stack.enter_context(started(scenario, options.flags))
            host, pid = running.url, running.pid
        server = Server(host, options.api_key, os.environ.get(ADMIN_KEY, ""))
        plan = make_plan(scenario, server, options, str(options.problems.resolve()))
        if scenario.paced and not plan.rate:
            summary = soak(plan, folder, options, pid)
        else:
            summary = perform(plan, folder, pid)
    return 0 if summary["passed"] else 1


def main(argv: list[str]) -> int:
    """Run the command. Returns the exit code."""
    options = parse(argv)
    if options.scenario is None:
        print(list_scenarios())
        return 0
    end_as_asked()
    try:
        return run(SCENARIOS[options.scenario], options)
    except (PlanError, LocustError, RuntimeError) as error:
        print(f"python -m loadtests: {error}", file=sys.stderr)
        return 2 if isinstance(error, PlanError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
