"""What each step of a fit costs on a model, and what made it cheaper: pairs measured side by side.

    python -m benchmarks.fit_steps --model runs/models/Qwen2.5-Coder-0.5B-Instruct --sequences 64
    python -m benchmarks.fit_steps --model models/tiny-qwen2 --threads 1

Sampling: tokens per second by vLLM without top_p; with top_p 0.95 as vLLM applies it and as we do;
and with the base's entropy of every token. Scoring and caching: one pass of transformers over
rollouts that share prompts, for entropies in float32 (as it was), and for keys and values in
float32 and bfloat16, over whole rollouts and with each prompt computed once. Always-on training:
one step with the KL term at every position and at a sample of them. Prompts and rollouts are random
tokens, since time does not depend on them; the variants of each step take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from benchmarks.engines import exactly, make_engine, prepare
from benchmarks.report import in_turns, print_table, ratios, save, show, spread
from training.config import Config

Step = dict[str, Callable[[], int]]  # variant -> does the work, returns tokens


class FitStepsConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.fit_steps"

    model: str = "models/tiny-qwen2"
    threads: int = Field(2, ge=1)
    sequences: int = Field(64, ge=1, description="Sampled at a time.")
    tokens: int = Field(64, ge=1, description="Sampled for each sequence.")
    problems: int = Field(4, ge=1, description="Problems of the rollouts that are scored.")
    rollouts: int = Field(8, ge=1, description="Rollouts of each problem.")
    prompt: int = Field(80, ge=1, description="Tokens of a prompt.")
    answer: int = Field(200, ge=8, description="Tokens of a rollout.")
    runs: int = Field(3, ge=1, description="Of each variant, interleaved.")
    only: list[Literal["sampling", "pass", "step"]] = Field([], description="Default: all.")


def sampling(config: FitStepsConfig) -> Step:
    """Variants of sampling, in an engine of this process."""
    import random

    from vllm_gate import GateParams, engine_args, patches
    from vllm_gate.params import NEVER

    engine = make_engine(
        Path(config.model),
        False,
        dtype="bfloat16",
        max_num_seqs=config.sequences,
        max_model_len=config.prompt + config.tokens,
        **engine_args("cpu"),
    )
    draw = random.Random(0)
    prompts = [
        {"prompt_token_ids": [draw.randrange(5, 300) for _ in range(config.prompt)]}
        for _ in range(config.sequences)
    ]

    def sample(top_p: float = 1.0, stock: bool = False, gate: GateParams | None = None) -> int:
        asked = {"temperature": 0.6, "top_p": top_p, "extra_args": gate and gate.extra_args()}
        params = [
            exactly(config.tokens, **asked, seed=number) for number in range(config.sequences)
        ]
        with patches.stock("cpu") if stock else nullcontext():
            engine.generate(prompts, params, use_tqdm=False)
        return config.sequences * config.tokens

    return {
        "no top_p": sample,
        "top_p 0.95, vLLM's": lambda: sample(0.95, stock=True),
        "top_p 0.95": lambda: sample(0.95),
        "with entropies": lambda: sample(gate=GateParams(NEVER, trace=2)),
    }


def rollouts(config: FitStepsConfig) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of random tokens, row by row; answers of a problem differ in length."""
    import numpy as np

    rng = np.random.default_rng(0)
    prompts, answers = [], []
    for _ in range(config.problems):
        prompt = rng.integers(5, 300, config.prompt).tolist()
        for _ in range(config.rollouts):
            length = int(rng.integers(config.answer // 2, config.answer * 3 // 2 + 1))
            prompts.append(prompt)
            answers.append(rng.integers(5, 300, length).tolist())
    return prompts, answers


def base_pass(config: FitStepsConfig) -> Step:
    """Variants of the base's pass over whole rollouts. Tokens count prompts and answers."""
    import tempfile

    import torch

    from training.base_cache import Budget, CacheStore
    from training.hf_model import batches, load_model
    from training.stages.score import sequence_entropies

    torch.set_num_threads(config.threads)
    prompts, answers = rollouts(config)
    total = sum(map(len, prompts)) + sum(map(len, answers))
    single, half = load_model(config.model, "float32"), load_model(config.model, "bfloat16")

    def score(model: Any) -> int:
        lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
        for batch in batches(lengths, 16384):
            sequence_entropies(model, [prompts[i] for i in batch], [answers[i] for i in batch])
        return total

    def cache(model: Any, shared: bool) -> int:
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        pieces = (prompts, answers) if shared else (rows, [[]] * len(rows))
        with tempfile.TemporaryDirectory() as folder:
            store = CacheStore(model, *pieces, Budget(float("inf"), 0), Path(folder, "cache"))
            store.fill("cache")
        return total

    return {
        "entropies, float32": lambda: score(single),
        "entropies, bfloat16": lambda: score(half),
        "keys and values, float32, whole rollouts": lambda: cache(single, False),
        "keys and values, bfloat16, whole rollouts": lambda: cache(half, False),
        "keys and values, bfloat16, prompts shared": lambda: cache(half, True),
    }


def always_step(config: FitStepsConfig) -> Step:
    """Variants of the loss at every position and its gradient, for a batch of rollouts."""
    import torch

    from adapters.recipe import Lora, Objective
    from training.contrastive_trainer import TrainingRow, collate, predicting_states
    from training.hf_model import head, load_model
    from training.lora_model import peft_model
    from training.objective import batch_loss

    torch.set_num_threads(config.threads)
    model = peft_model(load_model(config.model), Lora(rank=16, alpha=32), 0)
    prompts, answers = rollouts(config)
    rows = [
        TrainingRow(
            prompt_ids=prompt,
            token_ids=answer,
            advantages=[1.0] * len(answer),
            decisions=[place % 20 == 0 for place in range(len(answer))],
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ][: config.rollouts]

    def step(positions: int | None) -> int:
        inputs = collate(rows)
        with torch.no_grad(), model.disable_adapter():
            base = predicting_states(model, inputs)
        tokens, advantage, decision, rollout = (
            inputs[name] for name in ("tokens", "advantage", "decision", "rollout")
        )
        objective = Objective(positions="all", kl_positions=positions)
        states = predicting_states(model, inputs)
        batch_loss(
            states, base, head(model), tokens, advantage, decision, rollout, objective
        ).backward()
        model.zero_grad()
        return len(inputs["tokens"])

    return {
        "KL at every position": lambda: step(None),
        "KL at 64 of each rollout": lambda: step(64),
    }


STEPS = {"sampling": sampling, "pass": base_pass, "step": always_step}


def measure(step: Step, runs: int) -> dict[str, list[float]]:
    """Variant -> tokens per second of each run; the variants take turns."""

    def speed(name: str) -> float:
        start = time.perf_counter()
        tokens = step[name]()
        return tokens / (time.perf_counter() - start)

    for work in step.values():
        work()  # warms up
    return in_turns(step, runs, speed)


def main() -> None:
    """Measure each step."""
    config = FitStepsConfig.load()
    prepare(config.threads)
    result = {}
    for title in config.only or STEPS:
        speeds = measure(STEPS[title](config), config.runs)
        first = next(iter(speeds.values()))
        print(f"\n{title}\n")
        print_table(
            ["", "tokens/s", "ratio to the first"],
            [[name, show(one, 1), show(ratios(one, first), 2)] for name, one in speeds.items()],
        )
        result[title] = {
            name: {"tokens_per_second": spread(one), "ratio": spread(ratios(one, first))}
            for name, one in speeds.items()
        }
    save(f"fit-steps-{Path(config.model).name}", {**config.values(), "steps": result})


if __name__ == "__main__":
    main()
