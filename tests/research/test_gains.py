"""The experiment on real models: which adapter runs where, and how differences are paired."""

from pathlib import Path

import numpy as np
import pytest

from adapters.base_checkpoint import BaseCheckpoint
from adapters.manifest import Manifest
from adapters.reference import Reference
from adapters.store import SHIPPED, Store
from research.experiments.gains import ROWS, applied, report
from training.evaluation import Result


@pytest.fixture(scope="module")
def shipped() -> Path:
    store = Store(SHIPPED)
    version = store.get("tiny-math", BaseCheckpoint.open("models/tiny-qwen2"))
    return store.path(Reference("tiny-math", version.hash))


def test_each_row_runs_its_adapter_where_it_says(shipped: Path) -> None:
    fits = {row.fit: shipped for row in ROWS if row.fit}
    gate = Manifest.read(shipped).gate
    assert gate is not None
    found = {row.label: applied(row, fits) for row in ROWS}
    assert found["base"] is None and found["base, temperature 0"] is None
    assert found["always-on, fitted for it"].mode == "always"
    for label in ("gated", "base behind the gate", "fitted for random rewards, gated"):
        assert (found[label].tau, found[label].temperature) == (gate.tau, gate.temperature)


def result(correct: list[int]) -> Result:
    right = np.array(correct, dtype=bool)[:, None]
    ones = np.ones_like(right, dtype=np.int64)
    ids = [str(n) for n in range(len(correct))]
    return Result("x", "gated", "made up", 0.6, ids, right, right, 10 * ones, ones, ~right)


def test_differences_are_paired_and_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        "base": [result([0, 0, 1, 1])] * 2,
        "base, temperature 0": [result([0, 1, 1, 0])] * 2,
        "gated": [result([1, 1, 1, 1]), result([0, 1, 1, 1])],
    }
    figures = report("made up", found)
    assert figures["gated"]["pass@1"] == pytest.approx(7 / 8)
    assert figures["gated"]["each_seed"] == [1.0, 0.75]
    gains = figures["gated"]["gains"]
    assert {name: gain["value"] for name, gain in gains.items()} == {
        "base": pytest.approx(3 / 8),
        "base, temperature 0": pytest.approx(3 / 8),
    }
    # Problem means of the difference are .5 1 0 0; seeds differ by .25, so they add .03125 / 2.
    problem_error = np.std([0.5, 1, 0, 0], ddof=1) / 2
    expected = np.sqrt(problem_error**2 + np.var([0.5, 0.25], ddof=1) / 2)
    assert gains["base"]["stderr"] == pytest.approx(expected)
    assert "made up: 4 problems x 1, 2 seeds" in capsys.readouterr().out
