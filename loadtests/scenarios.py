"""The scenarios: how many users there are when, and what they do. The table is at the end.

A scenario is a curve of users over time, cut into phases, and what its users do. Times are shares
of `--seconds`, users shares of `--users`, so that the same curve fits a minute or an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# What the second half of the users do, if not chat.
Other = Literal["", "long", "hostile"]


class Stage(NamedTuple):
    """A part of the curve."""

    phase: str  # stages of one name are reported together
    until: float  # share of the time
    users: float  # share of --users


@dataclass(frozen=True)
class Scenario:
    """One kind of load."""

    name: str
    about: str
    stages: tuple[Stage, ...] = (Stage("all", 1.0, 1.0),)  # none: a ramp
    users: int = 16
    seconds: float = 60
    other: Other = ""
    zipf: bool = False  # few adapters get many requests, and many few
    moves: bool = False  # an alias is moved, from the second phase on
    paced: bool = False  # requests come at a rate, not as fast as answers end
    compares: tuple[str, str] | None = None  # (before, after): phases that should be alike

    def stage(self, passed: float) -> Stage | None:
        """The stage after `passed` (a share of the time); None: over."""
        return next((stage for stage in self.stages if passed < stage.until), None)


CALM, PEAK = 1 / 8, 1.0
RAMP = "Twice the users, step after step, until throughput stops rising; --seconds is one step's."
BURST = "An eighth of the users, all of them at once, an eighth again, twice over."
LONG = "Chat users alone, then beside as many whose prompts nearly fill the context."
MANY = "More adapters than slots, asked by Zipf's law: none may starve."
STORM = "The admin API moves an alias without pause while users stream from it."
HOSTILE = "Chat users alone, then beside as many who send what must be refused."
SOAK = "Many minutes at a share of saturation: memory and latency must stay as they are."
BURSTS = (
    *(Stage("calm before", 0.2, CALM), Stage("burst", 0.4, PEAK), Stage("between", 0.6, CALM)),
    *(Stage("burst", 0.8, PEAK), Stage("calm after", 1.0, CALM)),
)
ALONE_THEN_BESIDE = ("alone", "beside hostile")
MOVING = (Stage("nobody moves", 0.3, 1.0), Stage("moving", 1.0, 1.0))
THIRDS = (
    *(Stage("first third", 1 / 3, 1.0), Stage("middle third", 2 / 3, 1.0)),
    Stage("last third", 1.0, 1.0),
)


def _beside(other: str) -> tuple[Stage, ...]:
    return Stage("alone", 0.35, 0.5), Stage(f"beside {other}", 1.0, 1.0)


_ALL = (
    Scenario("steady", "The same number of users all the time, every model alike."),
    Scenario("ramp", RAMP, stages=(), users=256, seconds=10),
    Scenario("burst", BURST, BURSTS, 48, 75, compares=("calm before", "calm after")),
    Scenario("long-prompts", LONG, _beside("long prompts"), other="long"),
    Scenario("many-adapters", MANY, users=24, zipf=True),
    Scenario("swap-storm", STORM, MOVING, moves=True),
    Scenario("hostile", HOSTILE, _beside("hostile"), other="hostile", compares=ALONE_THEN_BESIDE),
    Scenario("soak", SOAK, THIRDS, 64, 1800, paced=True, compares=("middle third", "last third")),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
