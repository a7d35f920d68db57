r"""Are the final answers of texts right?

    with Verifier() as verifier:
        [verdict] = verifier.check([r"So it is \boxed{1/2}."], ["0.5"])
        verdicts = verifier.check(texts, problems)      # each by its problem's own grader
        faults = verifier.check_references(problems)    # why answers to some cannot be graded

The graders decide most answers at once. They leave the rest as questions to worker processes, which
the verifier watches from outside: it kills and replaces a worker that overruns the deadline, and
says of its answer that it cannot tell. sympy and Reasoning Gym have no time limit of their own.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from training.grading.final_answer import last_boxed
from training.grading.grader import Grader, Question
from training.grading.math import Compare, MathGrader, math_equal
from training.grading.registry import MATH, grader_of
from training.grading.statement import Stated, stated_answer
from training.grading.verdict import Decision, Verdict, agreed, unknown
from training.grading.worker import Worker

if TYPE_CHECKING:
    from training.problems.problem import Problem

logger = logging.getLogger(__name__)

_OVERDUE = unknown("the grader came to no decision in time")


class Verifier:
    """A pool of grading workers, started when first needed. Usable from any thread.

    Args:
        deadline: seconds that a grader may take for one answer.
        workers: processes; by default one per core, four at most.
        compare: what compares two answers in the workers, see `MathGrader`.
    """

    def __init__(
        self,
        deadline: float = 5.0,
        workers: int | None = None,
        compare: Compare | None = None,
    ) -> None:
        if deadline <= 0:
            raise ValueError(f"deadline: {deadline} is not a positive number of seconds")
        self.deadline = deadline
        self._size = workers or min(4, os.cpu_count() or 1)
        self._math = MathGrader(compare or math_equal)
        self._pool: list[Worker] = []
        self._lock = threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        # Imported once in the fork server: a replaced worker then starts in milliseconds.
        self._context.set_forkserver_preload(
            ["latex2sympy2_extended.latex2sympy2", "training.grading.worker"]
        )

    @property
    def overdue(self) -> str:
        """The reason of an answer that took its grader over the deadline."""
        return f"the grader came to no decision within {self.deadline:g} s"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers. The verifier can be used again afterwards."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        while self._pool:
            self._pool.pop().kill()

    def check(self, texts: Sequence[str], problems: Sequence[Problem | str]) -> list[Verdict]:
        """One verdict for each text on the problem at the same place, by that problem's grader.

        Args:
            problems: a string stands for a problem with that reference answer, for math-verify.

        Raises:
            ValueError: there are not as many problems as texts, or a grader is not installed.
            RuntimeError: the workers cannot start.
        """
        boxed = [bool((last_boxed(text) or "").strip()) for text in texts]
        stated = [stated_answer(text) for text in texts]
        asked = list(zip(texts, stated, problems, strict=True))
        # What a text states behind its answer is graded too: the two must not disagree.
        others = [(text, one.behind(), p) for text, one, p in asked if one.other]
        first = self._decided([self._grade(*one) for one in (*asked, *others)])
        behind = iter(first[len(asked) :])
        decisions = [
            agreed(decision, next(behind) if one.other else None, one.retracted)
            for decision, one in zip(first, stated, strict=False)
        ]
        verdicts = [
            Verdict(one.correct, box, one is _OVERDUE, self._reason(one))
            for one, box in zip(decisions, boxed, strict=True)
        ]
        overdue = sum(verdict.timed_out for verdict in verdicts)
        if overdue:
            logger.warning(
                "%d of %d answers took their grader over %g s and are left out",
                overdue, len(texts), self.deadline,
            )  # fmt: skip
        return verdicts

    def check_references(self, problems: Sequence[Problem]) -> list[str | None]:
        """Why answers to each problem cannot be graded; None: they can.

        Raises:
            ValueError: a grader is not installed.
        """
        asked = [self._grader(problem).reference(problem) for problem in problems]
        return [None if one.correct else self._reason(one) for one in self._decided(asked)]

    def _reason(self, decision: Decision) -> str:
        return self.overdue if decision is _OVERDUE else decision.reason

    def _decided(self, found: Sequence[Decision | Question]) -> list[Decision]:
        """The decisions, with the questions among them answered by workers."""
        # Rollouts of one problem often agree: each distinct question is asked once.
        questions = list(dict.fromkeys(one for one in found if not isinstance(one, Decision)))
        answers: dict[Question, Decision] = {}
        if questions:
            with self._lock:
                try:
                    answers = self._ask(questions)
                except BaseException:  # Ctrl-C, say: no late answer may meet the next question
                    self._stop()
                    raise
        return [one if isinstance(one, Decision) else answers[one] for one in found]

    def _grader(self, problem: Problem) -> Grader:
        name = problem.grading.grader if problem.grading is not None else MATH
        return self._math if name == MATH else grader_of(name)

    def _grade(self, text: str, stated: Stated, problem: Problem | str) -> Decision | Question:
        if isinstance(problem, str):
            return self._math.grade_against(text, stated, problem)
        return self._grader(problem).grade(text, stated, problem)

    def _ask(self, questions: list[Question]) -> dict[Question, Decision]:
        """Spread `questions` over the workers; `_OVERDUE`: no decision within the deadline."""
        outcomes: dict[Question, Decision] = {}
        waiting = deque(questions)
        while len(self._pool) < min(self._size, len(questions)):
            self._pool.append(self._start())
        # A short wait needs no bar.
        with tqdm(total=len(questions), desc="verifying", unit="answer", delay=2.0) as bar:
            while len(outcomes) < len(questions):
                for worker in self._pool:
                    if worker.question is None and waiting:
                        worker.ask(waiting.popleft())
                busy = [worker for worker in self._pool if worker.question is not None]
                patience = min(worker.due for worker in busy) - time.monotonic()
                told = wait([worker.pipe for worker in busy], max(0.0, patience))
                for worker in busy:
                    if worker.pipe in told:
                        done, decision = worker.hear()
                    else:
                        done, decision = time.monotonic() >= worker.due, None
                    if not done or worker.question is None:
                        continue
                    outcomes[worker.question] = _OVERDUE if decision is None else decision
                    bar.update()
                    worker.question = None
                    if decision is None:
                        worker.kill()
                        self._pool[self._pool.index(worker)] = self._start()
        return outcomes

    def _start(self) -> Worker:
        return Worker(self._context, self._math.compare, self.deadline)
