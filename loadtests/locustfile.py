"""The users, for locust: streaming chat, and beside it what the scenario asks for.

    locust -f loadtests/locustfile.py --plan runs/loadtest/steady-.../plan.json

`python -m loadtests` writes the plan and calls this. Each answer goes to answers.jsonl beside it
with every gap between its tokens. In locust's own tables `POST` is the request as a whole; `ttft`,
`inter-token` (the mean of an answer), `tokens/s` and `gate rate` (in %) are types of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, LoadTestShape, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment

from loadtests.answers import CHAT, HOSTILE, LONG, Answer, Move, Phase, append, write_lines
from loadtests.figures import STEPS_WITHOUT_GAIN, no_gain
from loadtests.hostile import bad_request
from loadtests.judge import refused
from loadtests.plan import ADMIN_KEY, API_KEY, Plan, bearer, read_problems
from loadtests.stream import listen

AT_ONCE = 1000.0  # users a second: as good as all at once
ANSWER_SECONDS = 120
BREATH = 0.1  # seconds between two requests of a hostile user, in the mean
# Each request has a connection of its own: the server closes one that rests for some seconds, in a
# pause or while the machine stalls, just when it is used again.
HEADERS = {"Content-Type": "application/json", "Connection": "close"}


class Run:
    """What the users share; filled when the test starts."""

    under_way = False
    plan: Plan
    folder: Path
    problems: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[float, ...]
    headers: dict[str, str]
    file: Any
    start: float  # perf_counter
    numbers: Iterator[int]
    phases: list[Phase]
    moves: list[Move]
    pieces: list[float]  # of a ramp: when each piece of text came, perf_counter
    spoken: Counter[str]  # tokens and pieces of the answers that have ended

    @classmethod
    def now(cls) -> float:
        """Seconds since the test began."""
        return time.perf_counter() - cls.start


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Our own flag, beside locust's."""
    parser.add_argument("--plan", required=True, help="plan.json of `python -m loadtests`")


def prepare(environment: Environment) -> None:
    """Read the plan; the clock starts. Locust asks for the curve before it fires test_start."""
    options = environment.parsed_options
    assert options is not None
    Run.folder = Path(options.plan).parent
    Run.plan = Plan.read(Path(options.plan))
    Run.problems = read_problems(Run.plan.problems)
    Run.models, Run.weights = tuple(Run.plan.mix), tuple(Run.plan.mix.values())
    Run.headers = HEADERS | bearer(os.environ.get(API_KEY, ""))
    Run.file = (Run.folder / "answers.jsonl").open("w", encoding="utf-8")
    Run.numbers, Run.phases, Run.moves = itertools.count(), [], []
    Run.pieces, Run.spoken = [], Counter()
    Run.under_way = True
    Run.start = time.perf_counter()
    # perf_counter is the machine's: who samples the server's memory knows from this when.
    (Run.folder / "start.txt").write_text(f"{Run.start}\n", encoding="utf-8")


@events.test_stop.add_listener
def finish(**_: Any) -> None:
    """Write the phases and the moves."""
    Run.under_way = False
    Run.file.close()
    if Run.phases:
        Run.phases[-1] = _ended(Run.phases[-1], min(Run.now(), Run.phases[-1].end))
    write_lines(Run.folder / "phases.jsonl", Run.phases)
    if Run.plan.curve.moves:
        write_lines(Run.folder / "moves.jsonl", Run.moves)


def _ended(phase: Phase, end: float) -> Phase:
    return Phase(phase.name, phase.users, phase.start, end)


class Curve(LoadTestShape):
    """The scenario's stages, or steps that double until throughput stops rising."""

    use_common_options = True
    best, without_gain = 0.0, 0

    def tick(self) -> tuple[int, float] | None:
        """(users, users a second) now, by locust's habit; None ends the test."""
        if not Run.under_way:
            assert self.runner is not None
            self.best, self.without_gain = 0.0, 0
            prepare(self.runner.environment)
        now = Run.now()
        found = self._stage(now) if Run.plan.curve.stages else self._step(now)
        if found is None:
            if Run.phases:
                Run.phases[-1] = _ended(Run.phases[-1], now)
            return None
        name, users, end = found
        last = Run.phases[-1] if Run.phases else None
        if last is None or (last.name, last.users) != (name, users):
            if last is not None:
                Run.phases[-1] = _ended(last, now)
            Run.phases.append(Phase(name, users, now if last else 0.0, end))
        return users, AT_ONCE

    def _stage(self, now: float) -> tuple[str, int, float] | None:
        stage = Run.plan.curve.stage(now / Run.plan.seconds)
        if stage is None:
            return None
        users = max(1, round(stage.users * Run.plan.users))
        return stage.phase, users, stage.until * Run.plan.seconds

    def _step(self, now: float) -> tuple[str, int, float] | None:
        last = Run.phases[-1] if Run.phases else None
        users = last.users if last else 1
        if last is not None and now >= last.start + Run.plan.seconds:
            rate = _tokens_a_second(last.start + Run.plan.seconds / 3, now)
            self.without_gain = self.without_gain + 1 if no_gain(rate, self.best) else 0
            self.best = max(self.best, rate)
            if self.without_gain >= STEPS_WITHOUT_GAIN or users >= Run.plan.users:
                return None
            users = min(2 * users, Run.plan.users)
            return f"{users} users", users, now + Run.plan.seconds
        return f"{users} user{'s' * (users > 1)}", users, last.end if last else Run.plan.seconds


def _tokens_a_second(start: float, end: float) -> float:
    """From the pieces that came; answers under way have not said their tokens yet."""
    pieces = len(Run.pieces) - bisect_left(Run.pieces, Run.start + start)
    tokens_a_piece = Run.spoken["tokens"] / max(1, Run.spoken["pieces"])
    return pieces * tokens_a_piece / (end - start)


class Person(FastHttpUser):
    """Asks one request after another. The second half of them are of the scenario's other kind."""

    network_timeout = ANSWER_SECONDS
    connection_timeout = 30
    max_retries = 0

    def on_start(self) -> None:
        """Find out who one is."""
        plan = Run.plan
        self.number = next(Run.numbers)
        self.random = random.Random(f"{plan.seed}-{self.number}")
        first_half = self.number < max(1, round(plan.users / 2))
        self.kind = CHAT if first_half else plan.curve.other or CHAT
        self.pace = plan.users / plan.rate if plan.rate else 0.0
        self.due = Run.now()
        self.first = True
        if self.pace:
            # Spread over one turn, not all at the same moment.
            self.due += self.random.uniform(0, self.pace)
        if plan.curve.moves and self.number == 0:
            gevent.spawn(move_about, self.environment)

    def wait_time(self) -> float:
        """Until the next request is due; one that is late does not make up for it."""
        now = Run.now()
        if self.kind == HOSTILE:
            return self.random.uniform(0, 2 * BREATH)
        self.due = max(now, self.due + self.pace)
        return self.due - now

    @task
    def ask(self) -> None:
        """One request."""
        if self.first and self.due > Run.now():
            gevent.sleep(self.due - Run.now())
        if self.kind == HOSTILE:
            self._send_bad()
        else:
            self._chat()
        self.first = False

    def _body(self, model: str) -> dict[str, Any]:
        plan, tokens = Run.plan, Run.plan.max_tokens
        prompt = self.random.choice(Run.problems)
        if self.kind == LONG:
            while len(prompt) < plan.long_characters:
                prompt += " " + self.random.choice(Run.problems)
            prompt = prompt[: plan.long_characters]
            tokens = min(tokens, 32)
        if plan.exact and self.first:
            # Else answers of one length, begun together, would end together for ever.
            tokens = self.random.randint(1, tokens)
        return {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": plan.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if plan.exact else {}),
        }

    def _chat(self) -> None:
        model = self.random.choices(Run.models, Run.weights)[0]
        body = json.dumps(self._body(model)).encode()
        answer = Answer(Run.now(), model, self.kind)
        start = time.perf_counter()
        name = model if self.kind == CHAT else f"{model} [{self.kind}]"
        with self.client.post(
            "/v1/chat/completions",
            data=body,
            headers=Run.headers,
            name=name,
            stream=True,
            catch_response=True,
        ) as response:
            try:
                answer.status = response.status_code
                if answer.status == 200:
                    heard = None if Run.plan.curve.stages else Run.pieces.append
                    listen(answer, start, response._response.readline, heard)
                else:
                    said = str(response.error or "") or "no answer"
                    answer.error = (response.text or said)[:300] if answer.status else said[:300]
            except (*FAILURE_EXCEPTIONS, ValueError, LookupError, TypeError) as error:
                answer.error = f"{type(error).__name__}: {error}"[:300]
            answer.ms = 1000 * (time.perf_counter() - start)
            # locust stops its clock at the headers.
            response.request_meta["response_time"] = answer.ms
            if answer.error:
                response.failure(f"HTTP {answer.status}: {answer.error}")
            else:
                response.success()
        append(Run.file, answer)
        self._record(answer, name)
        if answer.status == 0:
            gevent.sleep(0.1)  # nobody there: do not spin

    def _record(self, answer: Answer, name: str) -> None:
        if answer.error or answer.ttft is None:
            return
        values = {"ttft": answer.ttft}
        if answer.rate:
            values |= {"inter-token": 1000 / answer.rate, "tokens/s": answer.rate}
        if answer.gate_rate is not None:
            values["gate rate"] = 100 * answer.gate_rate
        for kind, value in values.items():
            self.environment.events.request.fire(
                request_type=kind,
                name=name,
                response_time=value,
                response_length=answer.tokens,
                exception=None,
                context={},
            )
        Run.spoken.update(tokens=answer.tokens, pieces=1 + len(answer.gaps))

    def _send_bad(self) -> None:
        ask = bad_request(self.random, Run.plan.known_world())
        answer = Answer(Run.now(), ask.kind, HOSTILE)
        start = time.perf_counter()
        with self.client.post(
            ask.path,
            data=ask.content or b" ",  # an empty one would not be sent as a body
            headers=Run.headers,
            name=f"refused: {ask.kind}",
            catch_response=True,
        ) as response:
            answer.ms = 1000 * (time.perf_counter() - start)
            answer.status = response.status_code
            faults = list(refused(ask, answer.status, response.content or b""))
            answer.error = "; ".join(faults)[:300]
            if answer.error:
                response.failure(answer.error)
            else:
                response.success()
        append(Run.file, answer)


def move_about(environment: Environment) -> None:
    """Move the alias to another version and on, as fast as the server answers, to the end."""
    plan = Run.plan
    choose = random.Random(plan.seed)
    client = _admin_client(environment)
    now = plan.versions[0]
    Run.moves.append(Move(now, 0.0, 0.0))
    while True:
        if Run.phases and Run.phases[-1].name == plan.curve.stages[-1].phase:
            now = choose.choice([one for one in plan.versions if one != now])
            start, error = Run.now(), ""
            try:
                with client.post(
                    f"/admin/adapters/{plan.alias}/alias",
                    data=json.dumps({"version": now}).encode(),
                    headers=HEADERS | bearer(os.environ.get(ADMIN_KEY, "")),
                    name="move the alias",
                    catch_response=True,
                ) as response:
                    if response.status_code != 200:
                        error = f"HTTP {response.status_code}: {(response.text or '')[:200]}"
                        response.failure(error)
                    elif response.json()["serving"] != now:
                        error = f"serving {response.json()['serving']} after a move to {now}"
                        response.failure(error)
                    else:
                        response.success()
            finally:
                # The end of the run stops this in the middle of a move, which the server makes.
                Run.moves.append(Move(now, start, Run.now(), error))
        gevent.sleep(0.05)


def _admin_client(environment: Environment) -> Any:
    """A client of its own, not a user's."""

    class Admin(FastHttpUser):
        abstract = True
        host = environment.host

    return Admin(environment).client
