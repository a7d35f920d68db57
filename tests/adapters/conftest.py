"""What the store's tests share."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import MEMORY, make_adapter, make_base

from adapters.__main__ import main
from adapters.base_checkpoint import BaseCheckpoint
from adapters.bucket import objects
from adapters.store import Store

if TYPE_CHECKING:
    from cloud import Cloud, Machines


@pytest.fixture
def base(tmp_path: Path) -> BaseCheckpoint:
    """A base of one weight, in a folder of its own."""
    return make_base(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command of `python -m adapters`; what it prints, where it ends with `code`."""

    def run(*argv: object, code: int = 0) -> str:
        capsys.readouterr()
        try:
            found = main([*map(str, argv)])
        except SystemExit as end:
            found = int(end.code or 0)
        out, err = capsys.readouterr()
        assert found == code, err
        assert "Traceback" not in err
        return out if code == 0 else err or out

    return run


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
def machine(cloud: Cloud, prefix: str, quick_disk: Path) -> Machines:
    """A machine by name, each with a cache of its own."""
    return lambda name: cloud.store(prefix, quick_disk / name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is patient."""
    limits = {"timeout": 1, "connect": 1, "retries": 0}
    monkeypatch.setattr(objects, "QUICK", limits)
    monkeypatch.setattr(objects, "PATIENT", limits)
