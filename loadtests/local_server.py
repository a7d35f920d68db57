"""A server of this project for one run (`--start`): the shipped base, and a store as needed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters.store import SHIPPED, Store
from benchmarks.adapters import make_random_adapter
from benchmarks.streams import environment
from demo.server import Running, running_server
from loadtests.plan import ADMIN_KEY
from loadtests.scenarios import Scenario

BASE = SHIPPED.parents[1] / "models" / "tiny-qwen2"
MANY, VERSIONS = 12, 4  # random adapters; random versions of the shipped one
FLAGS = ("--max-model-len", "512", "--max-num-seqs", "64")


def make_store(scenario: Scenario, folder: Path) -> Path:
    """The shipped store, or a copy with random LoRAs, which are as fast as any, where needed."""
    if not scenario.moves and not scenario.zipf:
        return SHIPPED
    root = folder / "store"
    shutil.copytree(SHIPPED, root, ignore=shutil.ignore_patterns(".lock", ".lease"))
    store = Store(root)
    shipped = store.names()[0]
    for seed in range(VERSIONS if scenario.moves else MANY):
        made = make_random_adapter(folder, BASE, seed)
        store.publish(
            made, shipped if scenario.moves else f"random-{seed}", alias=not scenario.moves
        )
    return root


@contextmanager
def started(scenario: Scenario, flags: Sequence[str] = ()) -> Iterator[Running]:
    """Run a server, and make an admin key if there is none. Raises RuntimeError if it fails."""
    environment()
    os.environ.setdefault(ADMIN_KEY, secrets.token_hex(16))
    with TemporaryDirectory(prefix="loadtest-") as folder:
        ours = ("--model", str(BASE), "--adapters", str(make_store(scenario, Path(folder))))
        with running_server(*ours, *FLAGS, *flags) as running:
            yield running
