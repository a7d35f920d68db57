"""All that a run needs to know, asked of the server beforehand and kept beside the results.

`locust -f loadtests/locustfile.py --plan RESULTS/plan.json` runs it again, with locust's page too.
Keys are not in it: they stay in the environment (REASONMAXXER_API_KEY, REASONMAXXER_ADMIN_KEY).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from adapters.files import write_json, write_text
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.traffic import World
from loadtests.users import look_around

API_KEY, ADMIN_KEY = "REASONMAXXER_API_KEY", "REASONMAXXER_ADMIN_KEY"
LONG_SHARE = 0.8  # of the context, by a long prompt
PROBLEMS = Path(__file__).parents[1] / "models" / "tiny-problems" / "heldout.jsonl"


class PlanError(ValueError):
    """The run cannot be made as told; the message says why."""


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
    exact: bool = False  # every answer has max_tokens tokens (ignore_eos)
    rate: float = 0.0  # requests a second of all users together; 0: as fast as answers end
    long_characters: int = 0  # of a long prompt
    alias: str = ""  # moved in a storm
    versions: tuple[str, ...] = ()  # those it is moved among, where it points now first
    world: dict[str, Any] = field(default_factory=dict)  # for hostile users

    @property
    def curve(self) -> Scenario:
        """Its scenario."""
        return SCENARIOS[self.scenario]

    def write(self, path: Path) -> None:
        """Save it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Load it."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"versions": tuple(values["versions"])})

    def known_world(self) -> World:
        """`world` as the refusals want it."""
        tuples: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in self.world.items()
        }
        return World(**tuples)


def bearer(key: str) -> dict[str, str]:
    """The header that shows a key; none where there is none."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def shares(mix: str, models: Sequence[str]) -> dict[str, float]:
    """Model -> share of traffic. `base` names the first of `models`, as the server lists them.

    Raises:
        PlanError: `mix` is not NAME=NUMBER,..., or names a model the server does not have.
    """
    if not mix:
        return dict.fromkeys(models, 1.0)
    found: dict[str, float] = {}
    for part in mix.split(","):
        name, _, weight = part.partition("=")
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
    """The k-th model, in an order drawn by `seed`, is asked 1/k times as often as the first."""
    order = random.Random(seed).sample(list(models), len(models))
    return {model: 1 / rank for rank, model in enumerate(order, start=1)}


def make_problems(path: Path, count: int = 200) -> None:
    """Write the first problems of the miniature bases to `path` (JSONL)."""
    lines = PROBLEMS.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(lines[:count]))


def read_problems(path: str) -> tuple[str, ...]:
    """The problems of a JSONL file.

    Raises:
        PlanError: it cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        found = tuple(str(json.loads(line)["problem"]) for line in lines if line.strip())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"--problems {path}: not JSONL with a field `problem` ({error})") from error
    if not found:
        raise PlanError(f"--problems {path}: there is no problem in it")
    return found


class Server:
    """What a plan asks of a running server."""

    def __init__(self, host: str, key: str, admin_key: str) -> None:
        self.host, self.key, self.admin_key = host, key, admin_key

    def ask(self, method: str, path: str, key: str = "", **more: Any) -> Any:
        """A JSON answer.

        Raises:
            PlanError: it is not there, or does not answer with 200.
        """
        try:
            answer = httpx.request(
                method, self.host + path, headers=bearer(key or self.key), timeout=60, **more
            )
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            said = error.response.text[:200]
            status = error.response.status_code
            raise PlanError(f"{self.host}{path} answers {status}: {said}") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise PlanError(f"--host {self.host}: {path}: {error}") from error

    def cards(self) -> list[dict[str, Any]]:
        """GET /v1/models."""
        cards: list[dict[str, Any]] = self.ask("GET", "/v1/models")["data"]
        return cards

    def long_characters(self, cards: list[dict[str, Any]], problems: Sequence[str]) -> int:
        """How many characters of problems fill LONG_SHARE of the context."""
        text = " ".join(problems)[:4000]
        counted = self.ask("POST", "/tokenize", json={"model": cards[0]["id"], "prompt": text})
        return int(LONG_SHARE * cards[0]["max_model_len"] * len(text) / counted["count"])

    def movable(self) -> tuple[str, tuple[str, ...]]:
        """(alias, its versions): the name with the most versions; the one that serves first.

        Raises:
            PlanError: no name has two.
        """
        if not self.admin_key:
            raise PlanError(f"swap-storm moves an alias: set --admin-key or {ADMIN_KEY}")
        names = self.ask("GET", "/admin/adapters", self.admin_key)["data"]
        none: dict[str, Any] = {"versions": []}
        most: dict[str, Any] = max(names, key=lambda one: len(one["versions"]), default=none)
        if len(most["versions"]) < 2 or most["alias"] is None:
            raise PlanError(
                "swap-storm needs an alias with two versions or more; publish another "
                "(python -m adapters publish --no-alias), or use --start"
            )
        others = [one for one in most["versions"] if one != most["alias"]]
        return most["name"], (most["alias"], *others)

    def world(self) -> dict[str, Any]:
        """What bad requests have to know."""

        async def ask() -> World:
            headers = bearer(self.key)
            async with httpx.AsyncClient(base_url=self.host, headers=headers, timeout=60) as client:
                return await look_around(client)

        try:
            return asdict(asyncio.run(ask()))
        except (httpx.HTTPError, KeyError) as error:
            raise PlanError(f"--host {self.host}: not this project's server ({error})") from error


def make(scenario: Scenario, server: Server, options: Any, problems: str) -> Plan:
    """The plan of a run on a running server.

    Raises:
        PlanError: the server or the options do not allow it.
    """
    cards = server.cards()
    models = [card["id"] for card in cards]
    texts = read_problems(problems)
    more: dict[str, Any] = {}
    mix = shares(options.mix, models)
    if scenario.moves:
        more["alias"], more["versions"] = server.movable()
        if not options.mix:
            mix = {name: 1.0 for name in models if name.partition(":")[0] == more["alias"]}
    if scenario.zipf:
        adapters = models[1:]
        if len(adapters) < 2:
            raise PlanError(f"{scenario.name} needs two adapters or more; use --start")
        mix = mix if options.mix else zipf(adapters, options.seed)
    if scenario.other == "long":
        more["long_characters"] = server.long_characters(cards, texts)
    if scenario.other == "hostile":
        more["world"] = server.world()
    return Plan(
        scenario=scenario.name,
        host=server.host,
        users=options.users,
        seconds=options.seconds,
        seed=options.seed,
        mix=mix,
        problems=problems,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        rate=options.rate,
        **more,
    )
