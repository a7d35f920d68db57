"""What the store's tests share."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import MEMORY, make_adapter

from adapters.bucket import objects
from adapters.bucket.store import BucketStore

if TYPE_CHECKING:
    from cloud import Cloud


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A folder in memory, where there is such a place."""
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="reasonmaxxer-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different content."""
    place = tmp_path_factory.mktemp("sources")
    return [make_adapter(place / str(number), value=number + 1.0) for number in range(6)]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A store of the test's own."""
    return f"of-tests/{zlib.crc32(request.node.nodeid.encode()):x}"


@pytest.fixture
def machine(cloud: Cloud, prefix: str, quick_disk: Path) -> Callable[[str], BucketStore]:
    """A machine by name, each with a cache of its own."""
    return lambda name: cloud.store(prefix, quick_disk / name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is patient."""
    limits = {"timeout": 1, "connect": 1, "retries": 0}
    monkeypatch.setattr(objects, "QUICK", limits)
    monkeypatch.setattr(objects, "PATIENT", limits)
