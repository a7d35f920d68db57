r"""Are the final answers of texts right?

    with Verifier() as verifier:
        [verdict] = verifier.check([r"So it is \boxed{1/2}."], ["0.5"])
        verdicts = verifier.check(texts, problems)      # each by its problem's own grader

The graders (`training.grading`) decide most answers at once. The rest are questions to worker
processes that are watched from outside: a worker that overruns the deadline is killed and replaced,
and its answer counts as wrong. math-verify's own timeout is a SIGALRM, which fails off the main
thread; Reasoning Gym has none.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, NamedTuple, Self

from tqdm import tqdm

from training.answer import last_boxed
from training.grading import GRADERS, Grader, MathGrader, Question, math_equal
from training.process import without_main

if TYPE_CHECKING:
    from training.problems.problem import Problem

__all__ = ["Verdict", "Verifier", "last_boxed", "math_equal"]

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0  # importing sympy on a busy machine
_MEMORY = 2 * 2**30  # bytes a worker may allocate: 10**10**10 ends in MemoryError


class Verdict(NamedTuple):
    """What became of one text."""

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
        self._pool: list[_Worker] = []
        self._lock = threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        # Imported once in the fork server: a replaced worker then starts in milliseconds.
        self._context.set_forkserver_preload(["math_verify"])

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

    def _start(self) -> _Worker:
        return _Worker(self._context, self._math.compare, self.deadline)


@lru_cache
def grader_of(name: str) -> Grader:
    """The grader of that name. Raises ValueError if it is unknown or not installed."""
    if name not in GRADERS:
        raise ValueError(f"problems: there is no grader '{name}', only {', '.join(GRADERS)}")
    grader = GRADERS[name]
    grader.available()
    return grader


class _Worker:
    """One process, its pipe, and the question it is at."""

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        compare: Callable[[str, str, bool], bool],
        deadline: float,
    ) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, deadline), daemon=True, name="verify"
        )
        with nullcontext() if compare.__module__ == "__main__" else without_main():
            self._process.start()
        theirs.close()
        self._deadline = deadline
        self._ready: set[type[Question]] = set()  # kinds of questions it has prepared for
        self.question: Question | None = None
        self.due = math.inf

    def ask(self, question: Question) -> None:
        self.question = question
        # Until the worker is ready, the clock is that of its imports, not of the answer.
        ready = type(question) in self._ready
        self.due = time.monotonic() + (self._deadline if ready else _START_SECONDS)
        self.pipe.send(question)

    def hear(self) -> tuple[bool, bool | None]:
        """(whether there is an outcome, the outcome); a dead worker's outcome is None."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            if type(self.question) not in self._ready:
                self._process.join(1)
                raise RuntimeError(
                    f"a verifier worker could not start (exit code {self._process.exitcode})"
                ) from None
            return True, None
        if message == "ready":
            assert self.question is not None
            self._ready.add(type(self.question))
            self.due = time.monotonic() + self._deadline
            return False, None
        return True, bool(message)

    def kill(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, deadline: float) -> None:
    """A worker: answer questions until the pipe closes."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # The kernel ends a worker that hangs after its parent was killed, whatever code it is in.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    ready: set[type[Question]] = set()
    try:
        while True:
            question: Question = pipe.recv()
            if type(question) not in ready:
                question.prepare()
                _limit_memory()  # on top of what was imported
                ready.add(type(question))
                pipe.send("ready")
            signal.alarm(math.ceil(deadline) + 5)
            pipe.send(question.decide())
            signal.alarm(0)
    except (EOFError, OSError):
        return


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, hard))
    except (ImportError, OSError, ValueError):
        return  # not Linux: the deadline alone must do
