"""Several servers over one store, each of which can be killed and started again at its address."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.swap import BASE
from demo.server import free_port
from loadtests.preloaded import Command, preloaded
from serving.preloading import START_METHOD

# What a server, its engine and its worker import by and by.
MODULES = (
    *("serving.launch", "serving.routes", "serving.middleware"),
    *("transformers.models.auto", "vllm.entrypoints.launchers.cli_args"),
    *("vllm.entrypoints.openai.api_server", "vllm.v1.engine.core", "vllm.v1.engine.async_llm"),
    *("vllm_gate.scheduler", "vllm_gate.cpu.worker", "vllm_gate.runner_v1"),
)
# Of a server of the shipped miniature that leaves room for others.
FLAGS = (
    *("--model", str(BASE), "--dtype", "float32", "--max-num-seqs", "32"),
    *("--max-model-len", "256", "--kv-cache-memory-bytes", str(2**27)),
)
START_SECONDS = 300.0
DRAIN_SECONDS = 60.0


@dataclass
class Replica:
    """One server.

    Args:
        flags: of `python -m serving`.
        work: a folder for its log.
        starter: forks it.
    """

    flags: Sequence[str]
    work: Path
    starter: Command
    port: int = field(default_factory=free_port)
    up: bool = False  # asked by clients, as by a router that looks at /health
    kills: list[float] = field(default_factory=list)  # perf_counter's times
    _process: psutil.Process | None = None

    @property
    def url(self) -> str:
        """Its address, the same after each start."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What all its processes have printed."""
        return self.work / f"replica-{self.port}.log"

    async def start(self) -> float:
        """Start it and wait until it answers. Returns the seconds that took.

        Raises:
            RuntimeError: it ended, or did not answer in time; the message has the end of its log.
        """
        begun = time.perf_counter()
        flags = (*self.flags, "--port", str(self.port))
        self._process = psutil.Process(self.starter.start_alone(flags, self.log))
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as client:
            while not await _healthy(client):
                passed = time.perf_counter() - begun
                if not self._process.is_running() or passed > START_SECONDS:
                    tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
                    raise RuntimeError(f"a replica is not up after {passed:.0f} s:\n{tail}")
                await asyncio.sleep(0.1)
        self.up = True
        return time.perf_counter() - begun

    def kill(self) -> None:
        """SIGKILL for all its processes, as a container gets it that has no memory left."""
        assert self._process is not None
        everything = [self._process, *self._process.children(recursive=True)]
        self.up = False
        self.kills.append(time.perf_counter())
        _kill(everything)

    async def restart(self) -> float:
        """End it as an upgrade does, by SIGTERM, and start it again. Returns the seconds of all."""
        begun = time.perf_counter()
        await asyncio.to_thread(self.stop)
        await self.start()
        return time.perf_counter() - begun

    def stop(self) -> None:
        """End it: what it answers is finished. One that still starts is killed."""
        answers, self.up = self.up, False
        if self._process is None or not self._process.is_running():
            return
        alive = [self._process, *self._process.children(recursive=True)]
        if answers:
            with suppress(psutil.NoSuchProcess):
                self._process.terminate()
            _, alive = psutil.wait_procs(alive, timeout=DRAIN_SECONDS)
        _kill(alive)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(processes)


@contextmanager
def forking(work: Path) -> Iterator[Command]:
    """Within, what forks replicas: they are up within seconds, soon enough for many kills in a run.

    Args:
        work: a folder for what the imports count.
    """
    counted = work / "counted"
    counted.mkdir()
    # prometheus_client decides when it is imported whether processes count together.
    environment = os.environ | {START_METHOD: "fork", "PROMETHEUS_MULTIPROC_DIR": str(counted)}
    with preloaded(
        *("loadtests.forked_server", work, *MODULES), environment=environment, own_session=True
    ) as command:
        yield command


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False
