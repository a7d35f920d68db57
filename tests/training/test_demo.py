"""What the demonstration and the experiment on real models do around the main commands."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters.base import BaseModel
from adapters.manifest import Manifest
from adapters.recipe import get_recipe
from adapters.reference import Reference
from adapters.store import SHIPPED, Store
from adapters.version import WEIGHTS
from demo.__main__ import DemoConfig, Size, demo, divide
from research.experiments.gains import ROWS, applied, report
from training.problems import Problem
from training.publish import publish_zeros
from training.results import Result

BASE = "models/tiny-qwen2"


def problems(count: int) -> list[Problem]:
    return [
        Problem(id=str(n), problem=f"What is {n} + 1?", answer=str(n + 1)) for n in range(count)
    ]


def test_problems_to_fit_on_and_to_ask_have_no_question_in_common() -> None:
    train, test = divide([*problems(60), *problems(60)], 40, seed=1)
    assert (len(train), len(test)) == (40, 20)
    assert not {one.problem for one in train} & {one.problem for one in test}
    assert divide(problems(60), 40, seed=1) != divide(problems(60), 40, seed=2)
    train, test = divide(problems(45), 400, seed=1)  # a source with fewer than were wanted
    assert (len(train), len(test)) == (30, 15)
    with pytest.raises(ValueError, match="problems: 30 different ones; give 40 or more"):
        divide(problems(30), 20, seed=1)


def test_a_real_model_is_asked_less_than_a_miniature() -> None:
    small, real = get_recipe("tiny"), get_recipe("qwen2.5")
    assert Size.of(DemoConfig(), small) == (240, 500, 4, 192)
    assert Size.of(DemoConfig(), real) == (96, 100, 1, 512)
    asked = DemoConfig(train=50, questions=20, samples=3, max_tokens=64)
    assert Size.of(asked, real) == (50, 20, 3, 64)


def test_a_source_that_is_too_small_ends_before_anything_is_fitted(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text('{"id": "1", "problem": "1+1?", "answer": "2"}\n')
    with pytest.raises(ValueError, match="give 40 or more"):
        demo(DemoConfig(problems=str(path), output=tmp_path / "out"))
    assert not (tmp_path / "out" / "fit").exists()


@pytest.fixture(scope="module")
def shipped() -> Path:
    store = Store(SHIPPED)
    version = store.get("tiny-math", BaseModel.open(BASE))
    return store.path(Reference("tiny-math", version.hash))


def test_an_adapter_of_zeros_has_the_gate_and_changes_nothing(
    shipped: Path, tmp_path: Path
) -> None:
    version = publish_zeros(tmp_path / "zeros", shipped, "zeros", BaseModel.open(BASE))
    assert version.manifest is not None
    assert version.manifest.gate == Manifest.read(shipped).gate
    assert (version.manifest.name, version.manifest.scores) == ("zeros", [])
    weights, like = load_file(version.path / WEIGHTS), load_file(shipped / WEIGHTS)
    assert weights.keys() == like.keys()
    assert not any(np.any(value) for value in weights.values())


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
