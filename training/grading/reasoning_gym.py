r"""Reasoning Gym's graders: each generator scores answers to its own problems.

`score_answer` sees the final answer as written; if that is not right, without \text{...} and the
like. Only the full score, 1, counts:
several generators give part of it to wrong answers.

`score_answer` is given text that a model wrote. Some generators pass it to `eval` or to sympy's
parser, which evaluates it too. So a worker that grades such answers may not write files, start
processes or open connections, and `eval` in a generator's module takes nothing but literals and
arithmetic.
"""

from __future__ import annotations

import ast
import io
import os
import re
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from training.grading.statement import Stated
from training.grading.verdict import Decision, right, unknown, wrong
from training.gym.entry import decode_entry
from training.gym.task import GymTask

if TYPE_CHECKING:
    from training.problems.problem import Problem

_LONGEST = 20_000  # characters; no reference answer of a generator comes near
_FULL = 1 - 1e-9  # a score is a float
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_FACTOR = re.compile(r"\s*(?:\d+(?:\.\d+)?|[A-Za-z])\s*")  # what a slash keeps together
_ESCAPED = re.compile(r"\\([_{}#&])")
_TIMES = re.compile(r"\\(?:times|cdot)(?![A-Za-z])")


class GymGrader:
    """Asks the generator that made the problem. It needs the package reasoning_gym."""

    def grade(self, text: str, stated: Stated, problem: Problem) -> Decision | GymQuestion:
        """Wrong without a final answer; otherwise the question to the generator."""
        del text
        answer = stated.answer
        if answer is None:
            return wrong(stated.reason)
        if not answer.strip() or len(answer) > _LONGEST:
            return wrong("the answer is empty" if not answer.strip() else "the answer is too long")
        return self._question(answer, problem)

    def reference(self, problem: Problem) -> Decision | GymQuestion:
        """Whether the generator finds its own reference right."""
        return self._question(problem.answer, problem)

    def _question(self, answer: str, problem: Problem) -> GymQuestion:
        assert problem.grading is not None
        return GymQuestion(readings(answer), problem.grading.task, problem.grading.entry)


_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\$|\$|\\!|\\\(|\\\)", ""),
        (r"\{,\}", ","),
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}", r"\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?", ""),
        (r"\\%", "%"),
        (r"[−–]", "-"),
        (r"^\s+|[\s.]+$", ""),
        (r"\s+", " "),
    ]
]


def clean(text: str) -> str:
    """`text` without what carries no mathematics: dollar signs, thin spaces, \\left, \\text."""
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _slashed(match: re.Match[str]) -> str:
    r"""\frac{1}{2} as 1/2 and \frac{x+1}{2} as (x+1)/2; a mixed number stays as it is."""
    before, behind = match.string[: match.start()].rstrip(), match.string[match.end() :].lstrip()
    if before[-1:].isdigit():
        return match[0]
    above, below = (
        part.strip() if _FACTOR.fullmatch(part) else f"({part.strip()})" for part in match.groups()
    )
    alone = before[-1:] in ("", "+", "-", "=", "(", "[", "{", ",") and (
        behind[:1] in ("", "+", "-", "=", ")", "]", "}", ",")
    )
    return f"{above}/{below}" if alone else f"({above}/{below})"


def readings(answer: str) -> tuple[str, ...]:
    r"""`answer` as written, then without LaTeX: \text{yes} is yes, \frac{1}{2} is 1/2."""
    plain = _ESCAPED.sub(r"\1", _FRACTION.sub(_slashed, clean(answer)))
    found = [answer.strip(), *(_TIMES.sub(sign, plain) for sign in ("*", "×"))]
    return tuple(dict.fromkeys(found))


class GymQuestion(NamedTuple):
    """Whether an answer gets the full score, as a question to the generator of its problem."""

    answers: tuple[str, ...]  # readings of one answer
    task: str
    entry: str

    def prepare(self) -> None:
        """Import Reasoning Gym, then close the worker to what answers have no business with."""
        import reasoning_gym  # noqa: F401

        _close_worker()

    def decide(self) -> Decision:
        """Whether the generator gives one of the readings its full score."""
        try:
            with redirect_stdout(io.StringIO()):
                dataset = _dataset(self.task)
                scores = [self._score(dataset, answer) for answer in self.answers]
                best = max((score for score in scores if score is not None), default=None)
                if best is None:  # is it the answer, or the entry?
                    dataset.score_answer(
                        decode_entry(self.entry)["answer"], decode_entry(self.entry)
                    )
                    return wrong("the generator cannot read the answer")
        except Exception as error:  # the entry itself cannot be read
            return unknown(f"the problem's entry cannot be read ({type(error).__name__})")
        if best >= _FULL:
            return right("the generator gives the full score")
        return wrong(f"the generator gives {best:.2g} of 1")

    def _score(self, dataset: Any, answer: str) -> float | None:
        """The score of one reading; None: the generator raises."""
        try:
            # An entry of its own for each reading: some generators change what they are given.
            return float(dataset.score_answer(answer, decode_entry(self.entry)))
        except Exception:  # whatever an adversarial answer provokes
            return None


@lru_cache(maxsize=64)
def _dataset(task: str) -> Any:
    dataset = GymTask.parse(task).dataset(seed=0, size=1)
    for cls in type(dataset).__mro__:
        if cls.__module__.startswith("reasoning_gym"):
            vars(sys.modules[cls.__module__])["eval"] = arithmetic
    return dataset


_ARITHMETIC = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp,
    ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip


def arithmetic(source: str, *_: Any) -> Any:
    """`eval` for literals and arithmetic on them. Raises ValueError on names, calls, anything else.

    `[1, 2]` and `3 * (4 + 5)` have a value; `open("x")` and `entry["answer"]` have none.
    """
    tree = ast.parse(source.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, _ARITHMETIC):
            raise ValueError(f"{type(node).__name__} in an answer")
    return eval(compile(tree, "<answer>", "eval"), {"__builtins__": {}})


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "pty.", "tempfile.")
_HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}


@lru_cache(maxsize=1)
def _close_worker() -> None:
    """From now on this process may not write files, start processes or open connections.

    An audit hook cannot be taken out again. It stops what an answer could do by accident or by a
    simple trick; it is no sandbox against an expert.
    """

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = bool(args[2] & _WRITING) if isinstance(args[2], int) else False
        else:
            writes = event.startswith(_FORBIDDEN) and event not in _HARMLESS
        if writes:
            raise PermissionError(f"{event}: not while an answer is graded")

    sys.dont_write_bytecode = True
    sys.addaudithook(refuse)
