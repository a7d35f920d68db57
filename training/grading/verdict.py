"""What grading says of an answer: right, wrong, or that it cannot tell, always with the reason.

Decision(True, "equal numbers")
Decision(False, "1/2006! is not 1/2004!")
Decision(None, "0.3333 is 1/3 rounded")     # reported; left out of rewards and pass rates
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Outcome = Literal["right", "wrong", "cannot tell"]


class Decision(NamedTuple):
    """What a grader decided, and why."""

    correct: bool | None  # None: the grader cannot tell
    reason: str


class Verdict(NamedTuple):
    """Whether one text is right, why, and what else was seen of it."""

    correct: bool | None  # None: the grader cannot tell
    boxed: bool  # the text has a complete, non-empty box
    timed_out: bool  # the grader overran its deadline or its memory; `correct` is then None
    reason: str = ""

    @property
    def outcome(self) -> Outcome:
        """The result as a word."""
        if self.correct is None:
            return "cannot tell"
        return "right" if self.correct else "wrong"


def right(reason: str) -> Decision:
    """The answer equals its reference."""
    return Decision(True, reason)


def wrong(reason: str) -> Decision:
    """The answer differs from its reference, or there is none."""
    return Decision(False, reason)


def unknown(reason: str) -> Decision:
    """Neither equality nor difference can be shown."""
    return Decision(None, reason)


def agreed(decision: Decision, other: Decision | None, retracted: bool) -> Decision:
    """The decision on an answer, given what the text says behind it.

    Args:
        other: the decision on another answer that the text states there.
        retracted: the text takes the answer back.
    """
    if not decision.correct:
        return decision
    if retracted:
        return unknown("the text takes its answer back")
    if other is not None and other.correct is False:
        return unknown("the text states another answer behind its own")
    return decision


def all_of(decisions: list[Decision], reason: str) -> Decision:
    """Right if all are; wrong if one is; else the first that cannot tell."""
    for one in decisions:
        if one.correct is False:
            return one
    for one in decisions:
        if one.correct is None:
            return one
    return right(reason)
