"""Flags over YAML over recipe, and bad values that name their field and exit with 2."""

import json
from pathlib import Path

import pytest
from support import with_config, write_rows

from adapters.base_checkpoint import BaseCheckpoint
from training import processes
from training.evaluate import main as evaluate
from training.evaluate_config import EvaluateConfig
from training.fit import main
from training.fit_config import FitConfig
from training.hf_model import open_base
from training.run_folder import held

BASE = ["--model", "models/tiny-qwen2", "--problems", "p.jsonl", "--output", "out/my-adapter"]


def test_flags_win_over_yaml_and_yaml_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora: {rank: 4}\noptimizer: {epochs: 3}\n")
    given = FitConfig.load([*BASE, "--config", str(file), "--lora.rank", "2"])
    config = given.with_recipe(BaseCheckpoint.open(given.model))
    assert config.lora.rank == 2
    assert config.optimizer.epochs == 3
    assert config.family == "tiny"
    assert config.lora.alpha == 16  # the recipe's
    assert config.name == "my-adapter"
    assert config.run_dir == Path("runs/fit/my-adapter")


def test_a_saved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    base = BaseCheckpoint.open("models/tiny-qwen2")
    config = FitConfig.load([*BASE, "--gate.tau", "1.25"]).with_recipe(base)
    config.save(tmp_path / "fit.yaml")
    again = FitConfig.load(["--config", str(tmp_path / "fit.yaml")])
    assert again.model_dump(exclude={"config"}) == config.model_dump(exclude={"config"})
    again = again.with_recipe(base)
    assert again.model_dump(exclude={"config"}) == config.model_dump(exclude={"config"})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--lora.rank", "0"], "--lora.rank"),
        (["--optimizer.learning-rate", "x"], "--optimizer.learning-rate"),
        (["--objective.name", "dpo"], "--objective.name"),
        (["--name", "../x"], "--name"),
        (["--gate.others", "0.02,5"], "--gate.others"),
        (["--output", "pyproject.toml/x"], "output: "),
        (["--unknown", "1"], "--unknown"),
        (["--config", "/no/such.yaml"], "no/such.yaml"),
        # What only the model can prove wrong.
        (["--family", "nope"], "family: 'nope' is unknown"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_bad_values_exit_with_2_and_name_the_field(flags, named, refused, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert named in refused(main, [*BASE, *flags])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("publish: null", "--publish"),
        ("publish: null\noutput: null", "--publish"),
        ("publish: 7", "--name"),
        ("publish: [a]", "--name"),
        ("output: x\nname: {a: 1}", "--name"),
        ("output: 7", "--output"),
        ("publish: a\nrun-dir: b", "--run-dir: there is no such setting; names in a file have"),
        ("publish: a\nlora: {rang: 4}", "--lora.rang: there is no such setting (got 4)"),
        ("publish: a\n1: b", "must hold a mapping of settings"),
    ],
)
def test_bad_yaml_exits_with_2_and_names_the_field(
    text: str, named: str, tmp_path: Path, refused
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert named in refused(FitConfig.load, [*BASE[:4], "--config", str(file)])


@pytest.fixture
def eight(tmp_path: Path) -> list[str]:
    """Flags that name the base and eight problems."""
    rows = ({"problem": f"{n} + 1?", "answer": str(n + 1)} for n in range(8))
    return [*BASE[:2], "--problems", write_rows(tmp_path / "p.jsonl", *rows)]


def test_a_run_folder_that_another_run_holds_exits_with_2(eight, tmp_path: Path, refused) -> None:
    run = tmp_path / "run"
    fitting = [*eight, "--output", str(tmp_path / "a"), "--run-dir", str(run)]
    asking = [*eight, "--output", str(run)]
    for command, arguments in ((main, fitting), (evaluate, asking)):
        with held(run, "run-dir"):
            assert "another run writes into" in refused(command, arguments)
    assert [path.name for path in run.iterdir()] == [".lock"]  # nothing was written


def test_a_folder_that_cannot_be_made_exits_with_2(eight, tmp_path: Path, refused) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    fitting = [*eight, "--output", str(tmp_path / "a"), "--run-dir", str(folder)]
    for command, arguments in ((main, fitting), (evaluate, [*eight, "--output", str(folder)])):
        assert f"{folder} cannot be written" in refused(command, arguments)


def test_each_round_needs_a_problem(eight, tmp_path: Path, refused) -> None:
    folder = ["--output", str(tmp_path / "a"), "--run-dir", str(tmp_path / "run")]
    said = refused(main, [*eight, *folder, "--rounds", "7"])
    assert "rounds: 7 are more than the 6 problems" in said
    assert not (tmp_path / "run").exists()


def test_processes_that_cannot_share_a_batch_sample_nothing(
    eight, tmp_path: Path, monkeypatch, refused
) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    folder = ["--output", str(tmp_path / "a"), "--run-dir", str(tmp_path / "run")]
    said = refused(main, [*eight, *folder, "--optimizer.batch-size", "4"])
    assert "is a multiple of the 3 processes" in said
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_fills_the_context_exits_with_2(eight, tmp_path: Path, refused) -> None:
    base = with_config(tmp_path / "base", max_position_embeddings=8)
    asking = [*eight, "--model", base, "--output", str(tmp_path / "run")]
    fitting = [*asking, "--run-dir", str(tmp_path / "run")]
    for command, arguments in ((main, fitting), (evaluate, asking)):
        said = refused(command, arguments)
        assert "problems: the longest prompt has" in said and "context of 8" in said
    assert not (tmp_path / "run" / "fit.yaml").exists()


def test_reading_flags_looks_at_no_model(monkeypatch) -> None:
    """Neither a download nor a look into the hub's cache: that is for the run."""
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(BaseCheckpoint, "open", refuse)
    flags = ["--model", "no/such-model", "--problems", "gsm8k"]
    assert FitConfig.load([*flags, "--publish", "mine"]).name == "mine"
    assert EvaluateConfig.load(flags).model == "no/such-model"


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        ({"model.safetensors"}, False),
        ({"tokenizer.json"}, True),  # all that was wanted before
        ({"model.safetensors.index.json", "1.safetensors"}, True),  # broken off
        ({"model.safetensors.index.json", "1.safetensors", "2.safetensors"}, False),
    ],
)
def test_a_base_of_which_the_cache_has_a_part_is_fetched(
    there: set[str], fetched: bool, tmp_path: Path, monkeypatch
) -> None:
    import huggingface_hub

    asked: list[bool] = []

    def download(_: str, *, local_files_only: bool = False, **__: object) -> str:
        asked.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    for name in (*there, "config.json"):
        (tmp_path / name).write_text(json.dumps(index))
    assert open_base("owner/name").folder == tmp_path
    assert (False in asked) == fetched


def test_a_download_that_is_refused_says_why(monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(_: str, *, local_files_only: bool = False, **__: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("nothing here")
        raise OSError("401 Client Error.\n\nAccess to this model is restricted.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FileNotFoundError, match=r"owner/name: .*\(401 .* is restricted"):
        open_base("owner/name")
