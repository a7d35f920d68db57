"""Commands as processes of their own, forked from one that has done the imports.

Most of the seconds of a small fit or server are imports. A process that waits with all imported,
and forks for each command, spares them; what it forks can be killed as any other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PARENT = """
import gc, importlib, json, os, signal, sys

gc.disable()
main = [importlib.import_module(name) for name in sys.argv[1:]][0].main
gc.freeze()  # vLLM collects eight times while an engine starts: modules are left out of it
gc.enable()
for line in sys.stdin:
    arguments, log, alone = json.loads(line)
    # What is on its own is gone when it ends, and no zombie.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if alone else signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        if alone:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if alone else os.O_TRUNC)), 2)
        os.dup2(2, 1)
        sys.argv = [sys.argv[1], *arguments]
        sys.exit(exec(arguments[1], {}) if arguments[:1] == ["-c"] else main())
    print(child, flush=True)
    if not alone:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int  # -9: by SIGKILL
    output: str  # of both streams


class Command:
    """`python -m MODULE`, imported once."""

    def __init__(self, parent: subprocess.Popen[str], log: Path) -> None:
        self._parent, self._log = parent, log

    def start(self, arguments: Sequence[str]) -> int:
        """Its process id; `wait` must follow before the next."""
        return self._fork(arguments, self._log, alone=False)

    def start_alone(self, arguments: Sequence[str], log: Path) -> int:
        """The id of a process that goes on by itself, also after the `with` block.

        Args:
            log: its output is added to it.
        """
        return self._fork(arguments, log, alone=True)

    def _fork(self, arguments: Sequence[str], log: Path, alone: bool) -> int:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        job = json.dumps([list(arguments), str(log), alone])
        print(job, file=self._parent.stdin, flush=True)
        return int(self._parent.stdout.readline())

    def wait(self) -> Ended:
        assert self._parent.stdout is not None
        return Ended(int(self._parent.stdout.readline()), self._log.read_text())

    def run(self, arguments: Sequence[str]) -> Ended:
        """With the arguments `-c CODE` it is the code that runs, as in Python itself."""
        self.start(arguments)
        return self.wait()


@contextmanager
def preloaded(
    module: str,
    folder: Path,
    *later: str,
    environment: dict[str, str] | None = None,
    own_session: bool = False,
) -> Iterator[Command]:
    """Within, commands of `module`; their output goes to a file in `folder`.

    Args:
        later: modules that its `main` imports by itself, to be imported before.
        environment: of the commands; None: that of this process.
        own_session: Ctrl-C at the terminal does not end them.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, module, *later],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=own_session,
    )
    try:
        yield Command(parent, folder / "output.txt")
    finally:
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait()
