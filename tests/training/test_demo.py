"""What the demonstration does around the main commands."""

from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters.adapter import WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.manifest import Manifest
from adapters.recipe import get_recipe
from adapters.store import SHIPPED, Store
from demo.__main__ import DemoConfig, Size, ask, demo, divide, make_problems, take
from training.problems import Problem, load_problems
from training.stages.publish import publish_zeros

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


def test_each_seed_takes_other_problems_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("a\nb\nc\nd\ne\n")
    assert take(path, 2, seed=0) == "a\nb\n"
    assert take(path, 2, seed=1) == "c\nd\n"
    assert take(path, 2, seed=2) == "e\na\n"
    with pytest.raises(ValueError, match="has 5 problems, not 6: give more by --problems"):
        take(path, 6, seed=0)


def test_the_shipped_problems_are_enough_for_a_miniature(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    make_problems(DemoConfig(), Size.of(DemoConfig(), get_recipe("tiny")), train, test)
    fitted, asked = load_problems(str(train)), load_problems(str(test))
    assert (len(fitted), len(asked)) == (240, 500)
    assert not {one.question for one in fitted} & {one.question for one in asked}


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


def test_the_key_of_the_environment_opens_the_demonstrations_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseCheckpoint.open(BASE)
    for name in ("demo", "nothing"):
        copytree(Store(SHIPPED).get("tiny-math", base).path, tmp_path / "store" / name)
    monkeypatch.setenv("REASONMAXXER_API_KEY", "secret")
    asked: list[str | None] = []
    monkeypatch.setattr(
        "demo.__main__.evaluate_url", lambda endpoint, *_, **__: asked.append(endpoint.api_key)
    )
    config = DemoConfig(output=tmp_path)
    ask(config, Size(1, 1, 1, 1), base, "http://127.0.0.1:1", problems(1))
    assert asked == ["secret"] * 5


def test_an_adapter_of_zeros_has_the_gate_and_changes_nothing(tmp_path: Path) -> None:
    base = BaseCheckpoint.open(BASE)
    shipped = Store(SHIPPED).get("tiny-math", base).path
    version = publish_zeros(tmp_path / "zeros", shipped, "zeros", base)
    assert version.manifest is not None
    assert version.manifest.gate == Manifest.read(shipped).gate
    assert (version.manifest.name, version.manifest.scores) == ("zeros", [])
    weights, like = load_file(version.path / WEIGHTS), load_file(shipped / WEIGHTS)
    assert weights.keys() == like.keys()
    assert not any(np.any(value) for value in weights.values())
