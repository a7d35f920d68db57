"""What an evaluation's problems share with those that its adapter was fitted to.

A score on problems that the adapter has seen says little. They are named in a warning and in
report.json, or left out, or end the command, as --overlap says.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TypedDict

from adapters.adapter import CONFIG, AdapterError
from adapters.places import default_store, open_store
from training.evaluate_config import EvaluateConfig
from training.problems import Problem, load_problems, read_trained_on, source_name
from training.problems.overlap import Fingerprint, described, tested_overlaps

logger = logging.getLogger("training.evaluate")


class Seen(TypedDict):
    """What the problems share with those that the adapter was fitted to, for the report."""

    compared_with: str
    problems: int  # of the evaluation, before any was left out
    overlapping: int
    same: int
    left_out: bool
    pairs: list[tuple[str, str]]  # id of the tested problem, id of the one that was trained on


def compared_with_training(
    config: EvaluateConfig, problems: list[Problem]
) -> tuple[list[Problem], Seen | None]:
    """The problems to ask, and what they share with training; None: that is not known.

    Raises:
        ValueError: they overlap and --overlap says "refuse", or nothing is left to ask.
    """
    name, trained = _trained_on(config)
    if trained is None:
        if config.adapter:
            logger.warning(
                "what '%s' was fitted to is not known, so problems that it has seen cannot be "
                "named; give --trained-on",
                config.adapter,
            )
        return problems, None
    found = tested_overlaps(trained, problems)
    if found:
        message = described(found, len(problems), name, tests=True)
        if config.overlap == "refuse":
            raise ValueError(f"--problems: {message}; leave them out with --overlap drop")
        fate = "they are left out" if config.overlap == "drop" else "scores on them say little"
        logger.warning("%s; %s", message, fate)
    seen = Seen(
        compared_with=name,
        problems=len(problems),
        overlapping=len(found),
        same=sum(one.same for one in found),
        left_out=config.overlap == "drop",
        pairs=[(one.tested.id, one.trained.id) for one in found],
    )
    if config.overlap == "drop":
        known = {one.tested.id for one in found}
        problems = [one for one in problems if one.id not in known]
        if not problems:
            raise ValueError(f"--problems: the adapter was fitted to all of {config.problems}")
    return problems, seen


def _trained_on(config: EvaluateConfig) -> tuple[str, list[Fingerprint] | None]:
    """What to compare with, as a message names it, and its problems; None: not known."""
    if config.trained_on is not None:
        problems = load_problems(config.trained_on, field="trained-on", **config.reading)
        return source_name(config.trained_on), list(map(Fingerprint.of, problems))
    folder = _folder_of(config)
    name = f"what '{config.adapter}' was fitted to"
    return name, read_trained_on(folder) if folder is not None else None


def _folder_of(config: EvaluateConfig) -> Path | None:
    """The adapter's folder; None: there is none, which `find_adapter` says in full."""
    if config.adapter is None:
        return None
    if (Path(config.adapter) / CONFIG).is_file():
        return Path(config.adapter)
    store = open_store(config.store or default_store())
    try:
        return store.path(store.resolve(config.adapter))
    except (KeyError, AdapterError):
        return None
