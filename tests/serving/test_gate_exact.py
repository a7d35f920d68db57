"""Gated decoding in vLLM is the reference's, token for token and decision point for decision point.

Some 670 cases by default; REASONMAXXER_GATE_CASES=full runs four times as many (`make test-gate`).
A case is one request on one engine; the power of the test is shown by breaking the gate on purpose.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import interpreter
import pytest
from gate_models import ADAPTERS, ARCHITECTURES, SLIDING, prompts
from gate_reference import TIE, Asked, Decoded, Reference
from support import ENGINE_ENVIRONMENT, ROOT

from loadtests.preloaded import Command, Ended

FULL = os.environ.get("REASONMAXXER_GATE_CASES") == "full"
ROUNDS = 4 if FULL else 1
BATCH = 32
NEVER = 1e9
TAUS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, NEVER)

PLAIN = {"enable_prefix_caching": False, "enforce_eager": True}
CRAMPED = {
    "enable_prefix_caching": True,
    "num_gpu_blocks_override": 26,  # 25 blocks of 32 tokens for 32 requests
    "max_num_batched_tokens": 64,  # prompts in pieces
    "max_loras": 2,  # fewer slots than adapters
}
ROOMY = {"enable_prefix_caching": True, "max_num_batched_tokens": 96, "max_loras": 1}


def engine_environment(metrics: Path) -> dict[str, str]:
    """What gate_engine.py runs with; its processes count in the folder `metrics`."""
    here = Path(__file__).parent
    path = [str(ROOT), str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    return os.environ | ENGINE_ENVIRONMENT | settings


class World(NamedTuple):
    """A model, its adapters and what they ought to answer."""

    model: Path
    adapters: dict[str, Path]
    reference: Reference
    engine: Command  # gate_engine.py

    def run(
        self, *jobs: dict[str, Any], runner: str = "v1", known: Any = None
    ) -> list[dict[str, Any]]:
        """The jobs on the real engine, in a process of their own.

        Args:
            jobs: see gate_engine.py.
            runner: of vLLM.
            known: what the drafters of gate_drafts.py know.
        """
        case = {
            "runner": runner,
            "model": str(self.model),
            "adapters": {name: str(path) for name, path in self.adapters.items()},
            "jobs": jobs,
            "known": known,
        }
        with tempfile.TemporaryDirectory(prefix="case-") as folder:
            given, results = Path(folder) / "case.json", Path(folder) / "results.json"
            given.write_text(json.dumps(case))
            ended = self._run(given, results, runner)
            assert ended.returncode == 0, ended.output[-4000:]
            return json.loads(results.read_text())

    def _run(self, given: Path, results: Path, runner: str) -> Ended:
        if runner == "v1":
            return self.engine.run([str(given), str(results)])
        # Under Triton's interpreter, which has to be there before vLLM is imported.
        interpreted = interpreter.ENVIRONMENT | {"VLLM_USE_V2_MODEL_RUNNER": "1"}
        process = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("gate_engine.py")), given, results],
            env=engine_environment(given.parent) | interpreted,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Ended(process.returncode, process.stdout)

    def request(self, asked: Asked) -> dict[str, Any]:
        """A request whose answer is certain: as many tokens as the reference has before a tie."""
        request = asked._asdict() | {"tokens": max(1, len(self.reference.decode(asked).tokens))}
        if traced(asked):
            request |= {"arguments": {"gate_trace": 1}, "logprobs": 1}
        return request


def traced(asked: Asked) -> bool:
    """Whether a request asks for a trace, and for logprobs: every second one."""
    return asked.tau is not None and len(asked.prompt) % 2 == 1


def mixed(seed: int, count: int = BATCH) -> list[Asked]:
    """A batch of base, always-on and gated requests; many prompts begin alike."""
    choose = random.Random(seed)
    shared = prompts(1, 40, seed=1000 + seed)[0]
    batch = []
    for own in prompts(count, 70, seed=seed):
        prompt = own[: choose.randint(3, 70)]
        if choose.random() < 0.4:
            prompt = shared[: choose.choice((32, 33, 40))] + own[: choose.randint(0, 20)]
        mode = choose.random()
        adapter = choose.choice(list(ADAPTERS)) if mode > 0.15 else None
        tau = choose.choice(TAUS) if mode > 0.3 else None
        tokens, temperature = choose.choice((1, 20, 40, 60)), choose.choice((1.0, 1.0, 0.3, 2.0))
        batch.append(Asked(prompt, adapter, tau, tokens, temperature))
    return batch


def next_turns(world: World, batch: list[Asked], seed: int) -> list[Asked]:
    """Requests that go on where others ended, as the base or with any adapter."""
    choose = random.Random(seed)
    turns = []
    for asked in batch:
        prompt = asked.prompt + world.reference.decode(asked).tokens + [7, 8, 9]
        adapter = choose.choice([None, asked.adapter, *ADAPTERS])
        tau = choose.choice([None, *TAUS]) if adapter else None
        turns.append(Asked(prompt, adapter, tau, 30))
    return turns


def bad_cases(world: World, waves: list[list[Asked]], result: dict[str, Any]) -> list[str]:
    """What differs from the reference."""
    bad = []
    cases = [asked for wave in waves for asked in wave]
    for index, (asked, got) in enumerate(zip(cases, result["results"], strict=True)):
        if got.get("aborted"):
            continue
        wanted = world.reference.decode(asked)
        points = [len(asked.prompt) - 1 + entry["position"] for entry in got["trace"]]
        if not wanted.tokens:
            continue  # a tie at the first token
        if got["tokens"] != wanted.tokens:
            bad.append(f"{index} {asked}: {got['tokens']} instead of {wanted.tokens}")
        elif asked.tau is not None and (points, got["gated"]) != (wanted.points, len(points)):
            bad.append(f"{index} {asked}: gated at {points} instead of {wanted.points}")
        elif asked.tau is None and got["gated"] is not None:
            bad.append(f"{index} {asked}: reports a gate")
        elif any(traced(asked) != same_evidence(entry, wanted) for entry in got["trace"]):
            bad.append(f"{index} {asked}: traced {got['trace']}")
        elif traced(asked) and not same_logprobs(got["logprobs"], wanted.logprobs):
            bad.append(f"{index} {asked}: {got['logprobs']} instead of {wanted.logprobs}")
    return bad


def same_evidence(entry: dict[str, Any], wanted: Decoded) -> bool:
    """Whether an entry of a trace holds the reference's entropy, base probabilities and token."""
    at = entry["position"]
    if "base_top" not in entry or at >= len(wanted.tokens):
        return False
    return (
        entry["token_id"] == wanted.tokens[at]
        and abs(entry["entropy"] - wanted.entropies[at]) < TIE
        and len(entry["base_top"]) == 5
        and all(
            abs(best["probability"] - wanted.tops[at].get(best["token_id"], -1)) < TIE
            for best in entry["base_top"]
        )
    )


def same_logprobs(got: list[float], wanted: list[float]) -> bool:
    """One for each token, of the pass that gave it."""
    return len(got) == len(wanted) and all(
        abs(one - other) < TIE for one, other in zip(got, wanted, strict=True)
    )


def assert_tidy(result: dict[str, Any]) -> None:
    """Nothing is left behind, and the counters say what the requests got, each token once."""
    assert result["left"] == [0, 0, 0.0], "request state or blocks are left behind"
    gated = [got for got in result["results"] if got["gated"] is not None]
    told = [sum(len(got["tokens"]) for got in gated), sum(got["gated"] for got in gated)]
    assert result["counted"] == told
    assert result["replays"] == told[1], "a replay that gave no token, or was tried twice"


def assert_exact(world: World, waves: list[list[Asked]], result: dict[str, Any]) -> None:
    """Every case is the reference's, and nothing is left behind."""
    bad = bad_cases(world, waves, result)
    assert not bad, f"{len(bad)} cases:\n" + "\n".join(bad[:5])
    assert_tidy(result)


def job(world: World, waves: list[list[Asked]], engine: dict[str, Any], **more: Any) -> Any:
    """A job of gate_engine.py."""
    requests = [[world.request(asked) for asked in wave] for wave in waves]
    return {"engine": engine, "waves": requests} | more


class Case(NamedTuple):
    """What is asked in waves, and the job that asks it."""

    waves: list[list[Asked]]
    job: dict[str, Any]


def plain_case(world: World, seed: int) -> Case:
    """A plain batch."""
    waves = [mixed(seed)]
    return Case(waves, job(world, waves, PLAIN))


def cramped_case(world: World, seed: int) -> Case:
    """Two turns in cramped memory."""
    first = mixed(seed)
    waves = [first, next_turns(world, first, seed)]
    return Case(waves, job(world, waves, CRAMPED))


def disturbed_case(world: World, seed: int) -> Case:
    """Two turns with aborts and cache resets in mid-replay: the hardest."""
    first = mixed(seed + 5)
    waves = [first, next_turns(world, first, seed + 5)]
    aborts = {str(step): [index, index + 1] for step, index in ((5, 3), (9, 10), (14, 20))}
    # Late ones, too: by then a sliding window has left the first blocks behind.
    resets = [4, 7, 12, 13, 25, 40, 60, 80, 100, 130, 160, 200]
    return Case(waves, job(world, waves, ROOMY, abort=aborts, reset=resets))


SCENARIOS = (plain_case, cramped_case, disturbed_case)


def scenarios(world: World, seed: int) -> list[Case]:
    """All of them."""
    return [case(world, seed) for case in SCENARIOS]


# By default; Llama's goes through all of it in test_gate_real.py.
BRIEF = (*SLIDING, "llama")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_case_is_the_references(
    world: Callable[[str], World], architecture: str, record_property: Callable[[str, Any], None]
) -> None:
    here = world(architecture)
    if architecture in BRIEF and not FULL:
        cases = [disturbed_case(here, 0)]
    else:
        cases = [case for turn in range(ROUNDS) for case in scenarios(here, 10 * turn)]
    results = here.run(*(given for _, given in cases))
    bad = []
    for (waves, _), result in zip(cases, results, strict=True):
        bad += bad_cases(here, waves, result)
        assert_tidy(result)
    total = sum(len(wave) for waves, _ in cases for wave in waves)
    preempted = sum(result["preempted"] for result in results)
    record_property("cases", total)
    record_property("preempted", preempted)
    print(f"{architecture}: {total} cases, {preempted} preemptions, {len(bad)} bad")
    assert not bad, f"{len(bad)} of {total}:\n" + "\n".join(bad[:5])
    assert preempted >= 20 * ROUNDS
    assert min(sum(result["counted"][i] for result in results) for i in (0, 1)) > 300 * ROUNDS
    assert any(got.get("cached") for result in results for got in result["results"])


def disturbed_turns(here: World, first: list[Asked], adapter: str, seed: int) -> dict[str, Any]:
    """What the engine says of two turns with one adapter, through resets; all as the reference."""
    follow = next_turns(here, first, seed)
    turns = [first, [asked._replace(adapter=asked.adapter and adapter) for asked in follow]]
    disturbed = {"reset": [6, 12, 30, 50, 70, 90], "pending": {"reset": 5}}
    (result,) = here.run(job(here, turns, ROOMY, **disturbed))
    assert_exact(here, turns, result)
    assert result["preempted"] >= 20
    return result


def test_attention_in_chunks(world: Callable[[str], World]) -> None:
    """Llama 4's. The adapter is on the MLP: vLLM reorders q_proj and k_proj, but not a LoRA's."""
    here = world("llama4")
    first = [
        Asked(prompt[: 5 + 3 * index], "mlp", (0.0, 1.5)[index % 2], 40)
        for index, prompt in enumerate(prompts(20, 70, 3))
    ]
    result = disturbed_turns(here, first, "mlp", 3)
    assert result["counted"][1] > 300


def test_attention_with_sinks(world: Callable[[str], World]) -> None:
    """gpt-oss': a learned sink in every head, and a window in every second layer."""
    here = world("gpt_oss")
    first = [
        Asked(prompt[: 5 + 3 * index], ("one", "attention")[index % 2], (0.0, 1.5, None)[index % 3])
        for index, prompt in enumerate(prompts(20, 70, 4))
    ]
    result = disturbed_turns(here, first, "attention", 4)
    assert result["counted"][1] > 200


def test_never_is_the_base_without_lora(here: World) -> None:
    batch = [
        Asked(prompt[: 5 + index], None, None) for index, prompt in enumerate(prompts(24, 70, 5))
    ]
    never = [asked._replace(adapter="all", tau=NEVER) for asked in batch]
    as_asked = [asked._asdict() for asked in batch]
    without, gated = here.run(
        {"engine": PLAIN, "waves": [as_asked], "gate": False},
        {"engine": PLAIN, "waves": [[asked._asdict() for asked in never]]},
    )
    assert [r["tokens"] for r in without["results"]] == [r["tokens"] for r in gated["results"]]
    assert {r["gated"] for r in gated["results"]} == {0}


def test_a_gated_token_costs_one_step(here: World) -> None:
    asked = Asked(prompts(1, 12, seed=3)[0], "all", 2.0)
    points = here.reference.decode(asked).points
    (result,) = here.run(job(here, [[asked]], PLAIN))
    tokens = len(result["results"][0]["tokens"])
    assert points
    # The engine takes one more, empty step to tell the runner that the request is gone.
    assert result["steps"] in (tokens + len(points), tokens + len(points) + 1)


BREAKAGES = (
    "lora hashes",
    "the replay writes",
    "a preempted point is taken as known",
    "no entropy",
    "all tokens",
)


def test_breaking_it_shows(here: World) -> None:
    waves, given = disturbed_case(here, 0)
    given["reset"] = [4, 7, 12, 13, 25]  # late ones leave little in the cache to be wrong
    # Slots for all, since what is broken may run more adapters than the scheduler thinks.
    given["engine"] = {key: value for key, value in ROOMY.items() if key != "max_loras"}
    results = here.run(*(given | {"break": breakage} for breakage in BREAKAGES))
    bad = {
        breakage: len(bad_cases(here, waves, result))
        for breakage, result in zip(BREAKAGES, results, strict=True)
    }
    print(f"bad cases: {bad}")
    assert all(bad.values()), bad
