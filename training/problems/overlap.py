"""Problems that training and a test share, also where words were added or white space was changed.

Two problems overlap if they have the same words, or 13 words in a row in common (the length that
GPT-3 and most decontamination since have used). Numbers and operators are words. What many problems
of one side have in common is a template, not a copy, and does not count.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from training.problems.problem import Problem

logger = logging.getLogger(__name__)

LENGTH = 13  # words in a row
_SHARE = 0.01  # of the problems of one side, from which on a run of words is a template
_FEWEST = 3  # problems
_NAMED = 5  # pairs named in a message
_WORD = re.compile(r"[^\W_]+|[^\s\w.,;:!?'\"$(){}\\]")

Action = Literal["name", "drop", "refuse"]


class Overlap(NamedTuple):
    """A problem to train on, and the test problem that it has words in common with."""

    trained: Problem
    tested: Problem
    same: bool  # all words are the same


def words_of(text: str) -> tuple[str, ...]:
    """The words of a question, in lower case and without punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def overlaps(train: Sequence[Problem], test: Iterable[Problem]) -> list[Overlap]:
    """The problems of `train` that overlap with one of `test`, each once, in order."""
    tested = [(one, words_of(one.problem)) for one in test]
    trained = [(one, words_of(one.problem)) for one in train]
    whole = {words: one for one, words in reversed(tested)}
    templates = _templates([words for _, words in tested]) | _templates([w for _, w in trained])
    runs = {
        run: one for one, words in reversed(tested) for run in _runs(words) if run not in templates
    }
    found = []
    for one, words in trained:
        if words in whole:
            found.append(Overlap(one, whole[words], True))
        elif shared := next((runs[run] for run in _runs(words) if run in runs), None):
            found.append(Overlap(one, shared, False))
    return found


def _runs(words: tuple[str, ...]) -> Iterable[int]:
    """Every run of words, as a hash: a benchmark has a million."""
    return (hash(words[place : place + LENGTH]) for place in range(len(words) - LENGTH + 1))


def _templates(texts: Sequence[tuple[str, ...]]) -> set[int]:
    """The runs of words that so many of `texts` have that they are no sign of a copy."""
    most = max(_FEWEST, _SHARE * len(texts))
    counts = Counter(run for words in set(texts) for run in set(_runs(words)))
    return {run for run, count in counts.items() if count > most}


def without_overlaps(
    train: list[Problem], test: Sequence[Problem], name: str, action: Action
) -> list[Problem]:
    """`train`, after what it shares with `test` was named, and with "drop" left out.

    Args:
        name: of the test, for the message.

    Raises:
        ValueError: they overlap, and `action` is "refuse"; or nothing is left to train on.
    """
    found = overlaps(train, test)
    if not found:
        return train
    same = sum(one.same for one in found)
    pairs = ", ".join(f"{one.trained.id} and {one.tested.id}" for one in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    message = (
        f"{len(found)} of {len(train)} problems overlap with {name} ({same} are the same, the "
        f"others share {LENGTH} words in a row): {pairs}{more}"
    )
    if action == "refuse":
        raise ValueError(f"problems: {message}; leave them out with --overlap drop")
    if action == "name":
        logger.warning("%s; a score on %s says little; see --overlap", message, name)
        return train
    shared = {one.trained.id for one in found}
    kept = [one for one in train if one.id not in shared]
    if not kept:
        raise ValueError(f"problems: all of {message}")
    logger.warning("%s; they are left out", message)
    return kept
