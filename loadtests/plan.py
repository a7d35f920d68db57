"""A run's plan: all that it needs to know, asked of the server beforehand, kept beside the results.

`locust -f loadtests/locustfile.py --plan RESULTS/plan.json` runs it again, with locust's page too.
Keys are not in it: they stay in the environment (REASONMAXXER_API_KEY, REASONMAXXER_ADMIN_KEY).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from loadtests.scenarios import SCENARIOS, Scenario

API_KEY, ADMIN_KEY = "REASONMAXXER_API_KEY", "REASONMAXXER_ADMIN_KEY"
LONG_SHARE = 0.8  # of the context, filled by a long prompt
PROBLEMS = Path(__file__).parents[1] / "models" / "tiny-problems" / "heldout.jsonl"


class PlanError(ValueError):
    """The run is not possible as requested; the message says why."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    scenario: str
    host: str
    users: int
    seconds: float
    seed: int
    mix: dict[str, float]  # model -> share of traffic
    problems: str  # JSONL with a field `problem`
    max_tokens: int = 128
    temperature: float = 0.6
    rate: float = 0.0  # requests per second of all users together; 0: as fast as answers end
    long_characters: int = 0  # of a long prompt
    alias: str = ""  # the one that a swap storm moves
    versions: tuple[str, ...] = ()  # those it moves among; the one it points at comes first
    models: tuple[str, ...] = ()  # all that the server has, the base first; for hostile users
    context: int = 0  # tokens of prompt and answer together; for hostile users

    @property
    def curve(self) -> Scenario:
        """The scenario of this run."""
        return SCENARIOS[self.scenario]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Load a plan."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key; empty without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def shares(mix: str, models: Sequence[str]) -> dict[str, float]:
    """Model -> share of traffic; `base` names the first of `models`, as the server lists them.

    Raises PlanError if `mix` is not NAME=NUMBER,..., or names a model the server does not have.
    """
    if not mix:
        return dict.fromkeys(models, 1.0)
    found: dict[str, float] = {}
    for part in mix.split(","):
        name, _, weight = part.strip().partition("=")
        name = models[0] if name == "base" else name
        if name not in models:
            there = ", ".join(models)
            raise PlanError(f"--mix: '{name}' is not served; there are: base, {there}")
        try:
            found[name] = float(weight)
        except ValueError:
            raise PlanError(f"--mix: '{part}' is not NAME=NUMBER") from None
        if not 0 < found[name] < float("inf"):
            raise PlanError(f"--mix: '{part}': a share is a number above 0")
    return found


def zipf(models: Sequence[str], seed: int) -> dict[str, float]:
    """The k-th model, in an order drawn by `seed`, gets 1/k of the requests of the first."""
    order = random.Random(seed).sample(list(models), len(models))
    return {model: 1 / rank for rank, model in enumerate(order, start=1)}


def read_problems(path: str) -> tuple[str, ...]:
    """Read the problems of a JSONL file. Raises PlanError if it cannot be read, or has none."""
    try:
        # Not splitlines(): a text may hold what Unicode takes for the end of a line.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        found = tuple(str(json.loads(line)["problem"]) for line in lines if line.strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"--problems {path}: not JSONL with a field `problem` ({error})") from error
    if not found:
        raise PlanError(f"--problems {path}: there is no problem in it")
    return found


@dataclass
class Server:
    """A running server, and what a plan needs to know of it."""

    host: str
    key: str
    admin_key: str

    def request(self, method: str, path: str, key: str = "", **more: Any) -> Any:
        """Send a request and return its JSON. Raises PlanError if it is not answered with 200."""
        url, headers = self.host + path, bearer(key or self.key)
        try:
            answer = httpx.request(method, url, headers=headers, timeout=60, **more)
            if answer.status_code != 200:
                raise PlanError(f"{url} answers {answer.status_code}: {answer.text[:200]}")
            return answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as error:
            raise PlanError(f"--host {self.host}: {path}: {error}") from error

    def long_characters(self, model: str, context: int, problems: Sequence[str]) -> int:
        """How many characters of problems fill LONG_SHARE of the context."""
        text = " ".join(problems)[:4000]
        counted = self.request("POST", "/tokenize", json={"model": model, "prompt": text})
        return int(LONG_SHARE * context * len(text) / counted["count"])

    def movable_alias(self) -> tuple[str, tuple[str, ...]]:
        """(alias, versions) of the name with the most versions; the current version comes first.

        Raises PlanError if no name has two versions.
        """
        if not self.admin_key:
            raise PlanError(f"swap-storm moves an alias: set --admin-key or {ADMIN_KEY}")
        rows = self.request("GET", "/admin/adapters", self.admin_key)["data"]
        rows = [row for row in rows if row["alias"] is not None and len(row["versions"]) > 1]
        if not rows:
            raise PlanError(
                "swap-storm needs an alias with two versions or more; publish another "
                "(python -m adapters publish --no-alias), or use --start"
            )
        most = max(rows, key=lambda row: len(row["versions"]))
        return most["name"], tuple(sorted(most["versions"], key=lambda one: one != most["alias"]))


def make_plan(scenario: Scenario, server: Server, options: Any, problems: str) -> Plan:
    """Make the plan of a run on a running server; `options` are those of the command line.

    Raises PlanError if the server or the options do not allow the scenario.
    """
    cards = server.request("GET", "/v1/models")["data"]
    models = [card["id"] for card in cards]
    texts = read_problems(problems)
    more: dict[str, Any] = {}
    mix = shares(options.mix, models)
    if scenario.moves:
        more["alias"], more["versions"] = server.movable_alias()
        if not options.mix:
            mix = {name: 1.0 for name in models if name.partition(":")[0] == more["alias"]}
    if scenario.zipf:
        if len({name.partition(":")[0] for name in models[1:]}) < 2:
            raise PlanError(f"{scenario.name} needs two adapters or more; use --start")
        mix = mix if options.mix else zipf(models[1:], options.seed)
    if scenario.other:
        context = cards[0]["max_model_len"]
        more |= {"models": tuple(models), "context": context}
        if scenario.other == "long":
            more["long_characters"] = server.long_characters(models[0], context, texts)
    given = ("users", "seconds", "seed", "max_tokens", "temperature", "rate")
    more |= {name: getattr(options, name) for name in given}
    return Plan(scenario=scenario.name, host=server.host, mix=mix, problems=problems, **more)
