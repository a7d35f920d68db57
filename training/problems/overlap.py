"""Problems that training and a test share, also where words were added or white space was changed.

Two problems overlap if they have the same words, or 13 words in a row in common (the length that
GPT-3 and most decontamination since have used). Numbers and operators are words. What many problems
of one side have in common is a template, not a copy, and does not count.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from training.problems.problem import Problem

logger = logging.getLogger(__name__)

LENGTH = 13  # words in a row
_SHARE = 0.01  # of the problems of one side, from which on a run of words is a template
_FEWEST = 3  # problems
_NAMED = 5  # pairs named in a message
_WORD = re.compile(r"[^\W_]+|[^\s\w.,;:!?'\"$(){}\\]")

Action = Literal["name", "drop", "refuse"]


class Fingerprint(NamedTuple):
    """What is compared of a problem: hashes that are the same everywhere, and hide its text."""

    id: str
    whole: int  # of all words
    runs: tuple[int, ...]  # of every LENGTH words in a row

    @classmethod
    def of(cls, problem: Problem) -> Fingerprint:
        """The fingerprint of `problem`."""
        words = words_of(problem.problem)
        places = range(len(words) - LENGTH + 1)
        runs = tuple(_digest(words[place : place + LENGTH]) for place in places)
        return cls(problem.id, _digest(words), runs)


class Overlap(NamedTuple):
    """A problem to train on, and the test problem that it has words in common with."""

    trained: Fingerprint
    tested: Fingerprint
    same: bool  # all words are the same


def words_of(text: str) -> tuple[str, ...]:
    """The words of a question, in lower case and without punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def _digest(words: tuple[str, ...]) -> int:
    """64 bits: a million of them are all different but for a chance of 3e-8."""
    text = " ".join(words).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def overlaps(train: Iterable[Problem], test: Iterable[Problem]) -> list[Overlap]:
    """The problems of `train` that overlap with one of `test`, each once, in order."""
    trained, tested = (list(map(Fingerprint.of, one)) for one in (train, test))
    return [Overlap(*pair) for pair in _pairs(trained, tested)]


def tested_overlaps(train: Sequence[Fingerprint], test: Iterable[Problem]) -> list[Overlap]:
    """The problems of `test` that overlap with one of `train`, each once, in order."""
    pairs = _pairs(list(map(Fingerprint.of, test)), train)
    return [Overlap(trained, tested, same) for tested, trained, same in pairs]


def _pairs(
    listed: Sequence[Fingerprint], others: Sequence[Fingerprint]
) -> Iterator[tuple[Fingerprint, Fingerprint, bool]]:
    """Each of `listed` that overlaps with one of `others`, with that one; is it the same?"""
    whole = {one.whole: one for one in reversed(others)}
    templates = _templates(listed) | _templates(others)
    runs = {run: one for one in reversed(others) for run in one.runs if run not in templates}
    for one in listed:
        if one.whole in whole:
            yield one, whole[one.whole], True
        elif common := next((runs[run] for run in one.runs if run in runs), None):
            yield one, common, False


def _templates(problems: Sequence[Fingerprint]) -> set[int]:
    """The runs of words that so many problems have that they are no sign of a copy."""
    most = max(_FEWEST, _SHARE * len(problems))
    distinct = {one.whole: one.runs for one in problems}
    counts = Counter(run for runs in distinct.values() for run in set(runs))
    return {run for run, count in counts.items() if count > most}


def described(found: Sequence[Overlap], of: int, name: str, *, tests: bool = False) -> str:
    """What overlaps, as the beginning of a sentence.

    Args:
        found: at least one.
        of: so many problems were compared.
        name: of what they overlap with.
        tests: the problems counted are the tested ones, not those to train on.
    """
    ids = [(one.trained.id, one.tested.id) for one in found]
    pairs = ", ".join(f"{b} and {a}" if tests else f"{a} and {b}" for a, b in ids[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    same = sum(one.same for one in found)
    return (
        f"{len(found)} of {of} problems overlap with {name} ({same} are the same, the "
        f"others share {LENGTH} words in a row): {pairs}{more}"
    )


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
    message = described(found, len(train), name)
    if action == "refuse":
        raise ValueError(f"problems: {message}; leave them out with --overlap drop")
    if action == "name":
        logger.warning("%s; a score on %s says little; see --overlap", message, name)
        return train
    named = {one.trained.id for one in found}
    kept = [one for one in train if one.id not in named]
    if not kept:
        raise ValueError(f"problems: all of {message}")
    logger.warning("%s; they are left out", message)
    return kept
