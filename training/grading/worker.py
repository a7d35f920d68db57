"""A process that grades answers, and that can be killed: what hangs or grows ends with it."""

from __future__ import annotations

import logging
import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection

from training.grading.grader import Question
from training.grading.verdict import Decision
from training.spawn import without_main

_START_SECONDS = 120.0  # allowed for importing sympy on a busy machine
_MEMORY = 2 * 2**30  # bytes a worker may allocate: 10**10**10 ends in MemoryError


class Worker:
    """A process that answers questions one by one, over a pipe.

    Args:
        compare: what compares two answers; where it lies in the main module, the process must
            import that module.
        deadline: seconds for one answer. Imports do not count.
    """

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        compare: Callable[[str, str], Decision],
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
        """Send the process a question; `due` is when its answer is late."""
        self.question = question
        # Until the worker is ready, the clock is that of its imports, not of the answer.
        ready = type(question) in self._ready
        self.due = time.monotonic() + (self._deadline if ready else _START_SECONDS)
        self.pipe.send(question)

    def hear(self) -> tuple[bool, Decision | None]:
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
        assert isinstance(message, Decision)
        return True, message

    def kill(self) -> None:
        """End the process, whatever it is doing."""
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
