"""The tasks that may be measured, and the rule that admits them.

The rule is stated before anything is measured: a task is admitted for a base whose pass@1 at the
temperature of its recipe lies between .15 and .85 on the first training problems. Of Reasoning
Gym's tasks the first six admitted are taken, in alphabetical order, and those behind them are not
asked. GSM8K and MATH-500 (its levels 1 to 3) are measured whatever the rule says of them; where it
does not admit them, the report says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from training.problems import Problem, load_problems

logger = logging.getLogger("research.real")

LOWEST, HIGHEST = 0.15, 0.85  # pass@1 of the base
GYM_TASKS = 6  # of Reasoning Gym that are taken
TRAINED_ON = {"math500": "gsm8k"}  # task without training problems -> whose adapters answer it
TRAIN_SEED, TEST_SEED = 700_001, 700_002  # of its generators

# Small enough for models of half a billion parameters; fixed before the rule was applied.
GYM = {
    "basic_arithmetic": "min_terms=2,max_terms=4,min_digits=1,max_digits=2",
    "calendar_arithmetic": "",
    "chain_sum": "min_terms=3,max_terms=5,min_digits=1,max_digits=2",
    "count_bits": "max_n=4095",
    "decimal_chain_sum": "min_terms=2,max_terms=3,min_digits=1,max_digits=2,max_decimal_places=1",
    "fraction_simplification": "max_value=60,max_factor=10",
    "gcd": "max_value=60",
    "lcm": "max_value=60",
    "leg_counting": "max_animals=3",
    "letter_counting": "max_words=8",
    "number_sorting": "max_numbers=5",
    "prime_factorization": "max_value=1000",
    "products": "max_terms=2,max_digits=2",
    "simple_equations": "",
    "spell_backward": "max_word_len=5",
}


class Task(NamedTuple):
    """Where its problems come from."""

    name: str
    train: str | None  # a source of problems; None: there are none to train on
    test: str

    @property
    def always(self) -> bool:
        """Is it measured whatever the rule says?"""
        return self.name not in GYM


def gym_source(name: str, seed: int, count: int) -> str:
    """Reasoning Gym's generator as a source of problems."""
    options = f",{GYM[name]}" if GYM[name] else ""
    return f"reasoning_gym:{name}{options},seed={seed},count={count}"


def candidates(train: int, test: int) -> dict[str, Task]:
    """All tasks, by name; those of Reasoning Gym draw so many problems, and some to spare."""
    spare = test // 2  # for those that were drawn for training
    gym = [
        Task(name, gym_source(name, TRAIN_SEED, train), gym_source(name, TEST_SEED, test + spare))
        for name in sorted(GYM)
    ]
    others = [Task("gsm8k", "gsm8k_train", "gsm8k"), Task("math500", None, "math500_easy")]
    return {one.name: one for one in [*gym, *others]}


def admitted(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the tasks that are measured, by what a base scored on their training problems.

    Args:
        found: task -> {"pass@1": ...}; tasks without training problems are missing.
    """
    return [*_of_the_gym(found)[:GYM_TASKS], "gsm8k", "math500"]


def enough(found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are so many of Reasoning Gym's tasks admitted that what others score changes nothing?"""
    return len(_of_the_gym(found)) >= GYM_TASKS


def _of_the_gym(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those that the rule admits, in alphabetical order."""
    return [name for name in sorted(GYM) if name in found and fits_rule(found[name]["pass@1"])]


def trained_on(task: str) -> str:
    """The task whose training problems the adapters that answer `task` are fitted on: its own."""
    return TRAINED_ON.get(task, task)


def training_tasks(tasks: Iterable[str]) -> list[str]:
    """The tasks that adapters which answer `tasks` are fitted on, each once."""
    return list(dict.fromkeys(map(trained_on, tasks)))


def fits_rule(pass_at_1: float) -> bool:
    """Does a base that scores so teach something, and can it be taught?"""
    return LOWEST <= pass_at_1 <= HIGHEST


def problems_to_test(task: Task, count: int, data_dir: Path | None) -> list[Problem]:
    """The first `count` test problems.

    Reasoning Gym may draw a test problem that was drawn for training too: it is left out.

    Raises:
        ValueError: they cannot be read.
    """
    drawn = task.train is not None and not task.always
    without = load_problems(str(task.train), data_dir=data_dir) if drawn else []
    return load_problems(task.test, limit=count, data_dir=data_dir, without=without)
