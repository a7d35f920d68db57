"""The users, for locust: streaming chat, long prompts, hostile requests, and moves of an alias.

    locust -f loadtests/locustfile.py --plan runs/loadtest/steady-.../plan.json

`python -m loadtests` writes the plan and calls this. Each answer goes to answers.jsonl beside it.
In locust's own tables `POST` is the request as a whole; `ttft`, `inter-token` (the mean of an
answer), `tokens/s` and `gate rate` (in %) are request types of their own; all count from sending.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, LoadTestShape, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment

from loadtests import answers as records
from loadtests.answers import CHAT, HOSTILE, LONG, Answer, Move, Phase
from loadtests.figures import SETTLING, STEPS_WITHOUT_GAIN, no_gain
from loadtests.hostile import BadRequest, bad_requests, refusal_faults
from loadtests.plan import ADMIN_KEY, API_KEY, Plan, bearer, read_problems

Reader = Callable[[Any, float], None]  # gets a response and when its request was sent
SPAWN_RATE = 1000.0  # users per second: as good as all at once
ANSWER_SECONDS = 120  # timeout of an answer
HOSTILE_PAUSE = 0.1  # mean seconds between two requests of a hostile user
# Each request has a connection of its own: the server closes an idle one after some seconds, which
# may be the moment when it is used again.
HEADERS = {"Content-Type": "application/json", "Connection": "close"}


class Run:
    """What the users share; filled when the test starts."""

    under_way = False
    plan: Plan
    folder: Path
    problems: tuple[str, ...]
    bad_requests: list[BadRequest]
    headers: dict[str, str]
    file: Any  # answers.jsonl
    start: float  # perf_counter
    numbers: Iterator[int]
    phases: list[Phase]
    moves: list[Move]
    pieces: list[float]  # of a ramp: when each piece of text came, perf_counter
    totals: Counter[str]  # tokens and pieces of the answers that have ended

    @classmethod
    def now(cls) -> float:
        """Seconds since the test began."""
        return time.perf_counter() - cls.start


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add our flag to locust's."""
    parser.add_argument("--plan", required=True, help="plan.json of `python -m loadtests`")


@events.init.add_listener
def use_host(environment: Environment, **_: Any) -> None:
    """Ask the plan's server, unless locust is told another."""
    assert environment.parsed_options is not None
    plan = Plan.read(Path(environment.parsed_options.plan))
    environment.host = environment.host or plan.host


def prepare(environment: Environment) -> None:
    """Read the plan and start the clock; locust asks for the curve before it fires test_start."""
    options = environment.parsed_options
    assert options is not None
    Run.folder, Run.plan = Path(options.plan).parent, Plan.read(Path(options.plan))
    Run.problems = read_problems(Run.plan.problems)
    if Run.plan.curve.other == HOSTILE:
        Run.bad_requests = bad_requests(Run.plan.models, Run.plan.context)
    Run.headers = HEADERS | bearer(os.environ.get(API_KEY, ""))
    Run.file = (Run.folder / "answers.jsonl").open("w", encoding="utf-8")
    Run.numbers, Run.phases, Run.moves = itertools.count(), [], []
    Run.pieces, Run.totals = [], Counter()
    Run.under_way, Run.start = True, time.perf_counter()
    # perf_counter is the machine's: the process that samples the server's memory needs this one.
    (Run.folder / "start.txt").write_text(f"{Run.start}\n", encoding="utf-8")


@events.test_stop.add_listener
def finish(**_: Any) -> None:
    """Write the phases and the moves."""
    Run.under_way = False
    Run.file.close()
    if Run.phases:
        Run.phases[-1] = replace(Run.phases[-1], end=min(Run.now(), Run.phases[-1].end))
    records.write_lines(Run.folder / "phases.jsonl", Run.phases)
    if Run.plan.curve.moves:
        records.write_lines(Run.folder / "moves.jsonl", Run.moves)


class Curve(LoadTestShape):
    """The scenario's stages, or steps that double the users until throughput stops rising."""

    use_common_options = True
    best, without_gain = 0.0, 0

    def tick(self) -> tuple[int, float] | None:
        """(users, users per second) now; None ends the test."""
        if not Run.under_way:
            assert self.runner is not None
            self.best, self.without_gain = 0.0, 0
            prepare(self.runner.environment)
        now = Run.now()
        found = self._stage(now) if Run.plan.curve.stages else self._step(now)
        last = Run.phases[-1] if Run.phases else None
        if last is not None and (found is None or found[:2] != (last.name, last.users)):
            Run.phases[-1] = replace(last, end=now)
        if found is None:
            return None
        name, users, end = found
        if last is None or (last.name, last.users) != (name, users):
            Run.phases.append(Phase(name, users, now if last else 0.0, end))
        return users, SPAWN_RATE

    def _stage(self, now: float) -> tuple[str, int, float] | None:
        stage = Run.plan.curve.stage(now / Run.plan.seconds)
        if stage is None:
            return None
        users = max(1, round(stage.users * Run.plan.users))
        return stage.phase, users, stage.until * Run.plan.seconds

    def _step(self, now: float) -> tuple[str, int, float] | None:
        last = Run.phases[-1] if Run.phases else None
        if last is None:
            return "1 user", 1, Run.plan.seconds
        if now < last.start + Run.plan.seconds:
            return last.name, last.users, last.end
        start = last.start + SETTLING * Run.plan.seconds
        # Answers under way have no token counts yet, so that pieces of text are counted.
        pieces = len(Run.pieces) - bisect_left(Run.pieces, Run.start + start)
        rate = pieces * Run.totals["tokens"] / max(1, Run.totals["pieces"]) / (now - start)
        self.without_gain = self.without_gain + 1 if no_gain(rate, self.best) else 0
        self.best = max(self.best, rate)
        if self.without_gain >= STEPS_WITHOUT_GAIN or last.users >= Run.plan.users:
            return None
        users = min(2 * last.users, Run.plan.users)
        return f"{users} users", users, now + Run.plan.seconds


class User(FastHttpUser):
    """Sends one request after another. The second half of them are of the scenario's other kind."""

    network_timeout = ANSWER_SECONDS
    connection_timeout = 30
    max_retries = 0

    def on_start(self) -> None:
        """Choose the kind of user, and when its first request is due."""
        plan = Run.plan
        number = next(Run.numbers)
        self.random = random.Random(f"{plan.seed}-{number}")
        first_half = number < max(1, round(plan.users / 2))
        self.kind = CHAT if first_half else plan.curve.other or CHAT
        self.interval = plan.users / plan.rate if plan.rate else 0.0
        self.due = Run.now()
        if self.interval:  # the first requests are spread over one interval
            self.due += self.random.uniform(0, self.interval)
        if plan.curve.moves and number == 0:
            gevent.spawn(move_alias, self.environment)

    def wait_time(self) -> float:
        """Seconds until the next request is due. A late one leaves the schedule as it is."""
        if self.kind == HOSTILE:
            return self.random.uniform(0, 2 * HOSTILE_PAUSE)
        self.due = self.due + self.interval if self.interval else Run.now()
        return max(0.0, self.due - Run.now())

    @task
    def send(self) -> None:
        """Send one request."""
        gevent.sleep(max(0.0, self.due - Run.now()))  # the first one may not be due yet
        if self.kind == HOSTILE:
            self._send_bad()
        else:
            self._chat()

    def _body(self, model: str) -> dict[str, Any]:
        plan, tokens = Run.plan, Run.plan.max_tokens
        prompt = self.random.choice(Run.problems)
        if self.kind == LONG:
            while len(prompt) < plan.long_characters:
                prompt += " " + self.random.choice(Run.problems)
            prompt, tokens = prompt[: plan.long_characters], min(tokens, 32)
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": plan.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _chat(self) -> None:
        mix = Run.plan.mix
        model = self.random.choices(tuple(mix), tuple(mix.values()))[0]
        body = json.dumps(self._body(model)).encode()
        answer = Answer(Run.now(), model, self.kind)
        answer.late = 1000 * max(0.0, answer.at - self.due) if self.interval else 0.0
        name = model if self.kind == CHAT else f"{model} [{self.kind}]"

        def read(response: Any, start: float) -> None:
            if answer.status == 200:
                on_text = None if Run.plan.curve.stages else Run.pieces.append
                records.read_stream(answer, start, response._response.readline, on_text)
            else:
                text = response.text if answer.status else ""
                answer.error = text or str(response.error or "") or "no answer"

        more = {"data": body, "headers": Run.headers, "name": name}
        try:
            post(self.client, answer, read, "/v1/chat/completions", **more)
        except gevent.GreenletExit:
            answer.error = "not answered when the run ended"
            raise
        finally:
            records.append(Run.file, answer)
        self._report(answer, name)
        if answer.status == 0:
            gevent.sleep(0.1)  # the server is gone: do not spin

    def _report(self, answer: Answer, name: str) -> None:
        """Add a good answer to locust's own tables."""
        if answer.error or answer.ttft is None:
            return
        Run.totals.update(tokens=answer.tokens, pieces=1 + len(answer.gaps))
        values = {"ttft": answer.ttft}
        if answer.rate:
            values |= {"inter-token": 1000 / answer.rate, "tokens/s": answer.rate}
        if answer.gate_rate is not None:
            values["gate rate"] = 100 * answer.gate_rate
        more = {"name": name, "response_length": answer.tokens, "exception": None, "context": {}}
        for kind, value in values.items():
            self.environment.events.request.fire(request_type=kind, response_time=value, **more)

    def _send_bad(self) -> None:
        bad = self.random.choice(Run.bad_requests)
        answer = Answer(Run.now(), bad.kind, HOSTILE)

        def read(response: Any, _: float) -> None:
            faults = refusal_faults(answer.status, response.content or b"", bad.word)
            answer.error = "; ".join(faults)

        more = {"data": bad.content or b" ", "headers": Run.headers}  # locust sends no empty body
        post(self.client, answer, read, bad.path, name=f"refused: {bad.kind}", **more)
        records.append(Run.file, answer)


def post(client: Any, answer: Answer, read: Reader, path: str, **more: Any) -> None:
    """Send a request, and let `read` complete its answer; a broken stream or body is an error.

    `more` has the request's data, headers, and its name in locust.
    """
    start = time.perf_counter()
    with client.post(path, stream=True, catch_response=True, **more) as response:
        try:
            answer.status = response.status_code
            read(response, start)
        except (*FAILURE_EXCEPTIONS, ValueError, LookupError, TypeError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.error = answer.error[:300]
        answer.ms = 1000 * (time.perf_counter() - start)
        response.request_meta["response_time"] = answer.ms  # locust's stops at the headers
        if answer.error:
            response.failure(f"HTTP {answer.status}: {answer.error}")
        else:
            response.success()


class Admin(FastHttpUser):
    """Who moves the alias; locust starts no user of this class."""

    abstract = True


def move_alias(environment: Environment) -> None:
    """Move the alias from version to version in the last phase, as fast as the server answers."""
    plan = Run.plan
    choose = random.Random(plan.seed)
    headers = HEADERS | bearer(os.environ.get(ADMIN_KEY, ""))
    Admin.host = plan.host
    client = Admin(environment).client
    version = plan.versions[0]
    Run.moves.append(Move(version, 0.0, 0.0))
    while Run.under_way:
        gevent.sleep(0.05)
        if not Run.phases or Run.phases[-1].name != plan.curve.stages[-1].phase:
            continue
        version = choose.choice([one for one in plan.versions if one != version])
        answer = Answer(Run.now(), plan.alias)

        def read(response: Any, _: float, to: str = version, answer: Answer = answer) -> None:
            if answer.status != 200:
                answer.error = response.text or "no answer"
            elif (serving := response.json()["serving"]) != to:
                answer.error = f"serving {serving} after a move to {to}"

        more = {"data": json.dumps({"version": version}).encode(), "headers": headers}
        try:
            path = f"/admin/adapters/{plan.alias}/alias"
            post(client, answer, read, path, name="move the alias", **more)
        finally:
            # The end of the run interrupts the last move, which the server makes all the same.
            Run.moves.append(Move(version, answer.at, Run.now(), answer.error))
