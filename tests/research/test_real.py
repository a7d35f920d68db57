"""The suite on real models: rule, plan, votes, signal and verdicts by hand; a made-up report."""

import json
import math
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from reasoning_gym.factory import DATASETS
from support import Refused, made_up_result, write_rows

from adapters.prompt import PromptRenderer
from research.fits import gate_of
from research.miniature.world import puzzles
from research.paper.cells import Cell, CellStore
from research.real import __main__ as command
from research.real import plan, ways
from research.real.claims import FAILS, HOLDS, OPEN, PART, Claim, above, both, causal, judge
from research.real.measure import QUICK, Measurer, figures
from research.real.report import write_report
from research.real.sft import target
from research.real.signal import gradient_lengths, places, share_of_signal
from research.real.tables import Results, lines, same_adapters
from research.real.tasks import (
    GYM,
    GYM_TASKS,
    admitted,
    candidates,
    enough,
    fits_rule,
    problems_to_test,
)
from research.real.vote import vote, vote_scores
from training.evaluation.statistics import Estimate
from training.fit_config import FitConfig
from training.grading import Verifier
from training.gym.task import GymTask
from training.problems import Problem, load_problems

BASE = "small"
TASKS = ["chain_sum", "gsm8k"]


# --------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("score", "inside"), [(0.149, False), (0.15, True), (0.5, True), (0.85, True), (0.851, False)]
)
def test_the_rule_includes_its_bounds(score: float, inside: bool) -> None:
    assert fits_rule(score) is inside


def test_the_first_six_admitted_are_taken_and_two_benchmarks_always() -> None:
    scores = {name: {"pass@1": 0.5} for name in GYM} | {"gsm8k": {"pass@1": 0.01}}
    first = sorted(GYM)[0]
    scores[first] = {"pass@1": 0.9}
    assert admitted(scores) == [*sorted(GYM)[1 : GYM_TASKS + 1], "gsm8k", "math500"]
    assert admitted({}) == ["gsm8k", "math500"]


def test_the_rule_asks_until_six_are_admitted() -> None:
    found = {name: {"pass@1": 0.5} for name in sorted(GYM)[: GYM_TASKS - 1]}
    outside = {sorted(GYM)[GYM_TASKS]: {"pass@1": 0.1}, "gsm8k": {"pass@1": 0.5}}
    assert not enough(found | outside)
    assert enough(found | outside | {sorted(GYM)[GYM_TASKS + 1]: {"pass@1": 0.5}})


def test_every_candidate_is_a_task_with_options_that_it_knows() -> None:
    for name, options in GYM.items():
        config = DATASETS[name][1]
        task = GymTask.parse(f"{name},{options}" if options else name)
        assert set(dict(task.options)) <= set(config.__dataclass_fields__), name


def test_test_problems_are_not_those_of_training() -> None:
    task = candidates(train=12, test=3)["count_bits"]
    asked = {one.question for one in problems_to_test(task, 3, None)}
    assert len(asked) == 3
    assert asked.isdisjoint(one.question for one in load_problems(str(task.train)))


# --------------------------------------------------------------------------------------- the plan


def test_the_plan_is_the_rule_until_tasks_are_known() -> None:
    assert plan.plan(BASE, [0, 1, 2], []) == [Cell(BASE, plan.RULE)]


def test_the_plan_has_every_cell_once_and_three_seeds_of_ours() -> None:
    cells = plan.plan(BASE, [0, 1, 2], TASKS)
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids)
    for seed in range(3):
        for trained in (ways.METHOD, *ways.CONTROLS, ways.PAPER, ways.SFT, ways.GRPO):
            assert f"{BASE}/train/{trained}/chain_sum/seed{seed}" in ids
        for task in TASKS:
            for way in (ways.GATED, *plan.OF_EACH_SEED, *plan.OTHER_METHODS):
                assert f"{BASE}/answers/{way.name}/{task}/seed{seed}" in ids
    assert ids[:3] == [f"{BASE}/rule", *(f"{BASE}/answers/base/{task}" for task in TASKS)]


def test_every_way_is_planned_and_its_adapter_is_trained_before() -> None:
    cells = plan.plan(BASE, [0], TASKS)
    answered = {cell.variant.partition("/")[0] for cell in cells if cell.kind == plan.ANSWERS}
    assert {way.name for way in ways.WAYS} | {"from-chain_sum", "from-gsm8k"} == answered
    known = {way.name: way for way in (*ways.WAYS, *map(ways.transferred, TASKS))}
    trained = set()
    for cell in cells:
        if cell.kind == plan.TRAIN:
            trained.add(cell)
        if cell.kind == plan.ANSWERS:
            name, _, task = cell.variant.partition("/")
            if (way := known[name]).trained:
                assert plan.adapter_of(BASE, way, task, 0) in trained


def test_what_cannot_be_trained_on_is_answered_by_the_adapters_of_another_task() -> None:
    ids = {cell.id for cell in plan.plan(BASE, [0], ["gsm8k", "math500"])}
    assert f"{BASE}/answers/gated/math500/seed0" in ids
    assert f"{BASE}/signal/gsm8k/seed0" in ids
    assert f"{BASE}/signal/math500/seed0" not in ids  # it would be that of gsm8k again
    assert not any("train/" in one and "math500" in one for one in ids)
    # Their own adapters are no transfer.
    assert not any("/from-gsm8k/" in one or "/from-math500/" in one for one in ids)
    there = {cell.id for cell in plan.plan(BASE, [0], ["chain_sum", "math500"])}
    assert f"{BASE}/train/method/gsm8k/seed0" in there
    assert f"{BASE}/answers/from-gsm8k/chain_sum/seed0" in there


# ---------------------------------------------------------------------------------------- votes


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([r"\boxed{9}", r"\boxed{7}", r"so \boxed{7.0}"], 1),
        (["I do not know", r"\boxed{3}"], 1),
        ([r"\boxed{2}", r"\boxed{5}"], 0),  # of equals the first
        ([r"\boxed{1,000}", r"\boxed{2}", r"\boxed{1000}"], 0),
        (["nothing", "else"], None),
        ([r"so \boxed{}", r"\boxed{}", r"\boxed{7}", "none"], 2),  # an empty box is no vote
    ],
)
def test_most_samples_decide(answers: list[str], chosen: int | None) -> None:
    assert vote(answers) == chosen


def test_a_vote_is_graded_and_none_is_wrong() -> None:
    problems = [Problem(id=str(n), problem=f"q{n}", answer="7") for n in range(3)]
    texts = [
        [r"\boxed{7}", r"\boxed{7}", r"\boxed{1}"],
        [r"\boxed{1}", r"\boxed{1}", r"\boxed{7}"],
        ["?", "?", "?"],
    ]
    with Verifier() as verifier:
        assert vote_scores(texts, problems, verifier) == [1.0, 0.0, 0.0]


# --------------------------------------------------------------------------------------- signal


class Told(torch.nn.Module):
    """A model of two tokens whose logits are given by the token before."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(2, 2, bias=False)
        self.lm_head.weight.data = torch.eye(2)
        self.rows = torch.tensor(logits)
        self.device = torch.device("cpu")


def test_the_gradient_of_a_sure_token_is_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Told([[0.0, 0.0], [5.0, 0.0]])
    monkeypatch.setattr(
        "research.real.signal.hidden_states", lambda model, ids, _mask: model.rows[ids]
    )
    monkeypatch.setattr("research.real.signal.head", lambda model: model.lm_head)
    (found,) = gradient_lengths(model, [[0]], [[1, 0]])
    # First p = (1/2, 1/2): |onehot - p| = sqrt(1/2). Then p(0) = 1 / (1 + e^-5).
    sure = 1 / (1 + math.exp(-5))
    assert found == pytest.approx([math.sqrt(0.5), math.sqrt(2) * (1 - sure)], rel=1e-2)


def test_signal_and_places_by_hand() -> None:
    opened = {"entropy": [np.array([True, False, False, True])], "none": [np.ones(4, bool)]}
    found = share_of_signal(opened, [np.array([3.0, 0.5, 0.5, 1.0])])
    assert found["entropy"] == {"tokens": 2, "signal_per_token": 2.0, "share": 0.8}
    assert found["none"]["share"] == 1.0
    assert places(opened["entropy"]) == [0.5, *[0.0] * 6, 0.5, 0.0, 0.0]


def test_the_reference_is_taught_in_a_box() -> None:
    problem = Problem(id="1", problem="q", answer="$11/23$")
    assert target(problem) == r"The final answer is $\boxed{11/23}$."


# -------------------------------------------------------------------------------------- verdicts


def test_a_figure_decides_two_standard_errors_from_its_bound() -> None:
    assert above(Estimate(0.05, 0.02, 9), 0) == HOLDS
    assert above(Estimate(0.03, 0.02, 9), 0) == OPEN
    assert above({"value": -0.05, "stderr": 0.02}, 0) == FAILS


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, FAILS], PART),
        ([FAILS, OPEN], FAILS),
        ([HOLDS, OPEN], OPEN),
    ],
)
def test_a_claim_of_several_parts(parts: list[str], whole: str) -> None:
    assert both(parts) == whole


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([], OPEN),
        ([OPEN, OPEN], OPEN),
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, OPEN], PART),
        ([FAILS, OPEN], FAILS),
        ([FAILS, HOLDS], PART),
    ],
)
def test_the_verdict_over_bases_and_tasks(verdicts: list[str], whole: str) -> None:
    assert Claim("", [], {str(n): one for n, one in enumerate(verdicts)}).verdict == whole


@pytest.mark.parametrize(
    ("tuned", "entropy", "random", "problems", "verdict"),
    [
        (0.5, 0.5, 0.31, 1000, HOLDS),
        (0.5, 0.5, 0.31, 10, OPEN),  # the same figures, less sure: +.040 +- .027
        (0.5, 0.5, 0.45, 1000, PART),
        (0.5, 0.4, 0.45, 1000, FAILS),
        (0.3, 0.5, 0.3, 1000, OPEN),  # no gain to recover
    ],
)
def test_what_is_recovered_must_lie_two_errors_from_the_bound(
    tuned: float, entropy: float, random: float, problems: int, verdict: str
) -> None:
    shares = {"base": 0.3, "tuned": tuned, "oracle": 0.5, "entropy": entropy, "random": random}
    rows = {
        row: {"scores": [float(n < share * problems) for n in range(problems)]}
        for row, share in shares.items()
    }
    rows["oracle"]["scores"][0] = None  # not graded
    results = SimpleNamespace(tasks=["t"], of=lambda kind, task: [{"results": rows}])
    assert causal({"b": cast(Results, results)})[1] == {"b, t": verdict}


# ---------------------------------------------------------------------------------- a whole report


def answers(share: float, task: str, length: int = 100) -> dict[str, Any]:
    """100 problems, the first `share` of them right; all answers are boxed."""
    right = np.array([[1.0 if n < 100 * share else 0.0] for n in range(100)])
    counts = {"tokens": np.full(right.shape, length), "gated": np.full(right.shape, length // 10)}
    return figures(task, made_up_result(right, mode="base", **counts))


SCORES = {"greedy": 0.35, "vote": 0.4, "gated": 0.6, "mean": 0.6, "grpo": 0.6}  # all others .3


def made(cell: Cell) -> dict[str, Any]:
    """A cell's result, made up."""
    if cell.kind == plan.RULE:
        found = {"pass@1": 0.3, "stderr": 0.07, "boxed": 1.0, "admitted": True}
        return {"tasks": dict.fromkeys(TASKS, found), "measured": TASKS}
    if cell.kind == plan.TRAIN:
        tokens = 20_000 if cell.variant.startswith(ways.GRPO) else 1000
        cost = {"tokens": tokens, "seconds": 60.0, "heldout_tokens": 1, "steps": 2}
        return {"cost": cost, "stopped_rising": True}
    way, _, task = cell.variant.partition("/")
    return answers(SCORES.get(way, 0.3), task)


def store_with(folder: Path, measured: set[str]) -> CellStore:
    store = CellStore(folder / "results", folder / "cells")
    for cell in plan.plan(BASE, [0, 1], TASKS):
        if cell.kind in (plan.RULE, plan.TRAIN) or (
            cell.kind == plan.ANSWERS and cell.variant.partition("/")[0] in measured
        ):
            store.write(cell, made(cell), 1.0, "weights")
    return store


MEASURED = {way.name for way in ways.WAYS}


def test_rows_and_differences_by_hand(tmp_path: Path) -> None:
    store = store_with(tmp_path, MEASURED)
    store.merge()  # through the two files, with what is kept of each answer
    found = lines(Results(plan.plan(BASE, [0, 1], TASKS), store, TASKS), "gsm8k")
    gated = found["gated"]
    assert (gated.score.value, gated.seeds, gated.boxed, gated.tokens) == (0.6, 2, 1.0, 100.0)
    gains = {name: round(one.value, 6) for name, one in gated.gains.items()}
    assert gains == {"base": 0.3, "greedy": 0.25, "alone": 0.3}
    # Of 100 paired differences 30 are 1: s^2 = .3 * .7 * 100 / 99.
    assert gated.gains["base"].stderr == pytest.approx(math.sqrt(0.21 / 99))
    assert gated.finished is not None and gated.finished.value == pytest.approx(0.6)
    # All answers are equally long, so that this is the gain again, with the same error.
    assert gated.matched is not None and gated.matched.value == pytest.approx(0.3)
    assert gated.matched.stderr == pytest.approx(math.sqrt(0.21 / 99))
    assert found["alone"].matched is not None and found["alone"].matched.stderr == 0
    assert found["vote"].score.value == pytest.approx(0.4)


def test_ways_of_the_same_adapters_are_paired_by_seed(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "results", tmp_path / "cells")
    # The second fit is worse by .4 in both ways; the third was asked in one of them.
    shares = {ways.GATED: [0.7, 0.3, 0.9], ways.ALWAYS: [0.6, 0.2]}
    for way, found in shares.items():
        for seed, share in enumerate(found):
            cell = plan.answers(BASE, way, "gsm8k", seed)
            store.write(cell, answers(share, "gsm8k"), 1.0, "weights")
    results = Results(plan.plan(BASE, [0, 1, 2], TASKS), store, TASKS)
    less = same_adapters(results, "gsm8k", ways.ALWAYS)
    # Of 200 differences 20 are -1, of 20 problems: each counts half.
    assert less is not None and less.value == pytest.approx(-0.1)
    assert less.stderr == pytest.approx(math.sqrt((20 * 0.25 / 100 - 0.01) / 99))
    assert same_adapters(results, "gsm8k", ways.WIDER) is None


def test_the_report_gives_a_verdict_for_each_claim_and_says_what_is_missing(tmp_path: Path) -> None:
    store = store_with(tmp_path, MEASURED)
    results = Results(plan.plan(BASE, [0, 1], TASKS), store, TASKS)
    report = write_report({BASE: results}, tmp_path, "reasonmaxxer reproduce", 40, 4)
    verdicts = [claim["verdict"] for claim in report["claims"]]
    assert verdicts == [HOLDS, HOLDS, OPEN, OPEN, OPEN, FAILS, HOLDS]  # rank 1 gains nothing here
    text = (tmp_path / "real.md").read_text()
    assert "### gsm8k" in text
    assert "**gated** | 0.600" in text
    assert f"{BASE}/signal/gsm8k/seed0" in report["missing"]
    assert (
        "Gated less each control: fitted at random positions +0.300 ± 0.046, fitted where" in text
    )
    assert "Cost of each GRPO on gsm8k: 20000 tokens, 60 s; 20000 tokens, 60 s." in text
    assert "With another instruction, gated to base on gsm8k: +0.000" in text
    assert (tmp_path / "real-gains.png").stat().st_size > 1000
    assert json.loads((tmp_path / "real.json").read_text())["cells"] == report["cells"]


def test_the_report_is_that_of_the_cells_beside_it(tmp_path: Path) -> None:
    kept = Path("research/results")
    for name in ("scores.parquet", "cells.jsonl"):
        shutil.copy(kept / name, tmp_path)
    # The cells are there, the bases are not.
    bases = ",".join(str(tmp_path / Path(base).name) for base in command.BASES)
    given = ["--bases", bases, "--results", str(tmp_path), "--work", str(tmp_path / "work")]
    command.main([*given, "--nice", "0"])
    assert (tmp_path / "real.md").read_text() == (kept / "real.md").read_text()


def test_before_anything_is_measured_no_claim_can_be_told(tmp_path: Path) -> None:
    results = Results(plan.plan(BASE, [0], []), CellStore(tmp_path / "r", tmp_path / "c"), [])
    assert {claim.verdict for claim in judge({BASE: results})} == {OPEN}
    write_report({BASE: results}, tmp_path, "reasonmaxxer reproduce", 40, 4)


# -------------------------------------------------------------------------------- a real base


def test_a_wider_gate_takes_its_threshold_from_the_fits_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Path("research/adapters/qwen2.5-coder-0.5b-chain-sum")
    monkeypatch.setattr(Measurer, "adapter", lambda *_: adapter)
    gate = gate_of(adapter)
    with closing(Measurer("models/tiny-qwen2", tmp_path, QUICK, "transformers", None)) as measurer:
        taus = {
            way.name: measurer._applied(way, "gcd", plan.answers(BASE, way, "gcd", 0)).tau
            for way in (ways.GATED, ways.WIDER, ways.ALWAYS)
        }
    assert taus == {"gated": gate.tau, "wider": dict(gate.table)[0.2], "always": None}


def test_a_base_without_a_chat_template_is_shown_examples(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree("models/tiny-qwen2", folder, ignore=shutil.ignore_patterns("chat_template*"))
    write_rows(tmp_path / "gsm8k_train.jsonl", *[{"question": "1 + 1?", "answer": "#### 2"}] * 40)
    cell = plan.train("plain", ways.METHOD, "gsm8k", 0)
    for model, shown in ((str(folder), 4), ("models/tiny-qwen2", 0)):
        measurer = Measurer(model, tmp_path, QUICK, "transformers", tmp_path)
        config = FitConfig.load(measurer._fit_arguments(cell, tmp_path / "adapter"))
        for prompt in (measurer._recipe.prompt, config.with_recipe(measurer.base).prompt):
            text = PromptRenderer.load(measurer.base.folder, prompt).text("What is 2 + 2?")
            assert text.count("The final answer is \\boxed{") == shown
            assert "What is 2 + 2?" in text[-80:]


def test_a_base_votes_and_answers_greedily(tmp_path: Path) -> None:
    rows = [puzzle.problem for puzzle in islice(puzzles(25, "train"), 12)]
    for name, part in (("gsm8k", rows[:4]), ("gsm8k_train", rows[3:])):
        lines = ({"question": one.problem, "answer": f"#### {one.answer}"} for one in part)
        write_rows(tmp_path / f"{name}.jsonl", *lines)
    measurer = Measurer("models/tiny-qwen2-hurried", tmp_path, QUICK, "transformers", tmp_path)
    measurer.names = ["gsm8k"]
    cells = {
        way.name: plan.answers(BASE, way, "gsm8k", None)
        for way in (ways.BASE, ways.GREEDY, ways.VOTE)
    }
    with closing(measurer):
        found = {name: measurer.make(cell) for name, cell in cells.items()}
        assert measurer.make(cells["vote"]) == found["vote"]  # read back, not asked again
    for name in cells:
        assert set(found[name]["answers"]["gsm8k"]["scores"]) <= {0.0, 1.0}
        assert len(found[name]["answers"]["gsm8k"]["scores"]) == 4
    assert len(found["base"]["tokens"]["gsm8k"]["scores"]) == 4
    assert found["vote"]["samples"]["gsm8k"]["tokens"] > found["base"]["answers"]["gsm8k"]["tokens"]
    overlap = measurer.make(Cell(BASE, plan.OVERLAP))
    assert overlap == {"shared": {"gsm8k": 1}, "of": {"gsm8k": 4}}


# ------------------------------------------------------------------------------------ the command


class Fake:
    """Makes cells out of nothing; counts them."""

    calls: list[str] = []  # noqa: RUF012

    def __init__(self, *_: Any) -> None:
        self.base = type("Base", (), {"fingerprint": "weights"})
        self.names: list[str] = []

    def make(self, cell: Cell) -> dict[str, Any]:
        Fake.calls.append(cell.id)
        if cell.variant.startswith(ways.SFT):
            raise RuntimeError("no memory")
        return made(cell)

    def close(self) -> None:
        pass


def test_a_run_goes_on_where_it_stopped_and_names_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Measurer", Fake)
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.chdir(tmp_path)
    only = "small/rule,*/base/*,*/gated/gsm8k/*,*/train/sft/gsm8k/*"
    argv = ["--bases", BASE, "--only", only, "--nice", "0", "--results", "results"]
    for expected in (9, 3):  # the second time only what failed is tried again
        Fake.calls.clear()
        with pytest.raises(SystemExit) as end:
            command.main(argv)
        assert end.value.code == 1
        assert len(Fake.calls) == expected
    said = capsys.readouterr()
    assert f"failed: {BASE}/train/sft/gsm8k/seed0" in said.err
    assert "cannot tell: " in said.out


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--tasks", "sums"], "--tasks"),
        (["--bases", "a/small,b/small"], "--bases"),  # two of one name
    ],
)
def test_bad_input_ends_with_2(argv: list[str], word: str, refused: Refused) -> None:
    assert word in refused(command.main, argv)
