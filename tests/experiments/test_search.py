"""A search on the shipped miniature base, small: rounds follow one another, and nothing twice."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adapters.base import BaseModel
from experiments.search import LaterRound, Plan, Search
from training.generate import open_generator
from training.model import load_model
from training.tiny.world import puzzles
from training.train import Rollouts, collate, predicting_states, training_arguments
from training.verify import Verifier

BASE = "models/tiny-qwen2"


@pytest.fixture(scope="module")
def search():
    problems = [one.problem for one in islice(puzzles(10, "train"), 12)]
    with Verifier() as verifier, open_generator(BASE, engine="transformers") as generator:
        yield Search(BaseModel.open(BASE), problems, generator, verifier, seed=0)


def test_further_rollouts_go_to_the_problems_in_the_range(search) -> None:
    asked = search.ask(range(12), 4)
    more = search.ask_more(asked, Plan("", 12, 4, more=12, between=(0.2, 0.8)))
    rates = [asked.rewards[4 * index : 4 * index + 4].mean() for index in range(12)]
    wanted = [index for index, rate in enumerate(rates) if 0.2 <= rate <= 0.8]
    assert sorted(set(more.problems)) == wanted
    assert len(more.problems) == len(wanted) * max(2, round(12 / len(wanted)))


def test_a_later_round_goes_on_from_the_one_before(search, tmp_path: Path) -> None:
    fit = search.fit(Plan("", 12, 6, rounds=2), tmp_path)
    assert fit.adapter.parent.name == "round1" and fit.tokens > 2 * 6 * 6 * 20
    assert search.fit(Plan("", 12, 6, rounds=2), tmp_path) == fit

    before = next((tmp_path / "round0").glob("training-*/checkpoint-*"))
    asked = search.ask(range(6, 12), 4)
    rows = search.rows(asked, search.entropies(asked), fit.tau)
    trainer = LaterRound(
        old=PeftModel.from_pretrained(load_model(BASE), before).eval(),
        model=PeftModel.from_pretrained(load_model(BASE), before, is_trainable=True),
        args=training_arguments(tmp_path, len(rows), search.recipe.optimizer, 1, 0),
        train_dataset=Rollouts(rows, strongest_first=False),
        data_collator=collate,
        objective=search.recipe.objective,
        in_order=False,
    )
    batch = collate(rows)
    held, at = trainer.held_against(trainer.model, batch), batch["decision"]
    own = predicting_states(trainer.model, batch)
    base = predicting_states(load_model(BASE), batch)
    torch.testing.assert_close(held[at], own[at])  # where it begins, every ratio is 1
    torch.testing.assert_close(held[~at], base[~at])
    assert not torch.allclose(held[at], base[at])
