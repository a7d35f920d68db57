"""Makes the cells that are not there yet; a killed run goes on where it stopped.

maker = Maker(store, minutes=60)
maker.make(cells, measurer.make, lambda cell: fingerprint)
maker.failed  # ids of the cells that failed
"""

from __future__ import annotations

import fnmatch
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from research.paper.cells import Cell, CellStore

logger = logging.getLogger(__name__)


class Maker:
    """Makes cells and keeps them in a store.

    Args:
        minutes: after which no further cell begins; None: all are made.

    Attributes:
        failed: ids of the cells that could not be made.
    """

    def __init__(self, store: CellStore, minutes: float | None) -> None:
        self._store = store
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self.failed: list[str] = []

    def make(
        self,
        cells: Sequence[Cell],
        measure: Callable[[Cell], dict[str, Any]],
        fingerprint: Callable[[Cell], str],
        title: str = "cells",
    ) -> None:
        """Make those that the store does not have.

        Args:
            measure: gives a cell's result.
            fingerprint: of a cell's base.
        """
        todo = [cell for cell in cells if self._store.read(cell, fingerprint(cell)) is None]
        with tqdm(todo, desc=title, unit="cell") as bar, logging_redirect_tqdm():
            for cell in bar:
                if self._end is not None and time.monotonic() > self._end:
                    logger.info("--minutes are over; the same command goes on from here")
                    return
                bar.set_postfix_str(cell.id)
                start = time.monotonic()
                try:
                    result = measure(cell)
                except (subprocess.CalledProcessError, RuntimeError) as error:
                    logger.error("%s failed: %s", cell.id, error)
                    self.failed.append(cell.id)
                    continue
                self._store.write(cell, result, time.monotonic() - start, fingerprint(cell))


def matching(cells: Sequence[Cell], patterns: Sequence[str] | None) -> list[Cell]:
    """The cells whose ids match one of the patterns of `--only`; without patterns, all."""
    return [
        cell
        for cell in cells
        if not patterns or any(fnmatch.fnmatch(cell.id, one) for one in patterns)
    ]
