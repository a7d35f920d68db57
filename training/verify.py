r"""Is the final answer of a text equal to the reference?

math-verify does the mathematics. Its own timeout is a SIGALRM, which fails off the main thread, so
it runs without one, in worker processes that are watched from outside: a worker that overruns the
deadline is killed and replaced, and its answer counts as wrong. Answers that plain string or number
comparison can decide (`training.answer`) never see a process.

The final answer is the last \boxed{...}; without a box, what follows "####", or else an announced
one ("the answer is 18"). A number that merely comes last is not an answer: a truncated rollout
would win by chance.
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
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Self

from tqdm import tqdm

from training.answer import after_hashes, decide, last_boxed, latex
from training.process import without_main

__all__ = ["Verdict", "Verifier", "last_boxed"]

logger = logging.getLogger(__name__)

_TAIL = 2000  # characters in which an unboxed answer is looked for
_START_SECONDS = 120.0  # importing sympy on a busy machine
_MEMORY = 2 * 2**30  # bytes a worker may allocate: 10**10**10 ends in MemoryError


class Verdict(NamedTuple):
    """What became of one text."""

    correct: bool
    boxed: bool  # the text has a complete, non-empty box
    timed_out: bool  # math-verify came to no decision; `correct` is then False


class _Question(NamedTuple):
    """One question to math-verify."""

    text: str
    reference: str
    anchored: bool  # only an announced answer counts


class Verifier:
    """A pool of math-verify workers, started when first needed. Usable from any thread.

    Args:
        deadline: seconds that math-verify may take for one answer.
        workers: processes; by default one per core, four at most.
        compare: (text, reference, anchored) -> correct; importable, runs in the workers.
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
        self._compare = compare or math_equal
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

    def check(self, texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each text against the reference answer at the same place.

        Raises:
            ValueError: there are not as many answers as texts.
            RuntimeError: the workers cannot start.
        """
        verdicts: list[Verdict] = []
        open_questions: dict[_Question, list[int]] = {}
        for index, (text, reference) in enumerate(zip(texts, answers, strict=True)):
            box = last_boxed(text)
            boxed = bool(box and box.strip())
            decided = _at_once(text, box, reference)
            if isinstance(decided, _Question):
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
                "%d of %d answers took math-verify over %g s and count as wrong",
                overdue, len(texts), self.deadline,
            )  # fmt: skip
        return verdicts

    def _ask(self, questions: list[_Question]) -> dict[_Question, bool | None]:
        """Spread `questions` over the workers; None: no decision within the deadline."""
        outcomes: dict[_Question, bool | None] = {}
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
        return _Worker(self._context, self._compare, self.deadline)


def _at_once(text: str, box: str | None, reference: str) -> bool | _Question:
    """The decision that takes no process, or the question to math-verify."""
    candidate = box if box is not None else after_hashes(text)
    if candidate is not None:
        decided = decide(candidate, reference)
        return _Question(latex(candidate), latex(reference), False) if decided is None else decided
    tail = text[-_TAIL:]
    return _Question(tail, latex(reference), True) if "answer" in tail.lower() else False


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
            target=_serve, args=(theirs, compare, deadline), daemon=True, name="verify"
        )
        with nullcontext() if compare.__module__ == "__main__" else without_main():
            self._process.start()
        theirs.close()
        self._deadline = deadline
        self._ready = False
        self.question: _Question | None = None
        self.due = math.inf

    def ask(self, question: _Question) -> None:
        self.question = question
        # Until the worker is ready, the clock is that of its start, not of the answer.
        self.due = time.monotonic() + (self._deadline if self._ready else _START_SECONDS)
        self.pipe.send(question)

    def hear(self) -> tuple[bool, bool | None]:
        """(whether there is an outcome, the outcome); a dead worker's outcome is None."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            if not self._ready:
                self._process.join(1)
                raise RuntimeError(
                    f"a verifier worker could not start (exit code {self._process.exitcode})"
                ) from None
            return True, None
        if message == "ready":
            self._ready = True
            self.due = time.monotonic() + self._deadline
            return False, None
        return True, bool(message)

    def kill(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, compare: Callable[[str, str, bool], bool], deadline: float) -> None:
    """A worker: answer questions until the pipe closes."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # The kernel ends a worker that hangs after its parent was killed, whatever code it is in.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import math_verify  # noqa: F401

    _limit_memory()
    try:
        pipe.send("ready")
        while True:
            text, reference, anchored = pipe.recv()
            signal.alarm(math.ceil(deadline) + 5)
            pipe.send(compare(text, reference, anchored))
            signal.alarm(0)
    except (EOFError, OSError):
        return


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))
    except (ImportError, OSError, ValueError):
        return  # not Linux: the deadline alone must do


def math_equal(text: str, reference: str, anchored: bool) -> bool:
    """math-verify's judgement, without its timeouts. Runs in a worker."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [
        LatexExtractionConfig(try_extract_without_anchor=not anchored),
        ExprExtractionConfig(try_extract_without_anchor=not anchored),
    ]
    try:
        gold = parse(reference, parsing_timeout=None)
        found = parse(text, extraction_config=targets, parsing_timeout=None)
        return bool(verify(gold, found, timeout_seconds=None))
    except Exception:  # recursion, memory: whatever an adversarial answer provokes
        return False
