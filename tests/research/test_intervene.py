"""Interventions against a walk without caches, against generate, and as a command."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support import write_puzzles

from adapters.base_checkpoint import BaseCheckpoint
from adapters.gate import entropy
from adapters.store import SHIPPED
from research.miniature.world import puzzles
from research.paper import intervene as module
from research.paper.base_and_tuned import Pair, Tuned
from research.paper.intervene import Policy, decode, takes
from training.generation import SamplingOptions
from training.generation.transformers_engine import drawing, end_tokens

BASE = "models/tiny-qwen2"
GREEDY = drawing(SamplingOptions(temperature=0))
TAU = 0.5
TOKENS = 40


@pytest.fixture(scope="module")
def pair() -> Pair:
    base = BaseCheckpoint.open(BASE)
    return Pair(base, Tuned.find("tiny-math", SHIPPED, base))


@pytest.fixture(scope="module")
def prompts(pair: Pair) -> list[list[int]]:
    from adapters.prompt import PromptRenderer
    from adapters.recipe import Prompt

    renderer = PromptRenderer.load(BaseCheckpoint.open(BASE).folder, Prompt())
    stream = puzzles(4, "heldout")
    return [renderer.token_ids(next(stream).problem.problem) for _ in range(2)]


def batch(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@cache  # the policies' walks begin alike
def both(pair: Pair, ids: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [V] after `ids`, of the base and of the tuned model."""
    with torch.inference_mode():
        with pair.base() as model:
            base = model(torch.tensor([ids])).logits[0, -1]
        with pair.tuned() as model:
            tuned = model(torch.tensor([ids])).logits[0, -1]
    return base, tuned


def slow(pair: Pair, prompt: list[int], policy: Policy, limit: int) -> tuple[list[int], list[bool]]:
    """The same without a cache or a batch."""
    ids, taken = list(prompt), []
    with pair.base() as model:
        ends = end_tokens(model)
    for _ in range(limit):
        base, tuned = both(pair, tuple(ids))
        here = {
            "base": False,
            "tuned": True,
            "oracle": bool(base.argmax() != tuned.argmax()),
            "entropy": bool(entropy(base) > TAU),
        }[policy]
        token = int((tuned if here else base).argmax())
        taken.append(here)
        ids.append(token)
        if token in ends:
            break
    return ids[len(prompt) :], taken


@pytest.mark.parametrize("policy", ["base", "tuned", "oracle", "entropy"])
def test_a_batch_with_caches_equals_the_slow_walk(pair: Pair, prompts, policy: Policy) -> None:
    with pair.base() as model:
        ends = end_tokens(model)
    tokens, taken = decode(pair, *batch(prompts), takes(policy, TAU, 0), GREEDY, ends, TOKENS)
    any_taken = 0
    for prompt, row, marks in zip(prompts, tokens.tolist(), taken.tolist(), strict=True):
        wanted, wanted_marks = slow(pair, prompt, policy, TOKENS)
        assert row[: len(wanted)] == wanted
        assert marks[: len(wanted)] == wanted_marks
        assert not any(marks[len(wanted) :])  # a row that is done takes nothing
        any_taken += sum(wanted_marks)
    assert (any_taken == 0) == (policy == "base")


def test_greedily_the_oracle_is_the_tuned_model(pair: Pair, prompts) -> None:
    with pair.base() as model:
        ends = end_tokens(model)
    tuned, oracle = (
        decode(pair, *batch(prompts), takes(policy, TAU, 0), GREEDY, ends, TOKENS)
        for policy in ("tuned", "oracle")
    )
    assert torch.equal(tuned.tokens, oracle.tokens)
    assert 0 < oracle.taken.sum() < tuned.taken.sum()


def test_rows_that_are_done_leave_the_batch_and_change_no_other(pair: Pair, prompts) -> None:
    with pair.base() as model:
        ends = end_tokens(model)
    rule = takes("entropy", TAU, 0)
    wanted = [slow(pair, prompt, "entropy", TOKENS)[0] for prompt in prompts]
    other = next(n for n, token in enumerate(wanted[0]) if token not in wanted[1])
    early = {wanted[0][other]}  # ends the first answer, and not the second
    tokens, _ = decode(pair, *batch(prompts), rule, GREEDY, ends | early, TOKENS)
    assert tokens[0, : other + 1].tolist() == wanted[0][: other + 1]
    assert other + 1 < len(wanted[1]) and not tokens[0, other + 1 :].any()
    assert tokens[1, : len(wanted[1])].tolist() == wanted[1]


def test_the_lot_opens_at_its_rate() -> None:
    torch.manual_seed(0)
    logits, lot = torch.zeros(20_000, 3), takes("random", TAU, 0.2)
    assert not isinstance(lot, bool)
    assert lot(logits, logits).float().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.engine
def test_the_command_asks_all_policies_and_the_replay(tmp_path: Path, capsys) -> None:
    problems = write_puzzles(tmp_path / "problems.jsonl", 4, seed=1, split="heldout")
    arguments = ["--model", BASE, "--tuned", "tiny-math", "--problems", str(problems)]
    arguments += ["--engine", "transformers", "--samples", "2", "--output", str(tmp_path / "out")]
    module.main(arguments)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    results = report["results"]
    assert list(results) == ["base", "tuned", "oracle", "random", "entropy", "replay"]
    assert all(one["n"] == 4 and one["samples"] == 2 for one in results.values())
    assert all(np.mean(one["scores"]) == pytest.approx(one["pass@1"]) for one in results.values())
    assert results["base"]["taken_rate"] == 0 and results["tuned"]["taken_rate"] == 1
    assert 0 < results["entropy"]["taken_rate"] < 0.3
    assert results["replay"]["taken_rate"] == pytest.approx(results["replay"]["gate_rate"])
    assert "oracle" in capsys.readouterr().out


@pytest.mark.engine
def test_a_whole_model_needs_no_adapter_and_calibrates_its_tau(tmp_path: Path) -> None:
    problems = write_puzzles(tmp_path / "problems.jsonl", 4, seed=1, split="heldout")
    config = module.InterveneConfig.load(
        ["--model", BASE, "--tuned", BASE, "--problems", str(problems)]
    )
    results, report = module.run(config)
    assert [one.label for one in results] == ["base", "tuned", "oracle", "random", "entropy"]
    assert results[2].gated.sum() == 0  # it is the base: nothing to take
    assert report["tau"] > 0.1
