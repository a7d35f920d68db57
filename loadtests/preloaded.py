"""Servers that start within seconds: forked from a process that has imported what they need.

Most of a small server's start are imports, in three processes. Here one process has done them, and
a server, its engine and its worker are forks. Killed replicas are so up again soon enough for many
kills in a run. They run the same code as `python -m serving`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# What a server, its engine and its worker import by and by.
MODULES = (
    *("serving.__main__", "serving.launch", "serving.routes", "serving.middleware"),
    *("transformers.models.auto", "vllm.entrypoints.launchers.cli_args"),
    *("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "vllm.v1.engine.async_llm"),
    *("vllm_gate.scheduler", "vllm_gate.cpu.worker", "vllm_gate.runner_v1"),
)
PARENT = """
import gc, importlib, json, os, signal, sys

gc.disable()
main = [importlib.import_module(name) for name in sys.argv[1:]][0].main
from vllm.utils import system_utils
# vLLM's CPU platform asks for new interpreters; with one thread a fork does no harm.
system_utils._maybe_force_spawn = lambda: os.environ.update(VLLM_WORKER_MULTIPROC_METHOD="fork")
gc.freeze()
gc.enable()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what ends is gone, and no zombie
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        sys.argv = [sys.argv[1], *arguments]
        sys.exit(main())
    print(child, flush=True)
"""


class Preloaded:
    """Starts servers; see `preloaded`."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent

    def start(self, flags: Sequence[str], log: Path) -> int:
        """The process id of a server with `flags`, whose output is added to `log`."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        print(json.dumps([list(flags), str(log)]), file=self._parent.stdin, flush=True)
        return int(self._parent.stdout.readline())


@contextmanager
def preloaded(work: Path) -> Iterator[Preloaded]:
    """Within, servers can be started; those that run at its end go on.

    Args:
        work: a folder for what the imports count.
    """
    counted = work / "counted"
    counted.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *MODULES],
        # prometheus_client decides when it is imported whether processes count together.
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(counted)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Preloaded(parent)
    finally:
        assert parent.stdin is not None
        parent.stdin.close()
        parent.wait()
