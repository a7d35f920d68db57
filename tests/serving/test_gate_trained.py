"""What is trained is what is served: the trainer's log-probabilities are the engine's.

Sampled answers of the real engine, in float32, are forced through the trainer's own code: decision
by decision it finds the same points, and there the same log-probabilities to 1e-4: on random
models, the miniatures and SmolLM2-135M-Instruct.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_models import make_adapters, prompts
from gate_reference import TIE, Reference
from real_models import real_model
from support import ROOT
from test_gate_exact import CRAMPED, PLAIN, World

from loadtests.preloaded import Command
from training.base_cache import compute_caches
from training.decision_points import Points, layer_windows, make_batch, point_log_probs
from training.stages.score import sequence_entropies

TAU = 1.5
ADAPTER = "all"  # of gate_models.ADAPTERS


def served(
    world: World, asked: list[list[int]], tau: float, engine: Any, tokens: int
) -> list[dict[str, Any]]:
    """Sampled gated answers of the engine, each with its trace and log-probabilities."""
    requests = [
        {"prompt": prompt, "adapter": ADAPTER, "tau": tau, "tokens": tokens}
        | {"temperature": 1.0, "seed": seed, "logprobs": 1, "arguments": {"gate_trace": 1}}
        for seed, prompt in enumerate(asked)
    ]
    (result,) = world.run({"engine": engine, "waves": [requests]})
    return result["results"]


def compare(
    world: World, asked: list[list[int]], tau: float, engine: Any, more_than: int, tokens: int = 40
) -> None:
    """Decision points are the trainer's, of which there are `more_than`, and so is log p there."""
    answers = served(world, asked, tau, engine, tokens)
    model = world.reference.adapted[ADAPTER]
    with model.disable_adapter():
        entropies = sequence_entropies(model, asked, [one["tokens"] for one in answers])
    points, wanted = [], []
    for prompt, answer, h in zip(asked, answers, entropies, strict=True):
        opened = [entry["position"] for entry in answer["trace"]]
        unsure = {t for t in range(len(h)) if abs(h[t] - tau) < TIE}
        assert {t for t in range(len(h)) if h[t] > tau} ^ set(opened) <= unsure
        if opened:
            decisions = [t in opened for t in range(len(answer["tokens"]))]
            points.append(Points.of(prompt, answer["tokens"], decisions))
            wanted += [answer["logprobs"][t] for t in opened]
    read = [
        (prompt + answer["tokens"])[: one.reads]
        for (prompt, answer), one in zip(
            ((p, a) for p, a in zip(asked, answers, strict=True) if a["trace"]), points, strict=True
        )
    ]
    batch = make_batch(points, compute_caches(model, read), layer_windows(model.config))
    found = point_log_probs(model, batch, [target for one in points for target in one.targets])[0]
    worst = float((found - torch.tensor(wanted)).abs().max())
    print(f"{world.model.name}: {len(wanted)} decision points, largest difference {worst:.1e}")
    assert len(wanted) > more_than
    assert worst < 1e-4


def test_the_trainers_log_probabilities_are_the_engines(world: Callable[[str], World]) -> None:
    here = world("gemma3")
    asked = [prompt[: 5 + 2 * index] for index, prompt in enumerate(prompts(24, 70, seed=90))]
    compare(here, asked, TAU, CRAMPED, more_than=100)


def folder_world(model: Path, store: Path, engine: Command) -> World:
    """A world of a model that is on disk, with random adapters."""
    adapters = make_adapters(model, store, [ADAPTER], strength=0.1)
    return World(model, adapters, Reference(model, adapters), engine)


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama", "tiny-qwen3"])
def test_so_they_are_on_the_miniatures(engine: Command, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    model = ROOT / "models" / name
    here, tokenizer = folder_world(model, tmp_path, engine), AutoTokenizer.from_pretrained(model)
    asked = [tokenizer(f"What is {n}-1{n}*7+12?")["input_ids"] for n in range(1, 13)]
    compare(here, asked, 0.3, PLAIN, more_than=20)


def test_so_they_are_on_a_real_model(engine: Command, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = real_model()
    here, tokenizer = folder_world(model, tmp_path, engine), AutoTokenizer.from_pretrained(model)
    questions = ("What is 17 * 3 + 5?", "Who wrote Faust?", "Name a prime above 90.")
    asked = [tokenizer(question)["input_ids"] for question in questions]
    roomy = PLAIN | {"kv_cache_memory_bytes": 2**28}
    compare(here, asked, TAU, roomy, more_than=10, tokens=60)
