"""What the store's tests share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import MEMORY


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A folder in memory, where there is such a place."""
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="reasonmaxxer-test-") as folder:
        yield Path(folder)
