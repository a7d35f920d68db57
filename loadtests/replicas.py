"""Several servers over one store, each of which can be killed and started again at its address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from demo.server import free_port
from loadtests.preloaded import Preloaded

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
    starter: Preloaded
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
        self._process = psutil.Process(self.starter.start(flags, self.log))
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


async def _healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False
