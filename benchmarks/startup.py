"""What a server takes to start: seconds until it is healthy, and its memory, beside plain vLLM's.

    python -m benchmarks.startup --model runs/models/Qwen2.5-Coder-0.5B-Instruct

Each server is a fresh process that answers one request before its memory is read. What vLLM
compiles is kept in a folder of its own, empty at first: "compiled" is the first start of a machine.
Our server never compiles on a CPU, because vLLM's CPU build compiles nothing where LoRA is on.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import psutil
from pydantic import Field, field_validator

from benchmarks.report import in_turns, print_table, ratios, save, show, spread
from demo.server import end_as_asked, running
from training.config import Config

SERVERS = {
    "plain vLLM (compiled)": ["benchmarks.plain_vllm"],
    "plain vLLM --enforce-eager": ["benchmarks.plain_vllm", "--enforce-eager"],
    "python -m serving --gate off": ["serving", "--gate", "off"],
    "python -m serving": ["serving"],
}
DEADLINE = 600.0  # seconds
GIB = 2**30


class StartupConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.startup"

    model: Path = Field(description="Folder of the model.")
    dtype: str = "bfloat16"
    runs: int = Field(3, ge=1, description="Starts of each server, by turns.")
    only: list[str] = Field([], description=f"Servers to start; all if none: {list(SERVERS)}")

    @field_validator("only")
    @classmethod
    def _are_there(cls, value: list[str]) -> list[str]:
        if not set(value) <= set(SERVERS):
            raise ValueError(f"there are {', '.join(SERVERS)}")
        return value


class Start(NamedTuple):
    """One start of a server."""

    seconds: float  # until /health answers
    first: float  # seconds of the first completion, of one token
    cpu: float  # processor seconds of the server's processes until then
    rss: int  # bytes, all of them together


def start(command: list[str], model: Path, dtype: str) -> Start:
    """Start a server, ask it once, end it.

    Raises:
        RuntimeError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="startup-") as work:
        flags = ["--model", str(model), "--dtype", dtype]
        flags += ["--max-model-len", "2048", "--kv-cache-memory-bytes", str(GIB)]
        if command[0] == "serving":
            (store := Path(work, "store")).mkdir()
            flags += ["--adapters", str(store)]
        environment = os.environ | {"VLLM_CACHE_ROOT": work, "VLLM_LOGGING_LEVEL": "ERROR"}
        for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "GLIBC_TUNABLES"):
            environment.pop(name, None)  # of benchmarks.engines
        options: dict[str, Any] = {"deadline": DEADLINE, "log": Path(work, "log"), "quiet": True}
        begun = time.monotonic()
        with running(*command, *flags, environment=environment, **options) as server:
            healthy = time.monotonic()
            body = {"model": str(model), "prompt": "2 + 2 =", "max_tokens": 1}
            request = urllib.request.Request(
                f"{server.url}/v1/completions",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=DEADLINE).close()
            answered = time.monotonic()
            root = psutil.Process(server.pid)
            tree = [root, *root.children(recursive=True)]
            rss = sum(one.memory_info().rss for one in tree)
            cpu = sum(sum(one.cpu_times()[:2]) for one in tree)
    return Start(healthy - begun, answered - healthy, cpu, rss)


def measure(
    model: Path, dtype: str, runs: int, only: list[str] | None = None
) -> dict[str, list[Start]]:
    """The starts of each server, which take turns."""
    names = [name for name in SERVERS if not only or name in only]
    return in_turns(names, runs, lambda name: start(SERVERS[name], model, dtype))


def report(found: dict[str, list[Start]]) -> dict[str, Any]:
    """Print a table, with ratios to the first server of the same turn; the same as figures."""
    rows, figures = [], {}
    beside = [one.seconds for one in next(iter(found.values()))]
    for name, starts in found.items():
        seconds, first = [one.seconds for one in starts], [one.first for one in starts]
        ratio = ratios(seconds, beside)
        cpu, memory = [one.cpu for one in starts], [one.rss / GIB for one in starts]
        shown = (show(seconds, 1), show(ratio, 2), show(cpu, 1), show(first, 2), show(memory, 2))
        rows.append([name, *shown])
        figures[name] = {
            "seconds_until_healthy": spread(seconds),
            "ratio_to_the_first_server": spread(ratio),
            "processor_seconds": spread(cpu),
            "seconds_of_first_token": spread(first),
            "rss_gib": spread(memory),
        }
    print(f"\nstart of a server, median (range) of {len(beside)} starts, by turns\n")
    header = ["server", "healthy after, s", "ratio to the first", "processor, s"]
    print_table([*header, "first answer, s", "memory, GiB"], rows)
    return figures


def main() -> None:
    """Measure and save."""
    config = StartupConfig.load()
    end_as_asked()
    figures = report(measure(config.model, config.dtype, config.runs, config.only))
    save(f"startup-{config.model.resolve().name}", {**config.values(), "servers": figures})


if __name__ == "__main__":
    main()
