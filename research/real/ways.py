"""The ways to answer that are compared: each is a line of every task's table.

A cell `BASE/answers/gated/gsm8k/seed0` holds the answers of the way `gated`, to one task, of the
adapter that was fitted on the training problems of that task with one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

METHOD, PAPER, SFT, GRPO = "method", "paper", "sft", "grpo"

# What is fitted -> flags of `training.fit`. All train on the same rollouts of a task.
CONTROLS: dict[str, tuple[str, ...]] = {
    "random-rewards": ("--selection.reward", "random"),
    "random-positions": ("--selection.gate", "random"),
    "shut-gate": ("--selection.gate", "shut"),
    "right-answers-alone": ("--selection.advantages", "positive"),
}
SMALLER: dict[str, tuple[str, ...]] = {
    "rank-1": ("--lora.rank", "1", "--lora.alpha", "2"),
    "o-only": ("--lora.target-modules", "o_proj"),
}
# Whole rollouts take memory: one at a time, sixteen to a step as in the recipe.
PAPER_FLAGS = (
    *("--mode", "always"),
    *("--optimizer.batch-size", "1", "--optimizer.accumulation", "16"),
)
FITS = {METHOD: (), **CONTROLS, **SMALLER, PAPER: PAPER_FLAGS}

Runs = Literal["base", "gated", "always", "alone", "guided"]


@dataclass(frozen=True)
class Way:
    """How to answer.

    Attributes:
        name: in the ids of cells.
        label: in the tables.
        trained: whose adapter, or whose gate, it takes: see FITS, SFT, GRPO; "": none.
        runs: the base alone, the adapter behind its gate or at every step, the gate without an
            adapter, or the base guided where the gate opens.
        greedy: at temperature 0.
        vote: the answer that most of several samples give.
        other_instruction: with another one than adapters are fitted with.
        mean: the mean of the adapters of all seeds, as one adapter.
        gate_rate: of the gate, by the calibration of the fit; None: the one that it trained for.
        fitted_on: the task of whose training problems the adapter knows; "": the one that is asked.
    """

    name: str
    label: str
    trained: str = ""
    runs: Runs = "base"
    greedy: bool = False
    vote: bool = False
    other_instruction: bool = False
    mean: bool = False
    gate_rate: float | None = None
    fitted_on: str = ""


BASE = Way("base", "base")
GREEDY = Way("greedy", "base, greedy", greedy=True)
VOTE = Way("vote", "base, self-consistency", vote=True)
ALONE = Way("alone", "base behind the gate", METHOD, "alone")
GUIDED = Way("guided", "base, guided at decision points", METHOD, "guided")
GATED = Way("gated", "**gated**", METHOD, "gated")
MEAN = Way("mean", "gated, the mean of these adapters", METHOD, "gated", mean=True)
GATED_GREEDY = Way("gated-greedy", "gated, greedy", METHOD, "gated", greedy=True)
WIDER = Way("wider", "gated, at a gate rate of 0.2", METHOD, "gated", gate_rate=0.2)
ALWAYS = Way("always", "the same adapters, always-on", METHOD, "always")
RANDOM_POSITIONS = Way(
    "random-positions", "fitted at random positions", "random-positions", "gated"
)
SHUT_GATE = Way("shut-gate", "fitted where the gate is shut", "shut-gate", "gated")
RANDOM_REWARDS = Way("random-rewards", "fitted for random rewards", "random-rewards", "gated")
RIGHT_ALONE = Way(
    "right-answers-alone", "fitted on right answers alone", "right-answers-alone", "gated"
)
RANK_1 = Way("rank-1", "rank 1", "rank-1", "gated")
O_ONLY = Way("o-only", "o_proj alone", "o-only", "gated")
PAPER_FIT = Way(PAPER, "fitted at every position, always-on", PAPER, "always")
SUPERVISED = Way(SFT, "supervised, on the references", SFT, "always")
REINFORCED = Way(GRPO, "GRPO with LoRA", GRPO, "always")
OTHER_BASE = Way("other-base", "base, another instruction", other_instruction=True)
OTHER_GATED = Way(
    "other-gated", "gated, another instruction", METHOD, "gated", other_instruction=True
)

# What else the gated adapters, seed by seed, are asked in.
SAME_ADAPTERS = (GATED_GREEDY, WIDER, ALWAYS)

# In the order of the tables.
WAYS = (
    *(BASE, GREEDY, VOTE, ALONE, GUIDED, GATED, MEAN, GATED_GREEDY, WIDER, ALWAYS),
    *(RANDOM_POSITIONS, SHUT_GATE, RANDOM_REWARDS, RIGHT_ALONE),
    *(RANK_1, O_ONLY, PAPER_FIT, SUPERVISED, REINFORCED),
    *(OTHER_BASE, OTHER_GATED),
)


def transferred(task: str) -> Way:
    """The method's adapters of another task: what do they do for the one that is asked?"""
    name, label = f"from-{task}", f"gated, fitted on {task}"
    return Way(name, label, METHOD, "gated", fitted_on=task)
