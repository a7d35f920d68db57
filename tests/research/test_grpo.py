"""The baseline: when it stops, what it costs, and a short run that is killed and goes on."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import write_puzzles

from adapters.adapter import AdapterVersion
from loadtests.preloaded import preloaded
from research.paper import grpo
from research.paper.grpo import GrpoConfig, Look, best, cost, neutral_rewards, stopped_rising
from training.generation import Completion, SamplingOptions

BASE = "models/tiny-qwen2"


def looks(*accuracies: float) -> list[Look]:
    return [Look(10 * n, accuracy, 0.02, 100) for n, accuracy in enumerate(accuracies)]


def test_it_stops_when_accuracy_has_stopped_rising() -> None:
    assert not stopped_rising(looks(0.5), 2)
    assert not stopped_rising(looks(0.5, 0.6, 0.55), 2)
    assert stopped_rising(looks(0.5, 0.6, 0.55, 0.6), 2)  # equal is no rise
    assert not stopped_rising(looks(0.5, 0.6, 0.55, 0.61), 2)
    assert best(looks(0.5, 0.6, 0.55, 0.6)).step == 10  # the earlier of equals


def test_what_it_cost_is_the_sum_over_steps() -> None:
    config = GrpoConfig(
        model="m", problems="p", heldout="h", output=Path("o"), prompts=4, generations=8
    )
    history = [
        {"completions/mean_length": 70.0, "step_time": 2.0},
        {"train_runtime": 9.0},
        {"completions/mean_length": 60.5, "step_time": 1.5},
    ]
    assert cost(config, history) == {"tokens": 4176, "steps": 2, "seconds": 3.5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("grpo")
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    lines = write_puzzles(train, 12, seed=6, split="train").read_text().splitlines(keepends=True)
    train.write_text("".join(lines[:8]))
    heldout.write_text("".join(lines[8:]))
    return train, heldout


def arguments(files: tuple[Path, Path], folder: Path) -> list[str]:
    return [
        *("--model", BASE, "--engine", "transformers"),
        *("--problems", str(files[0]), "--heldout", str(files[1])),
        *("--output", str(folder / "model"), "--run-dir", str(folder / "run")),
        *("--prompts", "2", "--generations", "4", "--max-steps", "4", "--every", "2"),
        *("--max-tokens", "64", "--learning-rate", "1e-3"),
    ]


@pytest.mark.engine
def test_a_killed_run_goes_on_and_keeps_an_ordinary_model(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    from training.hf_model import load_model

    with preloaded("research.paper.grpo", tmp_path) as command:
        process = command.start(arguments(files, tmp_path))
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists():
            assert Path(f"/proc/{process}").exists() and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        killed = command.wait()
        assert killed.returncode == -signal.SIGKILL, killed.output
        assert not (tmp_path / "model").exists()
        ended = command.run(arguments(files, tmp_path))
        assert ended.returncode == 0, ended.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 4 and 4 * 8 <= report["tokens"] <= 4 * 8 * 64
    assert [look["step"] for look in report["looks"]] == [0, 2, 4]
    assert report["seconds"] > 0 and not report["stopped_rising"]
    assert load_model(str(tmp_path / "model")).num_parameters() > 800_000
    assert not list((tmp_path / "model").glob("*.pt"))


@pytest.mark.engine
def test_a_lora_samples_from_the_engine_and_is_kept_as_an_adapter(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    more = ["--lora-rank", "2", "--max-steps", "2", "--samples", "1"]
    grpo.main([*arguments(files, tmp_path), *more])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 2 and 2 * 8 <= report["tokens"] <= 2 * 8 * 64
    assert AdapterVersion.read(tmp_path / "model").rank == 2
    assert not list((tmp_path / "run" / "rollouts").iterdir())  # each step's weights are gone


class Told:
    """In the place of a generator: remembers what was asked."""

    def generate(self, prompts, options, applied, label):
        self.asked = (prompts, options.n, options.seed, applied.adapter.name)
        self.weights = (applied.adapter / "weights").read_text()
        return [[Completion([n, 10 + k], "", "stop") for k in range(2)] for n in range(2)]


class Trained:
    """A trainer at one of its steps."""

    def __init__(self, step: int) -> None:
        self.state, self.model = SimpleNamespace(global_step=step), self

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"of step {self.state.global_step}")


def test_rollouts_come_from_the_weights_of_the_step_in_the_order_of_the_prompts(
    tmp_path: Path,
) -> None:
    told = Told()
    options = SamplingOptions(2, 1.0, 1.0, 8, seed=3)
    ask = grpo.Rollouts(told, {"a": [7], "b": [8, 9]}, options, tmp_path)
    found = ask(["b", "b", "a", "a"], Trained(5))
    assert told.asked[:2] == ([[8, 9], [7]], 2) and told.asked[3] == "5"
    assert told.weights == "of step 5"
    assert found["prompt_ids"] == [[8, 9], [8, 9], [7], [7]]
    assert found["completion_ids"] == [[0, 10], [0, 11], [1, 10], [1, 11]]
    seed = told.asked[2]
    ask(["b", "b", "a", "a"], Trained(6))
    assert told.asked[2] != seed and told.weights == "of step 6"


def test_shared_problems_and_bad_flags_end_with_2(files: tuple[Path, Path], refused) -> None:
    arguments = ["--model", BASE, "--output", "x", "--problems", str(files[0])]
    for more, word in (
        (["--heldout", str(files[0])], "problems: all 8 problems of"),
        (["--heldout", str(files[1]), "--generations", "1"], "--generations"),
    ):
        assert word in refused(grpo.main, [*arguments, *more])


def test_what_cannot_be_graded_has_no_advantage() -> None:
    found = neutral_rewards([True, False, None, None, True, None], [0, 0, 0, 1, 2, 2])
    assert found == [1, 0, 0.5, 0, 1, 1]
