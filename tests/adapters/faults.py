"""An operation on the disk, killed or refused at its n-th step.

A child process counts every call that changes the disk (os.write, os.rename, os.open for writing,
...) and ends itself with SIGKILL before the n-th, or halfway through it where it is a write, or has
it fail with an error. An audit hook proves that nothing is written past the counted calls.

The child is forked from a small process: a fork of one that has imported torch takes ten times as
long. So the operation and the fault of `run_apart` are what can be pickled.
"""

from __future__ import annotations

import atexit
import errno
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import IO, Any, NamedTuple, Protocol

# Every call of the os module with which the store changes anything on the disk.
CALLS = (
    *("open", "write", "ftruncate", "fsync", "fchmod", "chmod", "utime", "link", "symlink"),
    *("mkdir", "rmdir", "rename", "replace", "unlink", "remove"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What a full disk refuses, and what a read-only one does.
GROWING = frozenset({"open", "write", "fsync", "mkdir", "rename", "replace"})
CHANGING = frozenset(CALLS) - {"fsync"}


class Fault(Protocol):
    """What happens at the step `number`, a call of `name`."""

    def __call__(self, number: int, name: str, call: Callable[[], Any], args: tuple) -> Any: ...


@dataclass(frozen=True)
class KillBefore:
    """SIGKILL instead of the n-th step."""

    n: int

    def __call__(self, number: int, name: str, call: Callable[[], Any], args: tuple) -> Any:
        if number == self.n:
            os.kill(os.getpid(), signal.SIGKILL)
        return call()


@dataclass(frozen=True)
class KillHalfway:
    """As the n-th step, if it is a write: half of it, then SIGKILL; else SIGKILL after it."""

    n: int

    def __call__(self, number: int, name: str, call: Callable[[], Any], args: tuple) -> Any:
        if number != self.n:
            return call()
        try:
            if name == "write":
                REAL["write"](args[0], args[1][: len(args[1]) // 2])
            else:
                call()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


@dataclass(frozen=True)
class RefuseFrom:
    """From the n-th step on every call of `names` fails; with `half`, a write writes half first."""

    n: int
    error: int
    names: frozenset[str]
    half: bool = False

    def __call__(self, number: int, name: str, call: Callable[[], Any], args: tuple) -> Any:
        creates = name != "open" or not os.path.exists(args[0])
        full = self.error == errno.ENOSPC
        if number < self.n or name not in self.names or (full and not creates):
            return call()
        if self.half and name == "write" and len(args[1]) > 1:
            return REAL["write"](args[0], args[1][: len(args[1]) // 2])
        raise OSError(
            self.error, os.strerror(self.error), args[0] if isinstance(args[0], str) else None
        )


class Outcome(NamedTuple):
    """How the child ended."""

    killed: bool
    steps: list[str]  # the names of the counted calls; empty if it was killed
    error: tuple[str, str] | None  # type and message


REAL: dict[str, Any] = {}


def run(operation: Callable[[], Any], fault: Fault) -> Outcome:
    """Run `operation` in a child of this process, under `fault`."""
    return _counted(_fork(operation, fault))


def run_apart(operation: Callable[[], Any], fault: Fault) -> Outcome:
    """The same in a child of a small process."""
    forker = _forker()
    assert forker.stdin is not None and forker.stdout is not None
    pickle.dump((operation, fault), forker.stdin)
    forker.stdin.flush()
    return _counted(pickle.load(forker.stdout))


def _counted(outcome: Outcome) -> Outcome:
    assert outcome.error is None or outcome.error[0] != "Uncounted", outcome.error[1]
    return outcome


@cache
def _forker() -> subprocess.Popen[bytes]:
    """This module as a command, for as long as the tests run."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", "import faults; faults.serve()"],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(process.kill)
    return process


def serve() -> None:
    """Fork a child for each (operation, fault) of stdin; its outcome goes to stdout."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while request := _next(requests):
        pickle.dump(_fork(*request), answers)
        answers.flush()


def _next(requests: IO[bytes]) -> tuple[Callable[[], Any], Fault] | None:
    try:
        return pickle.load(requests)
    except EOFError:
        return None


def _fork(operation: Callable[[], Any], fault: Fault) -> Outcome:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(operation, fault, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        report = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Outcome(True, [], None)
    return Outcome(False, *pickle.loads(report))


def _child(operation: Callable[[], Any], fault: Fault, writer: int) -> None:
    steps: list[str] = []
    error: tuple[str, str] | None = None
    counted = False  # whether a counted call is on the stack
    REAL.update({name: getattr(os, name) for name in CALLS})

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal counted
            if name == "open" and not args[1] & WRITING:
                return REAL[name](*args, **kwargs)
            steps.append(name)
            counted = True
            try:
                return fault(len(steps), name, lambda: REAL[name](*args, **kwargs), args)
            finally:
                counted = False

        return call

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        writes = writes and args[0] != os.devnull  # dill's, where vLLM is imported first here
        changes = event.startswith(("os.", "shutil.")) and event.partition(".")[2] in (
            *("mkdir", "rename", "rmdir", "remove", "truncate", "chmod", "link", "symlink"),
            *("utime", "copyfile", "move", "copytree"),
        )
        if (writes or changes) and not counted and not done:
            raise Uncounted(f"{event}{args} is not one of the counted calls")

    done = False
    sys.dont_write_bytecode = True
    for name in CALLS:
        setattr(os, name, counting(name))
    sys.addaudithook(audit)
    try:
        operation()
    except Uncounted:
        error = ("Uncounted", traceback.format_exc())
    except BaseException as raised:
        error = (type(raised).__name__, str(raised))
    done = True
    REAL["write"](writer, pickle.dumps((steps, error)))
    os._exit(0)


class Uncounted(BaseException):
    """Something was written past the counted calls."""


def steps_of(operation: Callable[[], Any]) -> list[str]:
    """The names of its steps, undisturbed. The caller puts the disk back."""
    outcome = run_apart(operation, KillBefore(-1))
    assert not outcome.killed and outcome.error is None
    return outcome.steps


def every_step(operation: Callable[[], Any], fault: Callable[[int], Fault]) -> Iterator[Outcome]:
    """Run `operation` under `fault(1)`, `fault(2)`, ... until it gets through undisturbed.

    The caller puts the disk back between two.
    """
    for n in count(1):
        outcome = run_apart(operation, fault(n))
        yield outcome
        if not outcome.killed and len(outcome.steps) < n:
            return


def every_write(
    operation: Callable[[], Any], fault: Callable[[int], Fault], steps: Sequence[str]
) -> Iterator[Outcome]:
    """The same under faults of the writes among its `steps`.

    It is for faults that come halfway: at any other step they are those of a whole step.
    """
    for n, name in enumerate(steps, 1):
        if name == "write":
            yield run_apart(operation, fault(n))
