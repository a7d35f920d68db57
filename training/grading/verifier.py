r"""Are the final answers of texts right?

    with Verifier() as verifier:
        [verdict] = verifier.check([r"So it is \boxed{1/2}."], ["0.5"])
        verdicts = verifier.check(texts, problems)      # each by its problem's own grader

The graders decide most answers at once. They leave the rest as questions to worker processes, which
the verifier watches from outside: it kills and replaces a worker that overruns the deadline, and
counts its answer as wrong. math-verify's own timeout is a SIGALRM, which fails off the main thread;
Reasoning Gym has none.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, NamedTuple, Self

from tqdm import tqdm

from training.grading.final_answer import last_boxed
from training.grading.grader import Question
from training.grading.math import MathGrader, math_equal
from training.grading.registry import grader_of
from training.grading.worker import Worker

if TYPE_CHECKING:
    from training.problems.problem import Problem

logger = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """Whether one text is right, and what else was seen of it."""

    correct: bool
    boxed: bool  # the text has a complete, non-empty box
    timed_out: bool  # the grader came to no decision; `correct` is then False


class Verifier:
    """A pool of grading workers, started when first needed. Usable from any thread.

    Args:
        deadline: seconds that a grader may take for one answer.
        workers: processes; by default one per core, four at most.
        compare: math-verify's substitute, see `MathGrader`.
    """

    def __init__(
        self,
        deadline: float = 5.0,
        workers: int | None = None,
        compare: Callable[[str, str, bool], bool] | None = None,
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
        self._context.set_forkserver_preload(["math_verify", "training.grading.worker"])

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
        verdicts: list[Verdict] = []
        open_questions: dict[Question, list[int]] = {}
        for index, (text, problem) in enumerate(zip(texts, problems, strict=True)):
            box = last_boxed(text)
            boxed = bool(box and box.strip())
            decided = self._grade(text, box, problem)
            if not isinstance(decided, bool):
                # Rollouts of one problem often agree: each distinct question is asked once.
                open_questions.setdefault(decided, []).append(index)
            verdicts.append(Verdict(decided is True, boxed, False))
        if open_questions:
            with self._lock:
                try:
                    outcomes = self._ask(list(open_questions))
                except BaseException:  # Ctrl-C, say: no late answer may meet the next question
                    self._stop()
                    raise
            for question, indices in open_questions.items():
                for index in indices:
                    correct = outcomes[question]
                    verdicts[index] = Verdict(
                        correct is True, verdicts[index].boxed, correct is None
                    )
        overdue = sum(verdict.timed_out for verdict in verdicts)
        if overdue:
            logger.warning(
                "%d of %d answers took their grader over %g s and count as wrong",
                overdue, len(texts), self.deadline,
            )  # fmt: skip
        return verdicts

    def _grade(self, text: str, box: str | None, problem: Problem | str) -> bool | Question:
        if isinstance(problem, str):
            return self._math.grade(text, box, problem)
        if problem.grading is None:
            return self._math.grade(text, box, problem.answer)
        return grader_of(problem.grading.grader).grade(text, box, problem)

    def _ask(self, questions: list[Question]) -> dict[Question, bool | None]:
        """Spread `questions` over the workers; None: no decision within the deadline."""
        outcomes: dict[Question, bool | None] = {}
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
                        done, correct = worker.hear()
                    else:
                        done, correct = time.monotonic() >= worker.due, None
                    if not done or worker.question is None:
                        continue
                    outcomes[worker.question] = correct
                    bar.update()
                    worker.question = None
                    if correct is None:
                        worker.kill()
                        self._pool[self._pool.index(worker)] = self._start()
        return outcomes

    def _start(self) -> Worker:
        return Worker(self._context, self._math.compare, self.deadline)
