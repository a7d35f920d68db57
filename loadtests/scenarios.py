"""The scenarios: who comes when. All are in the table at the end.

A scenario is a curve of users over time, cut into phases, and what its users do. Times are shares
of `--seconds`, users shares of `--users`, so that the same curve fits a minute or an hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

# What the second half of the users do where it differs from plain chat.
Other = Literal["", "long", "hostile"]


class Stage(NamedTuple):
    """A part of the curve."""

    phase: str  # stages of one name are reported together
    until: float  # share of the time
    users: float  # share of --users


@dataclass(frozen=True)
class Scenario:
    """One way of asking."""

    name: str
    about: str
    stages: tuple[Stage, ...] = (Stage("all", 1.0, 1.0),)  # none: steps until it saturates
    users: int = 16
    seconds: float = 60
    other: Other = ""
    zipf: bool = False  # few adapters are asked often, many seldom
    moves: bool = False  # an alias is moved, from the second phase on
    paced: bool = False  # requests come at a rate, not as fast as answers end
    compares: tuple[str, str] | None = None  # (before, after): phases that should be alike

    def stage(self, passed: float) -> Stage | None:
        """The stage after `passed` (a share of the time); None: over."""
        return next((stage for stage in self.stages if passed < stage.until), None)


CALM, PEAK = 1 / 8, 1.0

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", "The same number of users all the time, every model alike."),
        Scenario(
            "ramp",
            "Twice the users step by step until throughput stops rising: the saturation point. "
            "--seconds is one step's, --users the most.",
            stages=(),
            users=256,
            seconds=10,
        ),
        Scenario(
            "burst",
            "An eighth of the users, all of them at once, an eighth again, twice over.",
            (
                Stage("calm before", 0.2, CALM),
                Stage("burst", 0.4, PEAK),
                Stage("between", 0.6, CALM),
                Stage("burst", 0.8, PEAK),
                Stage("calm after", 1.0, CALM),
            ),
            users=48,
            seconds=75,
            compares=("calm before", "calm after"),
        ),
        Scenario(
            "long-prompts",
            "Chat users alone, then beside as many whose prompts nearly fill the context.",
            (Stage("alone", 0.35, 0.5), Stage("beside long prompts", 1.0, 1.0)),
            other="long",
        ),
        Scenario(
            "many-adapters",
            "More adapters than slots, asked by Zipf's law: none may starve.",
            users=24,
            zipf=True,
        ),
        Scenario(
            "swap-storm",
            "An alias is moved without pause by the admin API while users stream from it.",
            (Stage("nobody moves", 0.3, 1.0), Stage("moving", 1.0, 1.0)),
            moves=True,
        ),
        Scenario(
            "hostile",
            "Chat users alone, then beside as many who send what must be refused.",
            (Stage("alone", 0.35, 0.5), Stage("beside hostile", 1.0, 1.0)),
            other="hostile",
            compares=("alone", "beside hostile"),
        ),
        Scenario(
            "soak",
            "Many minutes at a share of saturation: memory and latency must stay as they are.",
            (
                Stage("first third", 1 / 3, 1.0),
                Stage("middle third", 2 / 3, 1.0),
                Stage("last third", 1.0, 1.0),
            ),
            users=64,
            seconds=1800,
            paced=True,
            compares=("middle third", "last third"),
        ),
    )
}
