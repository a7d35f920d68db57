"""Commands as processes of their own, forked from one that has done the imports.

Most of a small fit's seconds are `import torch`. A process that waits with everything imported, and
forks for each command, spares them; what it forks can be killed as any other.
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
import gc, importlib, json, os, sys

gc.disable()
main = [importlib.import_module(name) for name in sys.argv[1:]][0].main
gc.freeze()  # vLLM collects eight times while an engine starts: modules are left out of it
gc.enable()
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        sys.argv = [sys.argv[1], *arguments]
        sys.exit(exec(arguments[1], {}) if arguments[:1] == ["-c"] else main())
    print(child, flush=True)
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
        assert self._parent.stdin is not None and self._parent.stdout is not None
        print(json.dumps([list(arguments), str(self._log)]), file=self._parent.stdin, flush=True)
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
    module: str, folder: Path, *later: str, environment: dict[str, str] | None = None
) -> Iterator[Command]:
    """Within, commands of `module`; their output goes to a file in `folder`.

    Args:
        later: modules that its `main` imports by itself, to be imported before.
        environment: of the commands; None: that of the tests.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, module, *later],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Command(parent, folder / "output.txt")
    finally:
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait()
