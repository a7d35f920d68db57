"""Routers before two replicas: how each is found, configured and started.

`make test-routers` gets vllm-router and the LiteLLM proxy into environments of their own; nginx is
the system's. A router that is not there is skipped by name.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from demo.server import free_port, wait_for_answer

ROOT = Path(__file__).parents[1]

MASTER_KEY = "sk-litellm"
START_SECONDS = 180


@dataclass(frozen=True)
class Router:
    """A router that runs."""

    name: str
    url: str
    key: str  # what clients send
    sticky: str | None  # the header by which it sends a name to one replica
    keyless: tuple[str, ...] = ()  # routes on which the client's key does not reach the replica


@dataclass(frozen=True)
class Kind:
    """How a router is started. `command` gets its executable, port, replicas and a work folder."""

    name: str
    executable: str
    command: Callable[[str, int, list[str], Path], list[str]]
    health: str
    key: str = ""  # what clients send; empty: the key of the replicas
    sticky: str | None = None
    keyless: tuple[str, ...] = ()
    where: str = ""  # an environment of `make test-routers`

    def find(self) -> str | None:
        """Its executable, where it is installed."""
        override = os.environ.get(f"REASONMAXXER_{self.name.upper().replace('-', '_')}")
        in_tree = ROOT / self.where / "bin" / self.executable
        if override:
            return override
        return str(in_tree) if self.where and in_tree.exists() else shutil.which(self.executable)


def _nginx(executable: str, port: int, replicas: list[str], work: Path) -> list[str]:
    """deploy/compose/nginx.conf, with other addresses and a folder of its own."""
    text = (ROOT / "deploy" / "compose" / "nginx.conf").read_text()
    for number, url in enumerate(replicas, 1):
        text = text.replace(f"replica-{number}:8000", url.removeprefix("http://"))
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{work}/")
    text = re.sub(r"worker_processes auto", "worker_processes 1", text)
    (work / "nginx.conf").write_text(text)
    return [executable, "-c", str(work / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]


def _vllm_router(executable: str, port: int, replicas: list[str], _: Path) -> list[str]:
    """The command of docs/fleet.md."""
    return [
        *(executable, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", *replicas),
        *("--policy", "consistent_hash", "--health-check-interval-secs", "2"),
        *("--health-failure-threshold", "1", "--health-success-threshold", "1"),
        *("--prometheus-port", str(free_port()), "--log-level", "warning"),
        *("--disable-circuit-breaker", "--retry-max-retries", "16"),
        *("--retry-max-backoff-ms", "500"),
    ]


def _litellm(executable: str, port: int, replicas: list[str], work: Path) -> list[str]:
    """deploy/routers/litellm.yaml, with other addresses."""
    text = (ROOT / "deploy" / "routers" / "litellm.yaml").read_text()
    for number, url in enumerate(replicas, 1):
        text = text.replace(f"http://replica-{number}:8000", url)
    (work / "litellm.yaml").write_text(text)
    config = str(work / "litellm.yaml")
    return [executable, "--config", config, "--host", "127.0.0.1", "--port", str(port)]


KINDS = (
    Kind("nginx", "nginx", _nginx, "/router/health", sticky="X-Adapter"),
    Kind(
        *("vllm-router", "vllm-router", _vllm_router, "/health"),
        sticky="X-Session-ID",
        keyless=("/v1/responses", "/v1/messages", "/tokenize"),
        where=".venv-routers",
    ),
    Kind(
        *("litellm", "litellm", _litellm, "/health/liveliness"),
        key=MASTER_KEY,
        where=".venv-litellm",
    ),
)


@contextmanager
def running(kind: Kind, replicas: list[str], work: Path, key: str) -> Iterator[Router]:
    """Start a router before the replicas, wait until it answers, and end it at last.

    Args:
        work: a folder that is made for its configuration and its log.
        key: of the replicas.
    """
    executable, port = kind.find(), free_port()
    assert executable is not None
    work.mkdir()
    environment = os.environ | {
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "REASONMAXXER_API_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            kind.command(executable, port, replicas, work),
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=work,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_answer(process, url + kind.health, time.monotonic() + START_SECONDS)
        yield Router(kind.name, url, kind.key or key, kind.sticky, kind.keyless)
    except BaseException:
        print(f"the end of the log of {kind.name}:")
        print("\n".join((work / "log").read_text(errors="replace").splitlines()[-40:]))
        raise
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
