"""The footprint by hand, and against a slow walk over an answer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Refused, write_puzzles

from adapters.base_checkpoint import BaseCheckpoint
from adapters.gate import entropy
from adapters.store import SHIPPED
from research.paper import footprint as module
from research.paper.base_and_tuned import Pair, Tuned
from research.paper.footprint import Footprint, choice_ranks, footprint, overlap, summarize
from training.generation import Completion
from training.hf_model import load_model

BASE = "models/tiny-qwen2"


@pytest.fixture(scope="module")
def base() -> BaseCheckpoint:
    return BaseCheckpoint.open(BASE)


@pytest.fixture(scope="module")
def pair(base: BaseCheckpoint) -> Pair:
    return Pair(base, Tuned.find("tiny-math", SHIPPED, base))


def test_ranks_by_hand() -> None:
    base = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 3.0, 1.0], [1.0, 2.0, 3.0]])
    tuned = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 9.0, 0.0], [0.0, 9.0, 0.0]])
    assert choice_ranks(base, tuned).tolist() == [1, 3, 1, 2]  # the third is a tie


PRINTS = Footprint(
    answer=np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2]),
    rank=np.array([1, 1, 1, 2, 1, 1, 4, 6, 1, 1]),
    entropy=np.array([0.0, 0.0, 0.4, 1.2, 0.2, 0.2, 1.0, 0.6, 1.5, 0.1], dtype=np.float32),
)


def test_the_figures_by_hand() -> None:
    found = summarize(PRINTS)
    assert (found["positions"], found["answers"]) == (10, 3)
    assert found["unshifted"]["value"] == pytest.approx(0.7)
    assert found["reranked"]["value"] == pytest.approx(0.2)
    assert found["shifted"]["value"] == pytest.approx(0.1)
    assert found["mean_rank"]["value"] == pytest.approx(4.0)
    # 1.2 to a mean of 0.4 in the first answer, 0.8 to 0.5 in the second; the third has none.
    assert found["entropy_ratio"]["value"] == pytest.approx((3.0 + 1.6) / 2)
    # Gate above 0.5: four positions, of which three are changed.
    assert overlap(PRINTS, 0.5) == {"tau": 0.5, "gate_rate": 0.4, "precision": 0.75, "recall": 1.0}
    assert overlap(PRINTS, 9.0)["precision"] is None


def test_nothing_changed_has_no_ranks() -> None:
    found = summarize(PRINTS._replace(rank=np.ones(10, dtype=np.int64)))
    assert found["unshifted"]["value"] == 1
    assert found["mean_rank"] is None and found["entropy_ratio"] is None
    assert overlap(PRINTS._replace(rank=np.ones(10, dtype=np.int64)), 0.5)["recall"] is None


def test_it_equals_a_slow_walk(base: BaseCheckpoint, pair: Pair) -> None:
    from peft import PeftModel

    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 300, n).tolist() for n in (4, 7, 5)]
    answers = [rng.integers(3, 300, n).tolist() for n in (9, 3, 6)]
    found = footprint(pair, prompts, answers, token_budget=30, chunk=4)
    plain = load_model(BASE)
    adapted = PeftModel.from_pretrained(
        load_model(BASE), Tuned.find("tiny-math", SHIPPED, base).adapter.path
    )
    ranks, entropies = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        for t in range(len(answer)):
            ids = torch.tensor([prompt + answer[:t]])
            with torch.inference_mode():
                z, choice = plain(ids).logits[0, -1], adapted(ids).logits[0, -1].argmax()
            ranks.append(1 + sum(float(other) > float(z[choice]) for other in z))
            entropies.append(entropy(z).item())
    assert found.rank.tolist() == ranks and max(ranks) > 1
    assert found.entropy == pytest.approx(entropies, abs=1e-4)
    assert found.answer.tolist() == [0] * 9 + [1] * 3 + [2] * 6


def test_a_model_beside_itself_is_unshifted(base: BaseCheckpoint) -> None:
    same = Pair(base, Tuned.find(BASE, SHIPPED, base))
    found = footprint(same, [[5, 6, 7]], [[8, 9, 10, 11]])
    assert found.rank.tolist() == [1, 1, 1, 1]


def test_the_command_writes_figures_and_a_plot(tmp_path: Path, capsys) -> None:
    problems = write_puzzles(tmp_path / "problems.jsonl", 6, seed=1, split="heldout")
    module.main([
        *("--model", BASE, "--tuned", "tiny-math", "--problems", str(problems)),
        *("--engine", "transformers", "--output", str(tmp_path / "out")),
    ])  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["answers"] == 6 and report["unshifted"]["value"] > 0.9
    shares = sum(report[name]["value"] for name in ("unshifted", "reranked", "shifted"))
    assert shares == pytest.approx(1)
    assert (tmp_path / "out" / "footprint.png").read_bytes().startswith(b"\x89PNG")
    assert "unshifted" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text()


def test_the_report_tells_the_options_that_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Completion([5, 6], "4", "stop")
    prints = Footprint(np.zeros(2, int), np.ones(2, int), np.ones(2, np.float32))
    monkeypatch.setattr(module, "tuned_answers", lambda asked: [[answer] for _ in asked.prompts])
    monkeypatch.setattr(module, "Pair", lambda *_: None)
    monkeypatch.setattr(module, "footprint", lambda *_: prints)
    config = module.FootprintConfig(
        model=BASE,
        tuned="tiny-math",
        store=SHIPPED,
        problems="models/tiny-problems/heldout.jsonl",
        limit=1,
        seed=7,
        max_tokens=20,
    )
    sampling = module.run(config)["sampling"]
    assert (sampling["seed"], sampling["max_tokens"], sampling["n"]) == (7, 20, 1)


@pytest.mark.parametrize("tuned", ["nobody", "no/such-model"])
def test_what_cannot_be_found_ends_with_2(tuned: str, refused: Refused) -> None:
    argv = ["--model", BASE, "--tuned", tuned, "--problems", "none.jsonl"]
    assert tuned in refused(module.main, argv)
    greedy = ["--temperature", "0", "--samples", "2"]
    assert "--samples: 2 answers at --temperature 0" in refused(module.main, [*argv, *greedy])
