"""The run folder: digests chain, parts survive, and only what is missing is asked again."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from tqdm import tqdm

from adapters.manifest import Gate
from adapters.recipe import Sampling
from training.generation import Completion, SamplingOptions, derive_seed
from training.generation.token_rate import TokenRate
from training.problems import Problem
from training.run_folder import Parts, Stage, clear_scratch, held
from training.stages import sample, score
from training.stages.sample import sample_adapter, sample_problems
from training.stages.score import rollout_entropies


def test_a_stage_depends_on_all_before_it(tmp_path: Path) -> None:
    def chain(first: int, second: int) -> tuple[Path, Path]:
        one = Stage.first(tmp_path, "rollouts", {"seed": first})
        return one.path(), one.then("training", {"lr": second}).path()

    assert chain(0, 0) == chain(0, 0)
    assert chain(0, 0)[0] == chain(0, 1)[0]  # another learning rate keeps the rollouts
    assert chain(0, 0)[1] != chain(0, 1)[1]
    assert chain(0, 0)[1] != chain(1, 0)[1]


def test_parts_gather_rows_and_end_complete(tmp_path: Path) -> None:
    schema = pa.schema([("row", pa.int32())])
    parts = Parts(tmp_path / "t", schema, flush_rows=2)
    parts.add([{"row": 0}, {"row": 1}, {"row": 2}])
    parts.add([{"row": 3}])
    again = Parts(tmp_path / "t", schema)  # what a killed run left
    assert again.read()["row"].to_pylist() == [0, 1, 2]
    assert not again.complete
    parts.finish()
    assert Parts(tmp_path / "t", schema).read()["row"].to_pylist() == [0, 1, 2, 3]
    assert Parts(tmp_path / "t", schema).complete


def test_slow_rows_are_written_when_their_time_has_come(tmp_path: Path) -> None:
    schema = pa.schema([("row", pa.int32())])
    for seconds, kept in ((0.0, [0]), (1e9, [])):
        parts = Parts(tmp_path / f"{seconds}", schema, flush_seconds=seconds)
        parts.add([{"row": 0}])
        assert Parts(parts.folder, schema).read()["row"].to_pylist() == kept


class Dying:
    """A generator that is killed after some prompts."""

    def __init__(self, survives: int) -> None:
        self.survives, self.asked = survives, []

    reports_entropies = True

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied=None,
        seeds=(),
        on_tokens=None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        for place in reversed(range(len(prompts))):  # any order is allowed
            if len(self.asked) == self.survives:
                raise KeyboardInterrupt
            self.asked.append(prompts[place])
            token = seeds[place] % 1000
            yield (
                place,
                [
                    Completion(
                        [token, n], "text", "stop", 0, [0.5, 1.0] if options.entropies else None
                    )
                    for n in range(options.n)
                ],
            )


class Renderer:
    template = ""
    stop = ()

    def token_ids(self, problem: str) -> list[int]:
        return [int(problem)]


def test_a_killed_sampling_asks_only_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("training.run_folder.Parts.__init__.__defaults__", (2, 60.0))
    problems = [Problem(id=str(n), problem=str(n), answer="0") for n in range(7)]
    stage = Stage.first(tmp_path, "rollouts", {})
    sampling = Sampling(rollouts=2)
    first, second, whole = Dying(3), Dying(99), Dying(99)
    with pytest.raises(KeyboardInterrupt):
        sample_problems(stage, problems, Renderer(), sampling, 0, first)
    table = sample_problems(stage, problems, Renderer(), sampling, 0, second)
    assert len(first.asked) == 3
    assert sorted(first.asked + second.asked) == [[n] for n in range(7)]
    assert table.num_rows == 14
    other = Stage.first(tmp_path / "other", "rollouts", {})
    assert sample_problems(other, problems, Renderer(), sampling, 0, whole).equals(table)
    # Entropies came with the tokens: the base is not loaded to score them.
    found = rollout_entropies(
        stage.then("entropies", {}), table, load_base=lambda: pytest.fail("loaded")
    )
    assert [h.tolist() for h in found] == [[0.5, 1.0]] * 14
    third = Dying(0)  # a finished stage asks nothing at all
    assert sample_problems(stage, problems, Renderer(), sampling, 0, third).equals(table)


def test_seeds_differ_by_part_and_are_31_bits() -> None:
    seeds = {derive_seed(seed, "rollouts", n) for seed in range(3) for n in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_bar_over_problems_shows_tokens_per_second(monkeypatch) -> None:
    now = iter([100.0, 100.0, 110.0, 110.0])
    monkeypatch.setattr("training.generation.token_rate.time.monotonic", lambda: next(now))
    with tqdm(total=4) as bar:
        rate = TokenRate(bar)
        assert bar.postfix == "waiting for the first tokens"
        rate.note = "pass@1=0.500"
        rate.show()
        assert bar.postfix == "pass@1=0.500"
        rate(64)  # the engine took its time to start: the clock begins here
        assert bar.postfix == "pass@1=0.500, 64 tokens"
        rate(3064)
        assert bar.postfix == "pass@1=0.500, 3,064 tokens, 300/s"


def test_a_folder_has_one_writer_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder, "run-dir"):
        with (
            pytest.raises(ValueError, match="run-dir: another run writes into"),
            held(folder, "run-dir"),
        ):
            pass
        with held(tmp_path / "other", "run-dir"):
            pass
    with held(folder, "run-dir"):  # free again
        pass


def run_like(**config: Any) -> Any:
    """As much of a `Run` as a stage asks to find its place."""
    return SimpleNamespace(
        config=SimpleNamespace(sampling=Sampling(), seed=0, **config),
        clock=lambda *_: nullcontext(),
        generator=lambda **_: nullcontext(),
        renderer=None,
        load_base=None,
    )


def test_a_later_round_depends_on_the_adapter_that_samples_it(tmp_path, monkeypatch) -> None:
    """Held-out answers choose it, on which the training before does not depend."""
    monkeypatch.setattr(sample, "sample_problems", lambda *_: None)
    before, gate = Stage.first(tmp_path, "training", {}), Gate(tau=1.0, rate=0.1, tokens=9)
    asked = [Problem(id="1", problem="1 + 1?", answer="2")]

    def folder(checkpoint: str) -> Path:
        adapter = before.path() / checkpoint
        return sample_adapter(run_like(), before, 2, asked, adapter, gate).stage.path()

    assert folder("checkpoint-2") == folder("checkpoint-2") != folder("checkpoint-4")


def test_entropies_depend_on_the_data_type_of_the_base_that_computes_them(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(score, "rollout_entropies", lambda *_: [])

    def digests(entropies: list[float] | None) -> set[str]:
        table = pa.table({"entropies": pa.array([entropies], pa.list_(pa.float32()))})
        rewards = Stage.first(tmp_path, "rewards", {})
        more: dict[str, Any] = {"note": "", "rewards": None, "boxed": None}
        verified: Any = SimpleNamespace(stage=rewards, problems=[], table=table, **more)
        return {
            score.score(run_like(dtype=dtype), verified).stage.digest
            for dtype in ("auto", "float32", "bfloat16")
        }

    assert len(digests(None)) == 3
    assert len(digests([0.5])) == 1  # the engine that sampled has reported them


def test_what_a_killed_run_with_other_settings_left_is_removed(tmp_path: Path) -> None:
    stage = Stage.first(tmp_path, "training", {"rate": 1})
    kept = [stage.path(), tmp_path / "base-caches-0123456789-float32"]  # of --base-cache.keep
    scratch = [stage.scratch, stage.scratch.with_name(f"{stage.scratch.name}-1")]
    for folder in (*kept, *scratch):
        folder.mkdir()
        (folder / "0.safetensors").write_bytes(b"gigabytes")
    clear_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
