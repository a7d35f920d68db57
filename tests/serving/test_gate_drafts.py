"""Speculative decoding behind the gate: token for token what it is without drafts.

The reference is the one of test_gate_exact.py and knows nothing of drafts. By default some 230
cases, all in one process; REASONMAXXER_GATE_CASES=full runs 4,000, ten times the draws, and all
deliberate breakages (`make test-gate`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gate_models import ARCHITECTURES, VOCAB, nearly, prompts
from gate_reference import TIE, Asked, Decoded, Reference, sums_grammar
from support import adapter_folder
from test_gate_exact import (
    CRAMPED,
    FULL,
    NEVER,
    PLAIN,
    ROOMY,
    ROUNDS,
    Case,
    World,
    assert_exact,
    assert_tidy,
    bad_cases,
    disturbed_case,
    job,
    mixed,
    next_turns,
    scenarios,
)
from test_gate_sampling import assert_distributed

from loadtests.preloaded import Command

DRAFTS = 4
ORACLE = {"method": "custom_class", "model": "gate_drafts.Oracle", "num_speculative_tokens": DRAFTS}
TABLE = {"method": "custom_class", "model": "gate_drafts.Table", "num_speculative_tokens": 2}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
PENALTIES = {"frequency_penalty": 1.1, "presence_penalty": 0.7}
BREAKAGES = (
    "drafts are not tested",
    "a rejected draft counts as reached",
    "the base's token stays",
    "a replay's drafts get the adapter",
    "one position is rolled back",
    "the replay writes",
)
BROKEN = BREAKAGES if FULL else BREAKAGES[::2]  # each is an engine of its own
DRAWS = 20_000 if FULL else 2_000


# Drafts for few requests at a time, none for more (vLLM's dynamic speculative decoding).
BY_LOAD = {"num_speculative_tokens_per_batch_size": [[1, 6, DRAFTS], [7, 32, 0]]}


def draft_model(model: Path, **more: Any) -> dict[str, Any]:
    """A drafter; where it is the base itself, its greedy drafts are the base's greedy tokens."""
    return {"method": "draft_model", "model": str(model), "num_speculative_tokens": 3} | more


def with_drafts(given: dict[str, Any], drafts: dict[str, Any]) -> dict[str, Any]:
    """A job of gate_engine.py, on an engine that drafts."""
    engine = given["engine"] | {"speculative_config": drafts}
    if "max_num_batched_tokens" in engine:  # vLLM asks for as many as all requests may draft
        tokens = 32 * (1 + drafts["num_speculative_tokens"])
        own = 32 if drafts["method"] == "draft_model" else 0  # the drafter's, one for each request
        engine["max_num_batched_tokens"] = tokens + own
    return given | {"engine": engine}


def sequences(world: World, waves: list[list[Asked]]) -> list[list[int]]:
    """Prompts with the reference's answers, which an Oracle is to know."""
    return [asked.prompt + world.reference.decode(asked).tokens for wave in waves for asked in wave]


# --------------------------------------------------------------------------------- what is asked


class Grammar(NamedTuple):
    """Answers of a regular expression, by a model that has a tokenizer."""

    world: World
    pattern: re.Pattern[str]
    asked: list[Asked]
    wanted: list[Decoded]
    free: list[Decoded]  # the same without the grammar


class Draws(NamedTuple):
    """A sampled request, and how often its answers of three tokens are to be expected."""

    asked: Asked
    expected: dict[tuple[int, int, int], float]
    table: dict[str, Any]  # what a Table guesses


class Asks(NamedTuple):
    """All that the jobs of the default run ask."""

    turns: list[list[Asked]]  # for engines that are short of memory
    disturbed: Case
    plain: list[Asked]  # for traces, stops, penalties and breakages
    penalised: list[Decoded]
    grammar: Grammar
    draws: Draws


def change(logits: Any, said: list[int]) -> Any:
    """The logits after PENALTIES."""
    times = logits.new_zeros(len(logits))
    for token in said:
        times[token] += 1
    return logits - 1.1 * times - 0.7 * (times > 0)


def grammar_of(base_folder: Path, gated_store: Path, engine: Command) -> Grammar:
    """Sums and the like, answered by digits, a sign and an x."""
    from transformers import AutoTokenizer

    adapters = {"alpha": adapter_folder(gated_store, "alpha")}
    here = World(base_folder, adapters, Reference(base_folder, adapters), engine)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    pattern, grammar = sums_grammar(tokenizer)
    asked = [
        Asked(tokenizer(problem, add_special_tokens=False)["input_ids"], "alpha", tau, 16)
        for problem in ("3 + 4 * 2", "12 + 7 * 3 =", "What is 9-11*7+12+9?", "8", "(1 + 2) * 4")
        for tau in (0.3, 0.6, NEVER)
    ]
    wanted = [here.reference.decode(one, grammar=grammar) for one in asked]
    return Grammar(here, pattern, asked, wanted, [here.reference.decode(one) for one in asked])


def draws_of(here: World) -> Draws:
    """Two drafts behind the first token: right, wrong and missing ones, at open and shut gates."""
    prompt, reference = prompts(1, 9, seed=5)[0], here.reference
    # The gate is shut at the first token, and behind it sometimes open, sometimes shut.
    asked = Asked(prompt, "attention", 1.8, 3, 0.75)
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
    expected = {cell: count for cell, count in expected.items() if count >= 5}
    return Draws(asked, expected, {"prompt": len(prompt), "drafts": drafts})


Ran = dict[str, dict[str, Any]]  # results by the names of jobs


@pytest.fixture(scope="module")
def asks(here: World, base_folder: Path, gated_store: Path) -> Asks:
    """What is asked of the engines."""
    first = mixed(140, 16)
    taus = (0.0, 0.5, 1.5, 2.0, NEVER)
    plain = [
        Asked(prompt[: 9 + 2 * index], "all", taus[index % 5], 24)
        for index, prompt in enumerate(prompts(20, 50, 150))
    ]
    plain = [asked for asked in plain if len(here.reference.decode(asked).tokens) > 5]
    return Asks(
        turns=[first, next_turns(here, first, 140)],
        disturbed=disturbed_case(here, 100),
        plain=plain,
        penalised=[here.reference.decode(asked, change=change) for asked in plain],
        grammar=grammar_of(base_folder, gated_store, here.engine),
        draws=draws_of(here),
    )


@pytest.fixture(scope="module")
def ran(here: World, asks: Asks, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The results of all jobs: one engine after the other, in one process."""
    grammar = asks.grammar
    other = nearly(here.model, tmp_path_factory.mktemp("drafter"))
    cramped = job(here, asks.turns, CRAMPED)
    traced = job(here, [asks.plain], ROOMY, pending={"reset": 2})
    for request in traced["waves"][0]:
        request |= {"arguments": {"gate_trace": 2}, "logprobs": 1}
    lengths = [len(here.reference.decode(asked).tokens) for asked in asks.plain]
    stopping = [
        asked._asdict() | {"tokens": length, "stop_token_ids": [stop_of(here, asked)]}
        for asked, length in zip(asks.plain, lengths, strict=True)
    ]
    penalised = [
        asked._asdict() | PENALTIES | {"tokens": len(decoded.tokens)}
        for asked, decoded in zip(asks.plain, asks.penalised, strict=True)
        if decoded.tokens
    ]
    structured = [
        asked._asdict() | {"regex": grammar.pattern.pattern, "ignore_eos": False}
        for asked in grammar.asked
    ]
    tokenized = {"model": str(grammar.world.model), "skip_tokenizer_init": False}
    sampled = asks.draws.asked._asdict() | {"temperature": 1.0}
    # Slots for all, since what is broken may run more adapters than the scheduler thinks.
    broken = {key: value for key, value in ROOMY.items() if key != "max_loras"}
    jobs = {
        "cramped": with_drafts(cramped, ORACLE),
        "disturbed": with_drafts(asks.disturbed.job, ORACLE),
        "ngram": with_drafts(cramped, NGRAM),
        "draft_model": with_drafts(cramped, draft_model(here.model)),
        "draft_model by load": with_drafts(cramped, draft_model(here.model) | BY_LOAD),
        "ngram by load": with_drafts(cramped, NGRAM | BY_LOAD),
        "traced": with_drafts(traced, ORACLE),
        "stopping": with_drafts({"engine": ROOMY, "waves": [stopping]}, ORACLE),
        "penalised": with_drafts({"engine": ROOMY, "waves": [penalised]}, ORACLE),
        "structured": with_drafts({"engine": PLAIN | tokenized, "waves": [structured]}, ORACLE),
        "draws": with_drafts(
            {"engine": PLAIN | {"max_num_seqs": 256}, "waves": [[sampled] * DRAWS]}, TABLE
        ),
        "sampled drafts": with_drafts(
            {"engine": PLAIN | {"max_num_seqs": 256}, "waves": [[sampled] * DRAWS]},
            draft_model(other, draft_sample_method="probabilistic"),
        ),
        **{
            name: with_drafts(job(here, [asks.plain], broken), ORACLE) | {"break": name}
            for name in BROKEN
        },
    }
    known = sequences(here, [*asks.turns, *asks.disturbed.waves, asks.plain])
    for prompts_, decoded in (
        (asks.plain, asks.penalised),
        (grammar.asked, grammar.wanted),
        # Answers without the grammar are drafts that it does not admit, as are an Oracle's errors.
        (grammar.asked, grammar.free),
    ):
        known += [a.prompt + d.tokens for a, d in zip(prompts_, decoded, strict=True)]
    all_of_them = here._replace(adapters=here.adapters | grammar.world.adapters)
    results = all_of_them.run(*jobs.values(), known={"sequences": known, "table": asks.draws.table})
    return dict(zip(jobs, results, strict=True))


def stop_of(here: World, asked: Asked) -> int:
    """A token of the answer, two thirds of the way."""
    tokens = here.reference.decode(asked).tokens
    return tokens[2 * len(tokens) // 3]


# ----------------------------------------------------------------------------------- what came out


@pytest.mark.parametrize("name", ["cramped", "disturbed", "ngram", "draft_model"])
def test_every_case_is_the_references(here: World, asks: Asks, ran: Ran, name: str) -> None:
    """Preemption, pieces of prompts, prefix cache, further turns, aborts and resets included."""
    result, drafts = ran[name], ran[name]["drafts"]
    print(f"{name}: {drafts}, {result['preempted']} preemptions")
    assert_exact(here, asks.disturbed.waves if name == "disturbed" else asks.turns, result)
    assert drafts["accepted"] > (3 if name == "ngram" else 100)
    assert drafts["drafted"] - drafts["accepted"] > 50
    assert name == "ngram" or drafts["behind a replay"] > 30
    if name == "disturbed":
        assert result["preempted"] >= 20


@pytest.mark.parametrize("name", ["draft_model", "ngram"])
def test_drafts_that_end_with_the_load(here: World, asks: Asks, ran: Ran, name: str) -> None:
    result = ran[f"{name} by load"]
    assert_exact(here, asks.turns, result)
    drafted, always = result["drafts"]["drafted"], ran[name]["drafts"]["drafted"]
    print(f"{name}: {drafted} drafts instead of {always}")
    assert 0 < drafted < 0.7 * always


# In all layers, and in every second one.
@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_sliding_windows(world: Callable[[str], World], architecture: str) -> None:
    """Drafts across the edge of a window, and replays whose window ends with the base's key."""
    here = world(architecture)
    first = mixed(180, 12)
    turns = [first, next_turns(here, first, 180)]
    given = with_drafts(job(here, turns, ROOMY, reset=[6, 13, 30, 60, 90]), ORACLE)
    (result,) = here.run(given, known={"sequences": sequences(here, turns)})
    print(f"{architecture}: {result['drafts']}, {result['preempted']} preemptions")
    assert_exact(here, turns, result)
    assert result["preempted"] > 0
    assert result["drafts"]["accepted"] > 100
    assert result["drafts"]["behind a replay"] > 20


def test_a_trace_of_every_token(here: World, asks: Asks, ran: Ran) -> None:
    """Each token of a step has its own entry, also behind a replay and at the step's end."""
    result = ran["traced"]
    assert result["drafts"]["accepted"] > 50
    assert_tidy(result)
    for asked, got in zip(asks.plain, result["results"], strict=True):
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


def test_stops(here: World, asks: Asks, ran: Ran) -> None:
    """A stop may lie inside accepted drafts."""
    result = ran["stopping"]
    assert_tidy(result)
    assert result["drafts"]["accepted"] > 30
    for asked, got in zip(asks.plain, result["results"], strict=True):
        stop = stop_of(here, asked)
        tokens = here.reference.decode(asked).tokens
        wanted = tokens[: tokens.index(stop) + 1], "stop", stop
        assert (got["tokens"], got["finish"], got["stop"]) == wanted


def test_penalties(here: World, asks: Asks, ran: Ran) -> None:
    """They count the drafts before each position."""
    result = ran["penalised"]
    assert_tidy(result)
    assert result["drafts"]["accepted"] > 30
    wanted = [decoded.tokens for decoded in asks.penalised if decoded.tokens]
    assert [got["tokens"] for got in result["results"]] == wanted
    plain = [here.reference.decode(asked).tokens for asked in asks.plain]
    assert sum(one not in plain for one in wanted) > 5


def test_structured_output(asks: Asks, ran: Ran) -> None:
    """Each drafted position has its own mask; the gate sees the entropy behind it."""
    from transformers import AutoTokenizer

    result, grammar = ran["structured"], asks.grammar
    tokenizer = AutoTokenizer.from_pretrained(grammar.world.model)
    assert_tidy(result)
    assert result["drafts"]["accepted"] > 20
    assert 0 < result["counted"][1] < result["counted"][0]
    for asked, got, wanted in zip(grammar.asked, result["results"], grammar.wanted, strict=True):
        count = len(wanted.tokens)
        assert got["tokens"][:count] == wanted.tokens
        points = [len(asked.prompt) - 1 + entry["position"] for entry in got["trace"]]
        assert [at for at in points if at < len(asked.prompt) - 1 + count] == wanted.points
        text = tokenizer.decode(got["tokens"], skip_special_tokens=True)
        assert grammar.pattern.fullmatch(text)


@pytest.mark.parametrize("name", ["draws", "sampled drafts"])
def test_three_tokens_are_distributed_as_the_references(asks: Asks, ran: Ran, name: str) -> None:
    """Sampled drafts are those of a slightly other model, whose probabilities count as well."""
    print(f"{name}: {ran[name]['drafts']}")
    assert ran[name]["drafts"]["accepted"] > DRAWS / 10
    assert_distributed(asks.draws.expected, ran[name]["results"], freedom=40)


def test_breaking_it_shows(here: World, asks: Asks, ran: Ran) -> None:
    bad = {name: len(bad_cases(here, [asks.plain], ran[name])) for name in BROKEN}
    print(f"bad cases: {bad}")
    assert all(bad.values()), bad


# --------------------------------------------------------------------------------- the full run

full = pytest.mark.skipif(not FULL, reason="make test-gate")


# vLLM wants all layers of a draft model to be of one kind.
SCENARIOS = [
    (method, architecture)
    for method in ("oracle", "ngram", "draft_model")
    for architecture in ARCHITECTURES
    if method != "draft_model" or not architecture.startswith("gemma")
]


@full
@pytest.mark.parametrize(("method", "architecture"), SCENARIOS)
def test_every_scenario(world: Callable[[str], World], method: str, architecture: str) -> None:
    here = world(architecture)
    drafts = {"oracle": ORACLE, "ngram": NGRAM, "draft_model": draft_model(here.model)}[method]
    rounds = ROUNDS if method == "oracle" else 1
    cases = [case for turn in range(rounds) for case in scenarios(here, 200 + 10 * turn)]
    known = [one for waves, _ in cases for one in sequences(here, waves)]
    given = [with_drafts(one, drafts) for _, one in cases]
    results = here.run(*given, known={"sequences": known})
    bad = []
    counts: Counter[str] = Counter()
    for (waves, _), result in zip(cases, results, strict=True):
        bad += bad_cases(here, waves, result)
        assert_tidy(result)
        counts.update(result["drafts"])
        counts.update(preempted=result["preempted"], cases=sum(map(len, waves)))
    print(f"{architecture} {method}: {dict(counts)}, {len(bad)} bad")
    assert not bad, f"{len(bad)} of {counts['cases']}:\n" + "\n".join(bad[:5])
    assert counts["preempted"] >= 20
