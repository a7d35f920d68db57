"""The whole of fit on the shipped miniature base: killed in every stage, resumed, reproducible."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support import Refused, write_puzzles, write_rows

from adapters.adapter import WEIGHTS
from adapters.base_checkpoint import BaseCheckpoint
from adapters.recipe import GateChoice
from adapters.store import Store
from loadtests.preloaded import Command, preloaded
from training.fit import main
from training.fit_config import FitConfig
from training.problems import read_trained_on
from training.run import split_problems

BASE = "models/tiny-qwen2"
STAGES = ("rollouts", "heldout", "rewards", "entropies", "training", "estimates", "decoded")


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    return write_puzzles(path, 16, seed=5, split="train")


@pytest.fixture(scope="module")
def fit(tmp_path_factory) -> Iterator[Command]:
    with preloaded("training.fit", tmp_path_factory.mktemp("fit")) as command:
        yield command


def arguments(problems: Path, folder: Path, *flags: str) -> list[str]:
    return [
        *("--model", BASE, "--problems", str(problems)),
        *("--output", str(folder / "adapter"), "--run-dir", str(folder / "run")),
        *("--engine", "transformers", "--sampling.rollouts", "6", "--sampling.max-tokens", "96"),
        *("--optimizer.batch-size", "4", "--checkpoints.samples", "1"),
        *("--checkpoints.rollouts", "4", *flags),
    ]


def complete(argv: Sequence[str]) -> FitConfig:
    return FitConfig.load(argv).with_recipe(BaseCheckpoint.open(BASE))


def without_output(argv: list[str]) -> list[str]:
    at = argv.index("--output")
    return argv[:at] + argv[at + 2 :]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finished_files(run: Path) -> dict[str, int]:
    """Everything a finished stage left, and when it was written."""
    done = {marker.parent for marker in run.glob("*/complete")}
    files = [file for folder in done for file in folder.rglob("*.parquet")]
    return {str(file): file.stat().st_mtime_ns for file in [*files, *run.glob("rewards-*.parquet")]}


@pytest.fixture(scope="module")
def fitted(problems: Path, tmp_path_factory) -> Path:
    """A run that nothing disturbed, in a process that began with nothing."""
    folder = tmp_path_factory.mktemp("fitted")
    command = [sys.executable, "-m", "training.fit", *arguments(problems, folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def kill_in(stage: str, fit: Command, problems: Path, folder: Path) -> None:
    """Start fit and kill it, -9, as soon as the stage's first file is there."""
    process = fit.start(arguments(problems, folder))
    deadline = time.monotonic() + 180
    while not any((folder / "run").glob(f"{stage}-*")):
        assert Path(f"/proc/{process}").exists(), f"fit ended before {stage}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    ended = fit.wait()
    assert ended.returncode == -signal.SIGKILL, ended.output


def test_killed_in_each_stage_it_resumes_and_gives_the_same_bytes(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    for stage in STAGES:
        before = finished_files(tmp_path / "run")
        kill_in(stage, fit, problems, tmp_path)
        assert before.items() <= finished_files(tmp_path / "run").items()
        assert not (tmp_path / "adapter").exists()
    before = finished_files(tmp_path / "run")
    ended = fit.run(arguments(problems, tmp_path))
    assert ended.returncode == 0, ended.output
    assert before.items() <= finished_files(tmp_path / "run").items()
    assert digest(tmp_path / "adapter" / WEIGHTS) == digest(fitted / "adapter" / WEIGHTS)


def test_a_finished_run_does_nothing_again(fit: Command, problems: Path, fitted: Path) -> None:
    before = finished_files(fitted / "run")
    weights = digest(fitted / "adapter" / WEIGHTS)
    report = json.loads((fitted / "run" / "report.json").read_text())
    again = fit.run(arguments(problems, fitted))
    assert again.returncode == 0, again.output
    assert finished_files(fitted / "run") == before
    assert json.loads((fitted / "run" / "report.json").read_text()) == report
    # 12 problems are too few to learn from, and it says so.
    assert "have both right and wrong rollouts" in report["warnings"][0]
    assert report["warnings"][0] in again.output
    assert report["problems"]["asked"] == 12 and report["tokens"]["rollouts"] > 12 * 6
    assert digest(fitted / "adapter" / WEIGHTS) == weights


def test_temperatures_are_tried_without_training_again(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    run = fitted / "run"
    trained = {path: path.stat().st_mtime_ns for path in run.glob("training-*/**/*.safetensors")}
    argv = without_output(arguments(problems, fitted, "--gate.temperatures", "0.5,0.1"))
    ended = fit.run([*argv, "--output", str(tmp_path / "adapter")])
    assert ended.returncode == 0, ended.output
    after = {path: path.stat().st_mtime_ns for path in run.glob("training-*/**/*.safetensors")}
    assert after == trained
    estimates = json.loads((run / "report.json").read_text())["estimates"]
    for temperature in ("0.5", "0.1"):
        assert any(label.endswith(f"temperature {temperature}") for label in estimates)
    gate = Store(tmp_path).get("adapter", BaseCheckpoint.open(BASE)).gate
    assert gate is not None and gate.temperature in (1, 0.5, 0.1)


def test_the_result_is_an_ordinary_peft_folder_that_fits_its_base(fitted: Path) -> None:
    from peft import PeftModel

    from training.hf_model import load_model

    version = Store(fitted).get("adapter", BaseCheckpoint.open(BASE))
    assert version.manifest is not None
    assert version.manifest.gate.tau > 0
    assert {score.mode for score in version.manifest.scores} == {"base", "gated"}
    assert {s.metric for s in version.manifest.scores if s.mode == "gated"} >= {
        "pass@1",
        "gate_rate",
    }
    wanted = [0.06, *GateChoice().others]  # the tiny recipe's, and those tried for serving
    rates = [rate for rate in wanted if version.manifest.gate.rate <= rate]
    assert min(rates) - version.manifest.gate.rate < 0.01
    # It lies beside the weights, but where a run kept its stages is no content of the adapter.
    assert (fitted / "adapter" / "fit.yaml").exists()
    assert "fit.yaml" not in version.manifest.files
    known = read_trained_on(version.path)
    assert known is not None and len(known) == 12 + 4
    model = PeftModel.from_pretrained(load_model(BASE), fitted / "adapter")
    moved = [p.abs().max() for n, p in model.named_parameters() if "lora_B" in n]
    assert max(moved) > 0
    card = (fitted / "adapter" / "README.md").read_text()
    assert "pass@1" in card and "python -m training.fit" in card
    assert str(fitted) not in (fitted / "adapter" / "adapter_config.json").read_text()


def test_a_published_fit_is_a_version_that_the_alias_points_at(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    argv = arguments(problems, fitted, "--publish", "mine", "--store", str(tmp_path / "store"))
    ended = fit.run(without_output(argv))
    assert ended.returncode == 0, ended.output
    store = Store(tmp_path / "store")
    version = store.get("mine", BaseCheckpoint.open(BASE))
    assert digest(version.path / WEIGHTS) == digest(fitted / "adapter" / WEIGHTS)
    assert version.manifest is not None and version.manifest.name == "mine"
    (move,) = store.history("mine")
    assert (move.version, move.action) == (version.id, "publish")


def test_another_seed_gives_another_adapter(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    ended = fit.run(arguments(problems, tmp_path, "--seed", "1"))
    assert ended.returncode == 0, ended.output
    assert digest(tmp_path / "adapter" / WEIGHTS) != digest(fitted / "adapter" / WEIGHTS)


def test_problems_that_teach_nothing_are_an_error_that_says_what_to_do(
    fit: Command, tmp_path: Path
) -> None:
    path = tmp_path / "impossible.jsonl"
    lines = (f'{{"id": "{n}", "problem": "What is {n}-1?", "answer": "x"}}\n' for n in range(8))
    path.write_text("".join(lines))
    ended = fit.run(arguments(path, tmp_path))
    assert ended.returncode == 2
    assert "none has both right and wrong rollouts" in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "adapter").exists()


def test_train_and_heldout_problems_never_overlap(problems: Path, tmp_path: Path) -> None:
    config = FitConfig.load(arguments(problems, tmp_path))
    train, heldout = split_problems(config)
    assert len(train) == 12 and len(heldout) == 4
    assert not {p.problem for p in train} & {p.problem for p in heldout}
    shared = FitConfig.load([*arguments(problems, tmp_path), "--heldout", str(problems)])
    with pytest.raises(ValueError, match=r"problems: all 16 problems of .* are held out"):
        split_problems(shared)


def test_a_question_asked_twice_is_not_held_out_and_trained_on(tmp_path: Path) -> None:
    rows = ({"problem": f"{n % 5} + 1", "answer": n % 5 + 1} for n in range(20))
    path = Path(write_rows(tmp_path / "p.jsonl", *rows))
    config = FitConfig.load(arguments(path, tmp_path, "--checkpoints.problems", "2"))
    train, heldout = split_problems(config)
    assert train and not {one.question for one in train} & {one.question for one in heldout}


def test_held_out_problems_are_drawn_from_the_whole_file(problems: Path, tmp_path: Path) -> None:
    lines = problems.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "heldout.jsonl").write_text("".join(lines[4:]))
    flags = ("--heldout", str(tmp_path / "heldout.jsonl"), "--checkpoints.problems", "6")

    def drawn(seed: int) -> list[str]:
        argv = arguments(tmp_path / "train.jsonl", tmp_path, *flags, "--seed", str(seed))
        return [problem.id for problem in split_problems(FitConfig.load(argv))[1]]

    first = [json.loads(line)["id"] for line in lines[4:10]]
    assert len(set(drawn(0))) == 6
    assert drawn(0) == drawn(0) != drawn(1)
    assert set(drawn(0)) != set(first)


def test_where_the_adapter_goes_is_checked_before_anything_is_done(
    problems: Path, tmp_path: Path, refused: Refused
) -> None:
    plain = without_output(arguments(problems, tmp_path))
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "moves.jsonl").touch()
    for flags, message in (
        ([], "--publish: name the adapter"),
        (["--publish", "No"], "--name: 'No' is not a name"),
        (["--publish", "a..b", "--name", "ok"], "publish: 'a..b' is not a name"),
        (["--publish", "mine", "--store", str(tmp_path / "file")], "cannot be written"),
        (["--output", str(tmp_path / "versions")], "holds versions; add one with --publish"),
        (["--output", str(tmp_path / "other")], "exists and is no adapter folder"),
    ):
        assert message in refused(FitConfig.load, [*plain, *flags])
    config = FitConfig.load([*plain, "--publish", "mine", "--store", str(tmp_path / "new")])
    assert config.name == "mine" and config.output is None


def test_what_cannot_be_fitted_so_is_said_before_anything_is_done(
    problems: Path, tmp_path: Path, refused: Refused
) -> None:
    plain = arguments(problems, tmp_path)
    keys = ("--lora.target-modules", "k_proj,v_proj")
    for flags, message in (
        (keys, "k_proj, v_proj would change nothing"),
        (("--mode", "always", "--objective.positions", "decisions"), "is fitted at all"),
        (("--optimizer.gradient-checkpointing",), "only with positions 'all'"),
        (("--mode", "always", "--objective.name", "sequence"), "needs positions 'decisions'"),
        (("--mode", "always", "--rounds", "2"), "rounds: more than one needs"),
    ):
        assert message in refused(main, [*plain, *flags])
        assert not (tmp_path / "run").exists()
    always = complete([*plain, "--mode", "always", *keys])
    assert always.objective.positions == "all"
    assert always.lora.target_modules == ["k_proj", "v_proj"]


def test_each_mode_has_its_own_settings_where_the_recipe_names_none() -> None:
    model = ("--model", BASE, "--problems", "p", "--output", "o", "--family", "qwen2.5")
    gated, always = complete(model), complete([*model, "--mode", "always"])
    assert gated.lora.target_modules == ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert always.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (gated.objective.positions, always.objective.positions) == ("decisions", "all")
    assert (gated.optimizer.batch_size, always.optimizer.batch_size) == (8, 1)


def test_an_always_on_adapter_is_fitted_at_every_position(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    ended = fit.run(arguments(problems, tmp_path, "--mode", "always", "--checkpoints.every", "1"))
    assert ended.returncode == 0, ended.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["estimates"] == {}
    made = list((tmp_path / "run").glob("training-*/checkpoint-*"))
    assert len(made) == 2
    assert {f"{path.name} always" for path in made} < report["heldout"].keys()
    assert digest(tmp_path / "adapter" / WEIGHTS) != digest(fitted / "adapter" / WEIGHTS)


def test_modules_that_do_nothing_are_left_out_and_named(
    fit: Command, problems: Path, tmp_path: Path
) -> None:
    modules = ("--lora.target-modules", "q_proj,v_proj")
    ended = fit.run(arguments(problems, tmp_path, *modules, "--checkpoints.every", "1"))
    assert ended.returncode == 0, ended.output
    assert "lora.target_modules: v_proj left out" in ended.output
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"]


def test_rounds_share_the_problems_and_the_later_ones_ask_the_adapter(
    fit: Command, problems: Path, fitted: Path, tmp_path: Path
) -> None:
    flags = ("--rounds", "2", "--limit", "16", "--checkpoints.every", "1")
    ended = fit.run(arguments(problems, tmp_path, *flags))
    assert ended.returncode == 0, ended.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    once = json.loads((fitted / "run" / "report.json").read_text())
    assert report["problems"]["asked"] == once["problems"]["asked"]
    assert report["tokens"]["rollouts"] < 1.5 * once["tokens"]["rollouts"]
    assert "pass@1 of the rollouts, round 2" in ended.output
    trained = sorted((tmp_path / "run").glob("training-*/complete"))
    assert len(trained) == 2
    made = list((tmp_path / "run").glob("training-*/checkpoint-*"))
    gates = {one["tau"] for one in report["estimates"].values()}
    assert len(report["estimates"]) == len(made) * len(gates)  # those of both rounds
    again = fit.run(arguments(problems, tmp_path, *flags))
    assert again.returncode == 0, again.output
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == report
