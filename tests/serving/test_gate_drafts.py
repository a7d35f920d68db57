"""Speculative decoding behind the gate: token for token what it is without drafts.

The reference is the one of test_gate_exact.py and knows nothing of drafts. By default some 320
cases; REASONMAXXER_GATE_CASES=full runs 2,000 (`make test-gate`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gate_models import ARCHITECTURES, VOCAB, prompts
from gate_reference import TIE, Asked, Reference
from test_gate_exact import (
    CRAMPED,
    FULL,
    NEVER,
    PLAIN,
    ROOMY,
    ROUNDS,
    World,
    assert_tidy,
    bad_cases,
    job,
    mixed,
    next_turns,
    scenarios,
)

pytestmark = pytest.mark.engine

DRAFTS = 4
ORACLE = {
    "method": "custom_class",
    "model": "gate_drafts.Oracle",
    "num_speculative_tokens": DRAFTS,
}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}


def draft_model(here: World, **more: Any) -> dict[str, Any]:
    """The base as its own drafter: greedy drafts are the base's greedy tokens."""
    return {"method": "draft_model", "model": str(here.model), "num_speculative_tokens": 3} | more


def answers(world: World, waves: list[list[Asked]]) -> list[list[int]]:
    """Prompts with the reference's answers, which an Oracle is to know."""
    return [asked.prompt + world.reference.decode(asked).tokens for wave in waves for asked in wave]


def with_drafts(given: dict[str, Any], drafts: dict[str, Any]) -> dict[str, Any]:
    """A job of gate_engine.py, on an engine that drafts."""
    engine = given["engine"] | {"speculative_config": drafts}
    if "max_num_batched_tokens" in engine:  # vLLM asks for as many as all requests may draft
        tokens = 32 * (1 + drafts["num_speculative_tokens"])
        own = 32 if drafts["method"] == "draft_model" else 0  # the drafter's, one for each request
        engine["max_num_batched_tokens"] = tokens + own
    return given | {"engine": engine}


def run_all(
    here: World, cases: list[tuple[list[list[Asked]], dict[str, Any]]], drafts: dict[str, Any]
) -> tuple[list[str], Counter[str]]:
    """What differs from the reference, and what was counted."""
    known = [one for waves, _ in cases for one in answers(here, waves)]
    results = here.run(*(with_drafts(given, drafts) for _, given in cases), known=known)
    bad: list[str] = []
    counts: Counter[str] = Counter()
    for (waves, _), result in zip(cases, results, strict=True):
        bad += bad_cases(here, waves, result)
        assert_tidy(result)
        counts.update(result["drafts"])
        counts.update(preempted=result["preempted"], cases=sum(map(len, waves)))
        counts.update(gated=result["counted"][1])
    print(f"{drafts['method']}: {dict(counts)}, {len(bad)} bad")
    return bad, counts


@pytest.mark.parametrize("architecture", ARCHITECTURES if FULL else ARCHITECTURES[:1])
def test_every_case_is_the_references(world: Callable[[str], World], architecture: str) -> None:
    """Preemption, pieces of prompts, prefix cache, further turns, aborts and resets included."""
    here = world(architecture)
    cases = [case for turn in range(ROUNDS) for case in scenarios(here, 100 + 10 * turn)]
    bad, counts = run_all(here, cases if FULL else cases[1:], ORACLE)
    assert not bad, f"{len(bad)} of {counts['cases']}:\n" + "\n".join(bad[:5])
    assert counts["accepted"] > 300 and counts["behind a replay"] > 100
    assert counts["drafted"] - counts["accepted"] > 100
    assert counts["preempted"] >= 20


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_vllms_own_drafters(world: Callable[[str], World], method: str) -> None:
    here = world("qwen2")
    drafts = NGRAM if method == "ngram" else draft_model(here)
    cases = [case for turn in range(ROUNDS) for case in scenarios(here, 140 + 10 * turn)]
    bad, counts = run_all(here, cases if FULL else cases[1:2], drafts)
    assert not bad, f"{len(bad)} of {counts['cases']}:\n" + "\n".join(bad[:5])
    assert counts["accepted"] > (20 if method == "ngram" else 300)
    assert counts["preempted"] > 0


def test_a_trace_of_every_token(world: Callable[[str], World]) -> None:
    """Each token of a step has its own entry, also behind a replay and at the step's end."""
    here = world("qwen2")
    batch = [
        Asked(prompt[: 9 + index], "all", (0.0, 1.0, 1.5, 2.0, NEVER)[index % 5], 40)
        for index, prompt in enumerate(prompts(20, 50, 150))
    ]
    given = job(here, [batch], ROOMY, pending={"reset": 2})
    for request in given["waves"][0]:
        request |= {"arguments": {"gate_trace": 2}, "logprobs": 1}
    known = answers(here, [batch])
    (result,) = here.run(with_drafts(given, ORACLE), known=known)
    assert result["drafts"]["accepted"] > 100
    assert_tidy(result)
    for asked, got in zip(batch, result["results"], strict=True):
        wanted = here.reference.decode(asked)
        assert got["tokens"] == wanted.tokens
        assert [entry["position"] for entry in got["trace"]] == list(range(len(wanted.tokens)))
        assert [entry["token_id"] for entry in got["trace"]] == wanted.tokens
        points = [len(asked.prompt) - 1 + e["position"] for e in got["trace"] if e["gated"]]
        assert points == wanted.points
        for entry, entropy in zip(got["trace"], wanted.entropies, strict=True):
            assert abs(entry["entropy"] - entropy) < TIE
            assert ("base_top" in entry) == entry["gated"]
        for one, other in zip(got["logprobs"], wanted.logprobs, strict=True):
            assert abs(one - other) < TIE


def test_stops_and_penalties(world: Callable[[str], World]) -> None:
    """A stop may lie inside accepted drafts; penalties count the drafts before each position."""
    here = world("llama")

    def change(logits: Any, said: list[int]) -> Any:
        times = logits.new_zeros(len(logits))
        for token in said:
            times[token] += 1
        return logits - 1.1 * times - 0.7 * (times > 0)

    batch = [
        Asked(prompt[: 8 + index], "mlp", (0.5, 1.5, 2.5)[index % 3], 40)
        for index, prompt in enumerate(prompts(24, 50, 151))
    ]
    plain = [here.reference.decode(asked) for asked in batch]
    changed = [here.reference.decode(asked, change=change) for asked in batch]
    stops = [decoded.tokens[2 * len(decoded.tokens) // 3] for decoded in plain]
    stopping = [
        asked._asdict() | {"tokens": len(decoded.tokens), "stop_token_ids": [stop]}
        for asked, decoded, stop in zip(batch, plain, stops, strict=True)
    ]
    penalties = {"frequency_penalty": 1.1, "presence_penalty": 0.7}
    penalised = [
        asked._asdict() | penalties | {"tokens": len(decoded.tokens)}
        for asked, decoded in zip(batch, changed, strict=True)
    ]
    known = [a.prompt + d.tokens for a, d in zip(2 * batch, plain + changed, strict=True)]
    given = {"engine": ROOMY, "waves": [[*stopping, *penalised]]}
    (result,) = here.run(with_drafts(given, ORACLE), known=known)
    assert_tidy(result)
    assert result["drafts"]["accepted"] > 100
    stopped, free = result["results"][: len(batch)], result["results"][len(batch) :]
    for got, decoded, stop in zip(stopped, plain, stops, strict=True):
        wanted = decoded.tokens[: decoded.tokens.index(stop) + 1]
        assert (got["tokens"], got["finish"], got["stop"]) == (wanted, "stop", stop)
    for got, decoded in zip(free, changed, strict=True):
        assert got["tokens"] == decoded.tokens
    assert [d.tokens for d in changed] != [d.tokens for d in plain]


def test_structured_output(base_folder: Path, gated_store: Path) -> None:
    """Each drafted position has its own mask; the gate sees the entropy behind it."""
    from transformers import AutoTokenizer

    reference = Reference(base_folder, {"alpha": gated_store / "alpha"})
    here = World(base_folder, {"alpha": gated_store / "alpha"}, reference)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    spelled = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    pattern = re.compile("[1-4]{6,9}[+-]x")
    unfinished = re.compile("[1-4]{0,9}|[1-4]{6,9}[+-]x?")

    def grammar(said: list[int]) -> list[int]:
        begun = "".join(spelled[token] for token in said)
        if pattern.fullmatch(begun):
            return [tokenizer.eos_token_id]
        return [token for token, more in spelled.items() if unfinished.fullmatch(begun + more)]

    problems = ("3 + 4 * 2", "12 + 7 * 3 =", "What is 9-11*7+12+9?", "8", "(1 + 2) * (3 + 4)")
    batch = [
        Asked(tokenizer(problem, add_special_tokens=False)["input_ids"], "alpha", tau, 16)
        for problem in problems
        for tau in (0.3, 0.6, NEVER)
    ]
    decoded = [reference.decode(asked, grammar=grammar) for asked in batch]
    # The Oracle's errors, and answers without the grammar, are drafts that it does not admit.
    known = [a.prompt + d.tokens for a, d in zip(batch, decoded, strict=True)]
    known += [asked.prompt + reference.decode(asked).tokens for asked in batch]
    requests = [
        asked._asdict() | {"regex": pattern.pattern, "ignore_eos": False} for asked in batch
    ]
    engine = PLAIN | {"skip_tokenizer_init": False, "enable_prefix_caching": True}
    given = {"engine": engine, "waves": [requests]}
    (result,) = here.run(with_drafts(given, ORACLE), known=known)
    assert_tidy(result)
    assert result["drafts"]["accepted"] > 20
    assert 0 < result["counted"][1] < result["counted"][0]
    for asked, got, wanted in zip(batch, result["results"], decoded, strict=True):
        count = len(wanted.tokens)
        assert got["tokens"][:count] == wanted.tokens
        points = [len(asked.prompt) - 1 + entry["position"] for entry in got["trace"]]
        assert [at for at in points if at < len(asked.prompt) - 1 + count] == wanted.points
        assert pattern.fullmatch(tokenizer.decode(got["tokens"], skip_special_tokens=True))


DRAWS = 20_000 if FULL else 6_000


@pytest.mark.parametrize("drafter", ["table", "draft_model"] if FULL else ["table"])
def test_three_tokens_are_distributed_as_the_references(
    world: Callable[[str], World], drafter: str
) -> None:
    """Two drafts behind the first token: right, wrong and missing ones, at open and shut gates."""
    here = world("qwen2")
    prompt = prompts(1, 9, seed=5)[0]
    # The gate is shut at the first token, and behind it sometimes open, sometimes shut.
    reference, asked = here.reference, Asked(prompt, "attention", 1.8, 3, 0.75)
    first = reference.distribution(asked, [])
    expected: dict[tuple[int, int, int], float] = {}
    drafts: dict[str, list[int]] = {}
    for one in first.topk(8).indices.tolist():
        second = reference.distribution(asked, [one])
        likely = second.topk(8).indices.tolist()
        for two in likely:
            third = reference.distribution(asked, [one, two])
            drafts[f"{one},{two}"] = [int(third.argmax())]
            expected |= {
                (one, two, three): float(first[one] * second[two] * third[three]) * DRAWS
                for three in range(VOCAB)
            }
        drafts[str(one)] = [likely[0], *drafts[f"{one},{likely[0]}"]]
    expected = {cell: count for cell, count in expected.items() if count >= 8}
    table = {"method": "custom_class", "model": "gate_drafts.Table", "num_speculative_tokens": 2}
    chosen = table
    if drafter == "draft_model":
        chosen = draft_model(here, draft_sample_method="probabilistic")
    given = {
        "engine": PLAIN | {"max_num_seqs": 256},
        "waves": [[asked._asdict() | {"temperature": 1.0}] * DRAWS],
    }
    known = {"prompt": len(prompt), "drafts": drafts}
    (result,) = here.run(with_drafts(given, chosen), known=known)
    assert result["drafts"]["accepted"] > DRAWS / 10
    seen = Counter(tuple(got["tokens"]) for got in result["results"])
    counted = np.array([*(seen[cell] for cell in expected), 0])
    wanted = np.array([*expected.values(), DRAWS - sum(expected.values())])
    counted[-1] = DRAWS - counted.sum()
    chi, freedom = float(((counted - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    # Mean and deviation of chi-square; five deviations are one case in millions.
    print(f"chi-square {chi:.0f} at {freedom} degrees of freedom")
    assert freedom > 50
    assert chi < freedom + 5 * (2 * freedom) ** 0.5
    gated = Counter(got["gated"] for got in result["results"])
    assert len(gated) > 1, "every draw gated alike: the test shows little"


BREAKAGES = (
    "drafts are not tested",
    "a rejected draft counts as reached",
    "the base's token stays",
    "a replay's drafts get the adapter",
    "one position is rolled back",
    "the replay writes",
)


def test_breaking_it_shows(world: Callable[[str], World]) -> None:
    here = world("qwen2")
    first = [asked._replace(tokens=min(asked.tokens, 20)) for asked in mixed(160)]
    waves = [first, next_turns(here, first[:8], 160)]
    engine = {key: value for key, value in ROOMY.items() if key != "max_loras"}
    given = with_drafts(job(here, waves, engine), ORACLE)
    known = answers(here, waves)
    results = here.run(*(given | {"break": breakage} for breakage in BREAKAGES), known=known)
    bad = {
        breakage: len(bad_cases(here, waves, result))
        for breakage, result in zip(BREAKAGES, results, strict=True)
    }
    print(f"bad cases: {bad}")
    assert all(bad.values()), bad


def test_two_ranks(world: Callable[[str], World]) -> None:
    here = world("qwen2")
    first = mixed(170, 16)
    ranks = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    bad, counts = run_all(here, [([first], job(here, [first], CRAMPED | ranks))], NGRAM)
    assert not bad, "\n".join(bad[:5])
    assert counts["drafted"] > 0
