"""A thousand adapters in a bucket: start-up, listing, memory, idle requests, cold adapters.

    python -m benchmarks.bucket                      (about 4 minutes)
    python -m benchmarks.bucket --url s3://mine/test # a real one, with your credentials

Without --url an S3 server (moto) runs on this machine, so the figures are of the server's own work
and of many small requests, not of a network. What is written to --url stays there. Random LoRAs of
the shipped miniature, float32.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx
import psutil
from pydantic import Field, model_validator

from adapters.bucket.index import INDEX, Content
from adapters.bucket.store import BucketStore
from adapters.command_line import CommandLine
from adapters.moves import Move
from adapters.places import open_store, parse_place
from adapters.reference import Reference
from benchmarks.adapters import make_random_adapter
from benchmarks.report import print_table, save, show
from benchmarks.streams import environment, stream
from benchmarks.swap import BASE
from demo.server import Running, end_as_asked, free_port, running_server, stop, wait_for_answer

CONTENTS = 8  # adapters of different content; each has many names
FIRST = [f"a{number}" for number in range(CONTENTS)]
BUCKET = "benchmark"


class BucketConfig(CommandLine):
    """Measure a thousand adapters in a bucket."""

    program: ClassVar[str] = "python -m benchmarks.bucket"

    url: str = Field("", description="Empty prefix of a bucket; default: a server of our own.")
    adapters: int = Field(1000, ge=2, description="Adapters in the bucket.")
    cold: int = Field(12, ge=1, description="Adapters that are asked for.")
    idle: float = Field(60, gt=0, description="Seconds without a request.")

    @model_validator(mode="after")
    def _are_there(self) -> Self:
        if self.url and not isinstance(parse_place(self.url), str):
            raise ValueError("--url is no bucket, such as s3://BUCKET/PREFIX")
        if self.cold >= self.adapters:
            raise ValueError(f"--cold must be below --adapters, {self.adapters}: one warms up")
        return self


@contextmanager
def own_storage() -> Iterator[str]:
    """The URL of a bucket on this machine, for as long as this is open."""
    import boto3

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_answer(process, endpoint, time.monotonic() + 60)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/store"
    finally:
        stop(process)


def fill(url: str, adapters: int, folder: Path) -> dict[str, Any]:
    """Publish a few as anybody does, and copy them in the bucket under all other names."""
    store = open_store(url, folder / "filling")
    assert isinstance(store, BucketStore)
    seconds, versions = [], []
    for number in range(min(CONTENTS, adapters)):
        source = make_random_adapter(folder, BASE, number)
        start = time.perf_counter()
        versions.append(store.publish(source, f"a{number}").hash)
        seconds.append(time.perf_counter() - start)
    names = {f"a{number}": versions[number % CONTENTS] for number in range(CONTENTS, adapters)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: copy(store, *item), names.items()))
    moves = {
        name: Move.now(Reference(name, digest), None, "publish", None)
        for name, digest in names.items()
    }
    store.refresh()
    content = Content(aliases=store.index.aliases | moves)
    store.objects.put(INDEX, content.model_dump_json(by_alias=True).encode())
    return {"publish, s": show(seconds, 2)}


def copy(store: BucketStore, name: str, digest: str) -> None:
    """Have a version of the first names under another one too."""
    there = Reference(name, digest)
    here = next(one for one in FIRST if store.path(Reference(one, digest)).is_dir())
    folder = store.path(Reference(here, digest))
    store.all_versions.write(there, store.all_versions.upload(there, folder))


def list_in_process(url: str, cache: Path) -> dict[str, Any]:
    """What `store list` does, on a machine that knows nothing and on one that knows all."""
    figures: dict[str, Any] = {}
    for label in ("nothing", "all"):
        start = time.perf_counter()
        store = open_store(url, cache)
        opened = time.perf_counter()
        names = store.names()
        store.bring_records(names)
        listed = len(store.listing(hashes=False).offered)
        assert listed == len(names)
        figures[f"list, knowing {label}: open s, list s, requests"] = [
            round(opened - start, 2),
            round(time.perf_counter() - opened, 2),
            sum(store.calls.values()),
        ]
    return figures


def calls(url: str) -> dict[str, float]:
    """Requests to the bucket so far, by kind."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.findall(r'^reasonmaxxer_store_requests_total\{kind="(\w+)"\} ([\d.]+)', text, re.M)
    return {kind: float(count) for kind, count in found}


async def first_tokens(url: str, names: list[str]) -> dict[str, Any]:
    """Seconds to the first token: of adapters never seen here, and of the same once more."""
    found: dict[str, list[float]] = {"never seen": [], "in the engine": []}
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await stream(client, names[0], "What is 3*4?", 4)  # warm-up
        for name in names[1:]:
            for seconds in found.values():
                answer = await stream(client, name, "What is 3*4?", 4)
                answer.whole()
                seconds.append(answer.arrivals[0])
    return {f"first token, s, {label}": show(each, 3) for label, each in found.items()}


def ask(server: Running, options: BucketConfig) -> dict[str, Any]:
    """What a server with all of them says and costs."""
    figures: dict[str, Any] = {}
    for label in ("first", "again"):
        start = time.perf_counter()
        found = httpx.get(f"{server.url}/v1/models", timeout=120).json()["data"]
        figures[f"GET /v1/models, {label}, s"] = round(time.perf_counter() - start, 3)
    figures["models listed"] = len(found)
    names = [f"a{number}" for number in range(options.cold + 1)]
    figures |= asyncio.run(first_tokens(server.url, names))
    before = calls(server.url)
    time.sleep(options.idle)
    after = calls(server.url)
    figures["requests to the bucket a minute, idle"] = {
        kind: round((count - before.get(kind, 0)) * 60 / options.idle, 1)
        for kind, count in after.items()
    }
    return figures


def serve(url: str, cache: Path, label: str, options: BucketConfig) -> dict[str, Any]:
    """Start a server; one that knows nothing is asked too."""
    flags: tuple[str, ...] = ("--model", str(BASE), "--adapters", url)
    flags += ("--store-cache", str(cache))
    flags += ("--dtype", "float32", "--max-num-seqs", "16", "--max-model-len", "512")
    start = time.perf_counter()
    with running_server(*flags, log=cache.parent / f"{label}.log") as server:
        # Of the front end's process alone: the engine knows of no store.
        memory = psutil.Process(server.pid).memory_info().rss
        figures: dict[str, Any] = {
            f"start, {label}, s": round(time.perf_counter() - start, 1),
            f"memory of the front end, {label}, MiB": round(memory / 2**20),
        }
        if label == "knowing nothing":
            figures |= ask(server, options)
    return figures


def main() -> int:
    """Measure and write the figures."""
    options = BucketConfig.load()
    end_as_asked()
    environment()
    result: dict[str, Any] = {"adapters": options.adapters}
    storage = nullcontext(options.url) if options.url else own_storage()
    with tempfile.TemporaryDirectory() as folder, storage as url:
        work, one, every = Path(folder), f"{url}/one", f"{url}/all"
        fill(one, 1, work / "one")
        phases = (
            lambda: fill(every, options.adapters, work / "all"),
            lambda: list_in_process(every, work / "listed"),
            lambda: serve(every, work / "cache", "knowing nothing", options),
            lambda: serve(every, work / "cache", "knowing all", options),
            lambda: serve(one, work / "cache", "of one adapter", options),
        )
        for phase in phases:
            result |= phase()
            save("bucket", result)  # of what is done, should the rest not be
    print_table(["", ""], [[name, str(value)] for name, value in result.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
