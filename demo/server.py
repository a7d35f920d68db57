"""A server of our own for as long as a block lasts: `python -m serving` on a free port."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple


def free_port() -> int:
    """A port that nobody listens on at this moment.

    It lies below the range from which the kernel takes ports for outgoing connections, so that none
    of those takes it before the server does.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Running(NamedTuple):
    """A server that answers."""

    url: str
    pid: int


def end_as_asked() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it has started ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def running_server(*flags: str, log: Path | None = None) -> AbstractContextManager[Running]:
    """Start `python -m serving` with `flags`; see `running`."""
    return running("serving", *flags, log=log)


@contextmanager
def running(
    module: str,
    *flags: str,
    deadline: float = 300.0,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
    quiet: bool = False,
) -> Iterator[Running]:
    """Start the server `module` with `flags`, yield it once it is healthy, and stop it afterwards.

    Args:
        log: a file for what it prints; None: the terminal.
        environment: of its process; None: that of this one.
        quiet: do not print the command.

    Raises:
        RuntimeError: it ended, or was not healthy, before `deadline` seconds; the message has the
            end of the log.
    """
    command = [module, *flags, "--port", str(port := free_port())]
    if not quiet:
        print(f"\n$ python -m {' '.join(command)}", flush=True)
    url = f"http://127.0.0.1:{port}"
    with nullcontext() if log is None else log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdout=file,
            stderr=file and subprocess.STDOUT,
        )
        try:
            wait_for_answer(process, f"{url}/health", time.monotonic() + deadline, log)
            yield Running(url, process.pid)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server with SIGTERM; with SIGKILL where it still runs after a minute."""
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for_answer(
    process: subprocess.Popen[bytes], url: str, until: float, log: Path | None = None
) -> None:
    """Ask a server for `url` until it answers. Raises RuntimeError if it does not in time."""
    while time.monotonic() < until:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").splitlines()[-20:] if log else []
            tail = "".join(f"\n{line}" for line in lines)
            raise RuntimeError(f"the server ended with exit code {process.returncode}{tail}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server was not healthy in time")
