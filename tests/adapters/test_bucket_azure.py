"""A store in Azure's Blob Storage, by Microsoft's emulator: `make test-azure`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from life import life, no_move_is_lost
from tiny import served

from adapters.bucket.objects import ConflictError, Objects, UnchangedError
from adapters.bucket.store import BucketStore
from adapters.places import open_store
from adapters.store import Store
from demo.server import free_port

if TYPE_CHECKING:
    from cloud import Machines

# The emulator and Azure's own client, which makes the container: obstore makes none.
BIN = Path(__file__).parents[2] / ".venv-azure" / "bin"
AZURITE = BIN.parent / "node_modules" / ".bin" / "azurite-blob"
CONTAINER = "adapters-of-tests"
MAKE_CONTAINER = """
import sys
from azure.storage.blob import BlobServiceClient
key = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)  # the emulator's, the same everywhere
BlobServiceClient(sys.argv[1], credential=key, retry_total=0).create_container(sys.argv[2])
"""

pytestmark = pytest.mark.skipif(not AZURITE.exists(), reason="make test-azure gets the emulator")


@pytest.fixture(scope="module")
def azure() -> Iterator[None]:
    """The emulator with an empty container; obstore finds it by two variables."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [BIN / "node", AZURITE, "--inMemoryPersistence", "--skipApiVersionCheck"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        environment.setenv("AZURITE_BLOB_STORAGE_URL", url)
        emulator = subprocess.Popen(
            [*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # `node` is a script that starts another process
        )
        try:
            assert emulator.stdout is not None
            assert any("successfully listens" in line for line in emulator.stdout)
            account = f"{url}/devstoreaccount1"
            subprocess.run([BIN / "python", "-c", MAKE_CONTAINER, account, CONTAINER], check=True)
            yield
        finally:
            os.killpg(emulator.pid, signal.SIGKILL)
            emulator.wait()


@pytest.fixture
def machine(azure: None, prefix: str, quick_disk: Path) -> Machines:
    """A machine by name, each with a cache of its own."""

    def of(name: str) -> BucketStore:
        store = open_store(f"az://{CONTAINER}/{prefix}", cache=quick_disk / name)
        assert isinstance(store, BucketStore)
        return store

    return of


def test_it_answers_as_a_folder_does(
    machine: Machines, quick_disk: Path, sources: list[Path]
) -> None:
    assert life(machine("a"), sources) == life(Store(quick_disk / "folder"), sources)
    assert served(machine("b")) == served(machine("a"))


def test_no_move_is_lost_between_machines(machine: Machines, sources: list[Path]) -> None:
    no_move_is_lost(machine, sources)


def test_conditions_hold(azure: None, prefix: str) -> None:
    objects = Objects.open(f"az://{CONTAINER}/{prefix}")
    first = objects.replace("record", b"1", None)
    with pytest.raises(ConflictError):
        objects.replace("record", b"2", None)
    second = objects.replace("record", b"2", first)
    with pytest.raises(ConflictError):
        objects.replace("record", b"3", first)
    found = objects.get("record")
    assert found is not None and (found.content, found.etag) == (b"2", second)
    with pytest.raises(UnchangedError):
        objects.get("record", unless=found.etag)
    assert objects.now() <= objects.now()
