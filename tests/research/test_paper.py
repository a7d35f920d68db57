"""The plan, cells that resume, tables and verdicts by hand, a report from made-up cells."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import ROOT, Refused

from research.miniature.benchmarks import BENCHMARKS
from research.paper import __main__ as command
from research.paper import merge
from research.paper.cells import Cell, CellStore
from research.paper.claims import judge, verdict
from research.paper.plan import ABLATIONS, CONTROLS, COOLED, METHOD, WARM, fits, plan
from research.paper.report import write_report
from research.paper.tables import Results, ablations, main_rows

BASE = "tiny-qwen2"
LARGER = "tiny-llama-large"
PROBLEMS = sum(one.problems for one in BENCHMARKS.values())


def answers(score: float, spread: float = 0.0) -> dict[str, Any]:
    """Every problem `score`, half of them `spread` more and half less."""
    return {
        name: {
            "scores": [score + (spread if n % 2 else -spread) for n in range(one.problems)],
            **{"tokens": 1000, "gated": 60, "boxed": 1.0},
        }
        for name, one in BENCHMARKS.items()
    }


def cost(tokens: int) -> dict[str, float]:
    return {"tokens": tokens, "heldout_tokens": 1, "steps": 10, "seconds": 60.0}


def made(cell: Cell) -> dict[str, Any]:
    """A result as such a cell has it: GRPO gains .2, the method .19, .21 and .2, controls 0.

    With a temperature of its gate the method gains .18 on small bases, the base behind a gate with
    one .1; large bases have no other recipe with one.
    """
    if cell.kind == "base":
        plain = answers(0.4, 0.1)
        return {"transformers": plain, "vllm": plain, "greedy": answers(0.5, 0.1)}
    if cell.kind == "fit":
        gains = {METHOD: (0.19, 0.21, 0.2)[cell.seed or 0], COOLED: 0.18}
        gain = gains.get(cell.variant, 0.0)
        ways = {"gated": answers(0.4 + gain, 0.1), "always": answers(0.5), "by lot": answers(0.4)}
        ways["served"] = answers(0.4 + gain, 0.1)
        if cell.variant == COOLED or (cell.base, cell.variant) == (LARGER, METHOD):
            ways |= {"warm": answers(0.45, 0.1), "base": answers(0.5, 0.1)}
        return {
            **ways,
            "engine": "transformers",
            "tau": 1.0,
            "cost": cost(100),
            "warnings": ["it drifts"],
        }
    if cell.kind == "grpo":
        rest = {"kept": {"step": 5}, "stopped_rising": True, "looks": []}
        found = {"grpo": answers(0.6, 0.1), "engine": "transformers"}
        return {**found, "cost": cost(4000), **rest}
    if cell.kind == "greedy":
        return {"greedy": answers(0.65, 0.1), "engine": "transformers"}
    if cell.kind == "footprint":
        shares = {"unshifted": 0.97, "reranked": 0.03, "shifted": 0.0}
        shares |= {"mean_rank": 2.2, "entropy_ratio": 7.0}
        found = {name: {"value": value, "stderr": 0.01} for name, value in shares.items()}
        overlap = {"tau": 1.0, "gate_rate": 0.05, "precision": None, "recall": 0.9}
        return found | {"overlap": [overlap]}
    scores = {"base": 0.4, "tuned": 0.6, "oracle": 0.6, "random": 0.41, "entropy": 0.59}
    return {
        "results": {
            name: {"pass@1": value, "stderr": 0.02, "taken_rate": 0.05}
            for name, value in scores.items()
        }
    }


@pytest.fixture
def cells() -> list[Cell]:
    return plan([BASE, LARGER], [0, 1, 2], ["rank-1", "o-only"])


def store_in(folder: Path) -> CellStore:
    return CellStore(folder / "results", folder / "cells")


WRITTEN: dict[Cell, bytes] = {}  # what `write_all` has written before


def write_all(cells: list[Cell], folder: Path) -> CellStore:
    store = store_in(folder)
    for cell in cells:
        path = store.path(cell)
        if cell in WRITTEN:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(WRITTEN[cell])
        else:
            store.write(cell, made(cell), 1.0, "weights")
            WRITTEN[cell] = path.read_bytes()
    return store


def results(cells: list[Cell], folder: Path) -> Results:
    return Results(cells, store_in(folder))


def test_the_plan_has_every_cell_once_and_what_others_need_first(cells: list[Cell]) -> None:
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids)
    assert ids[0] == f"{BASE}/base"
    for seed in range(3):
        large = ("shut-gate", WARM, *(f"{WARM}-{name}" for name in CONTROLS))
        for base, others in ((BASE, (COOLED,)), (LARGER, large)):
            for name in (METHOD, *CONTROLS, *others):
                assert f"{base}/fit/{name}/seed{seed}" in ids
    assert ids.index(f"{BASE}/footprint/grpo/seed0") > ids.index(f"{BASE}/grpo/seed0")
    whole = plan([f"b{n}" for n in range(6)], [0, 1, 2], ABLATIONS)
    grpo = [cell for cell in whole if cell.kind == "grpo"]
    assert len(grpo) == 3 + 3 + 4  # three seeds on two bases, one on the others


def test_every_ablation_is_a_recipe_that_fit_takes() -> None:
    from adapters.base_checkpoint import BaseCheckpoint
    from training.fit_config import FitConfig

    def config(flags: tuple[str, ...]) -> FitConfig:
        given = FitConfig.load(
            ["--model", "models/tiny-qwen2", "--problems", "x", "--publish", "y", *flags]
        )
        return given.with_recipe(BaseCheckpoint.open("models/tiny-qwen2"))

    large = fits(LARGER)
    for flags in (*ABLATIONS.values(), *fits(BASE).values(), *large.values()):
        config(flags)
    assert config(large[WARM]).gate.temperatures == []


def test_what_looks_at_an_adapter_fits_it_as_its_own_cell_does(cells: list[Cell]) -> None:
    wanted = {cell.seed: cell.flags for cell in cells if cell.id.startswith(f"{LARGER}/fit/method")}
    looks = [
        cell
        for cell in cells
        if (cell.base, cell.variant) == (LARGER, METHOD)
        and cell.kind in ("footprint", "intervene", "greedy")
    ]
    assert len(looks) == 5
    assert all(cell.flags == wanted[cell.seed] != () for cell in looks)


def test_a_cell_is_read_back_and_never_confused(tmp_path: Path) -> None:
    cell, store = Cell(BASE, "fit", "rank-1", 0, ("--lora.rank", "1")), store_in(tmp_path)
    assert store.read(cell) is None
    store.write(cell, {"x": 1}, 2.0, "weights")
    assert store.path(cell) == tmp_path / "cells" / BASE / "fit" / "rank-1" / "seed0.json"
    other = Cell(BASE, "fit", "rank-1", 0, ("--lora.rank", "2"))
    for merged in (False, True):
        if merged:
            assert store.merge() == [cell.id]
            store = store_in(tmp_path)
        assert store.path(cell).exists() is not merged
        assert store.read(cell) == {"x": 1}
        with pytest.raises(ValueError, match=r"made with .*merge --drop 'tiny-qwen2/fit/rank-1/"):
            store.read(other)
        assert store.read(cell, "weights") == {"x": 1}
        with pytest.raises(ValueError, match="made from other weights of tiny-qwen2"):
            store.read(cell, "others")
    for broken in ("", "[]", '{"settings": {}}', "\0", '{"cell": "a", "settings": {"flags": []}}'):
        store.path(cell).write_text(broken)
        with pytest.raises(ValueError, match="remove it"):
            store.read(cell)
        with pytest.raises(ValueError, match="remove it"):
            store.merge()


def records(store: CellStore, cells: list[Cell]) -> dict[str, Any]:
    return {cell.id: store.read(cell) for cell in cells}


def test_merging_loses_nothing_and_goes_on_after_a_kill(cells: list[Cell], tmp_path: Path) -> None:
    store = write_all(cells, tmp_path)
    precise = Cell(BASE, "fit", "rank-1", 0, ABLATIONS["rank-1"])
    odd = made(precise)
    odd["gated"]["short"]["scores"][:3] = [0.1 + 0.2, 1 / 3, 1e-300]
    odd |= {"warnings": ["± é"], "cost": {"seconds": 0.1, "tokens": 2**60, "none": None}}
    store.write(precise, odd, 1.0, "weights")
    texts = {path: path.read_bytes() for path in store.new()}
    before = records(store, cells)
    assert before[precise.id] == odd
    assert store.merge() == sorted(cell.id for cell in cells)
    assert store.new() == [] and store.merge() == []
    after = records(store_in(tmp_path), cells)
    assert repr(after) == repr(before)  # types and order too
    assert pq.read_table(store.scores).num_rows == sum(
        len(found["scores"])
        for result in before.values()
        for answers in result.values()
        if isinstance(answers, dict)
        for found in answers.values()
        if isinstance(found, dict) and "scores" in found
    )
    files = store.table.read_bytes(), store.scores.read_bytes()
    for path, text in list(texts.items())[:5]:  # killed before these were removed
        path.write_bytes(text)
    assert len(store_in(tmp_path).merge()) == 5
    assert (store.table.read_bytes(), store.scores.read_bytes()) == files
    store.write(precise, {"x": 1}, 1.0, "weights")
    with pytest.raises(ValueError, match="rank-1/seed0: merged already, with other content"):
        store_in(tmp_path).merge()


def test_a_table_and_scores_that_do_not_belong_together_are_refused(
    cells: list[Cell], tmp_path: Path
) -> None:
    write_all(cells[:3], tmp_path).merge()
    store = store_in(tmp_path)
    scores = pq.read_table(store.scores)
    pq.write_table(scores.slice(0, scores.num_rows - 1), store.scores)
    with pytest.raises(ValueError, match=r"29 scores of .*, longest, wanted 30"):
        store_in(tmp_path).read(cells[0])
    pq.write_table(scores.slice(1), store.scores)
    with pytest.raises(ValueError, match="no problem 0"):
        store_in(tmp_path).read(cells[0])


def test_the_merge_command_drops_and_merges(
    cells: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = [cell for cell in cells if cell.base == LARGER]
    write_all(cells, tmp_path).merge()
    write_all(large[:1], tmp_path)
    arguments = ["--work", str(tmp_path), "--results", str(tmp_path / "results")]
    merge.main([*arguments, "--drop", f"{LARGER}/fit/*,{LARGER}/base"])
    gone = [cell for cell in large if cell.kind in ("fit", "base")]
    assert f"{len(gone)} cells removed, 0 merged" in capsys.readouterr().out
    found = records(store_in(tmp_path), cells)
    assert [cell for cell in cells if found[cell.id] is None] == gone
    write_all(gone, tmp_path)
    merge.main(arguments)
    assert f"0 cells removed, {len(gone)} merged" in capsys.readouterr().out
    assert all(records(store_in(tmp_path), cells).values())


def test_the_committed_report_is_made_from_the_committed_cells(tmp_path: Path) -> None:
    config = command.ReproduceConfig()
    folder = ROOT / "research" / "results"
    found = Results(config.plan(), CellStore(folder, tmp_path / "none"))
    assert len(found.found) == 292
    write_report(found, tmp_path, config.program)
    assert (tmp_path / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    # The bytes of a figure depend on the version of matplotlib.
    for name in ("ablations.png", "overlap.png"):
        assert (tmp_path / name).exists() and (folder / name).exists()


def test_gains_by_hand(cells: list[Cell], tmp_path: Path) -> None:
    write_all(cells, tmp_path)
    rows = main_rows(results(cells, tmp_path), BASE)
    ours = rows["**ReasonMaxxer, gated**"]
    assert ours.gain is not None
    assert ours.gain.value == pytest.approx(0.2)
    # Paired: the same gain on every problem, so that all of the error is between the seeds.
    assert ours.gain.stderr == pytest.approx(np.std([0.19, 0.21, 0.2], ddof=1) / 3**0.5)
    assert (ours.score.n, ours.seeds, ours.tokens) == (PROBLEMS, 3, 100)
    assert PROBLEMS >= 500
    assert rows["base"].gain is None
    assert rows["base, greedy"].gain is not None
    assert rows["base, greedy"].gain.value == pytest.approx(0.1)
    assert rows["the same, served by vLLM"].score == ours.score
    assert "ReasonMaxxer, gated, greedy" not in rows
    large = main_rows(results(cells, tmp_path), LARGER)
    assert "the same, its gate without a temperature" not in rows
    warm = large["the same, its gate without a temperature"]
    assert warm.gain is not None
    assert warm.gain.value == pytest.approx(0.05)
    greedy = large["ReasonMaxxer, gated, greedy"]
    assert greedy.gain is not None
    assert greedy.gain.value == pytest.approx(0.15)  # over the base's greedy .5
    assert (greedy.seeds, greedy.tokens) == (3, None)


def test_an_ablation_is_held_against_the_recipe_on_its_own_seeds(
    cells: list[Cell], tmp_path: Path
) -> None:
    alone = Cell(BASE, "fit", "rank-1", 1, ABLATIONS["rank-1"])
    write_all([cell for cell in cells if cell.variant != "rank-1"] + [alone], tmp_path)
    found = {one.row.label: one for one in ablations(results(cells, tmp_path), BASE)}
    assert found[METHOD].change is None
    one, three = found["rank-1"].change, found["o-only"].change
    assert one is not None and three is not None
    assert one.value == pytest.approx(-0.21)  # seed 1's gain, which rank 1 lacks
    assert three.value == pytest.approx(-0.2)
    assert found["rank-1"].cells()[-3:] == ["-0.210 ± 0.000", "0.000 M", "1"]


def test_verdicts(cells: list[Cell], tmp_path: Path) -> None:
    assert [claim.verdict for claim in judge(results(cells, tmp_path))] == ["not measured"] * 5
    store = write_all(cells, tmp_path)
    claims = judge(results(cells, tmp_path))
    # rank-1 and o-only gain nothing here.
    wanted = ["holds", "holds", "holds", "does not hold", "holds"]
    assert [claim.verdict for claim in claims] == wanted
    ours, cooler, large = claims[4].measured
    assert "(100% ± 3%)" in ours and "40.0 times" in ours and "temperature" not in ours
    assert "(90% ± 0%)" in cooler and "the base behind that gate +0.100 ± 0.000" in cooler
    assert "(100% ± 3%)" in large and "the base behind that gate +0.100 ± 0.000" in large
    dear = Cell(LARGER, "grpo", seed=0)
    store.write(dear, made(dear) | {"cost": cost(2900)}, 1.0, "weights")
    store.drop([f"{LARGER}/grpo/seed[12]"])
    assert judge(results(cells, tmp_path))[4].verdict == "holds in part"
    for seed, name in ((seed, name) for seed in range(3) for name in (METHOD, COOLED)):
        low = Cell(BASE, "fit", name, seed, fits(BASE)[name])
        better = made(low) | {"gated": answers(0.595 if name == COOLED else 0.5, 0.1)}
        store.write(low, better, 1.0, "weights")
    assert judge(results(cells, tmp_path))[4].verdict == "holds in part"  # by the temperature
    sharper = Cell(BASE, "intervene", "grpo", 0)  # its first choices are the base's
    result = made(sharper)
    result["results"]["oracle"]["pass@1"] = 0.4
    store.write(sharper, result, 1.0, "weights")
    assert judge(results(cells, tmp_path))[2].verdict == "holds in part"
    assert verdict({"a": True, "b": False}) == "holds in part"


def test_the_report_tells_what_is_there(cells: list[Cell], tmp_path: Path) -> None:
    write_all(cells[:-3], tmp_path)
    report = write_report(results(cells, tmp_path), tmp_path, "make it")
    text = (tmp_path / "README.md").read_text()
    assert f"{len(cells) - 3} of {len(cells)} are there" in text
    assert "| 0.600 ± " in text and "ReasonMaxxer, gated" in text and "it drifts" in text
    assert report["missing"] == [cell.id for cell in cells[-3:]]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "ablations.png").exists() and (tmp_path / "overlap.png").exists()


def test_the_command_makes_what_is_missing_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    broken = ["no"]

    def make(self: object, cell: Cell) -> dict[str, Any]:
        asked.append(cell.id)
        if cell.kind == "grpo" and broken:
            raise RuntimeError(broken.pop())
        return made(cell)

    monkeypatch.setattr(command.Measurer, "make", make)
    arguments = ["--quick", "--work", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 1
    first, asked[:] = list(asked), []
    assert len(first) == 10
    command.main(arguments)
    assert asked == [f"{BASE}/grpo/seed0"]  # the one that failed, and no other
    asked.clear()
    command.main(arguments)
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--ablations", "rank-3"], "rank-3"),
        (["--bases", "a/x,b/x"], "--bases"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_bad_input_ends_with_2(arguments: list[str], word: str, refused: Refused) -> None:
    assert word in refused(command.main, arguments)
