"""The training step at full size: one model and chunked logits, against two models and full logits.

    python -m benchmarks.training_step                             (a GPU: Qwen2.5-1.5B's shape)
    python -m benchmarks.training_step --shape small --tokens 256  (any machine)

Random weights of the real shape: time and memory do not depend on their values. The two ways take
turns in processes of their own, on the same rollouts; the estimate at the end is for the paper's
149 optimizer steps of 8 rollouts each.
"""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar, Literal

from pydantic import Field

from adapters.recipe import Lora, Objective
from benchmarks import engines
from benchmarks.processes import measured_by, peak_mib
from benchmarks.report import in_turns, print_table, save, show, spread, spreads
from training.config import Config

PAPER_ROLLOUTS = 149 * 8
SHAPES = {
    "qwen2.5-1.5b": engines.SHAPES["1.5b"],
    "small": engines.sizes(32000, 256, 1024, layers=4, heads=4, kv_heads=2),
}
WAYS = ("ours", "two models, full logits")


class StepConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.training_step"

    shape: Literal["qwen2.5-1.5b", "small"] = "qwen2.5-1.5b"
    tokens: int = Field(4096, ge=8, description="Length of a rollout.")
    steps: int = Field(5, ge=1, description="Timed steps of a run, one rollout each.")
    runs: int = Field(3, ge=1, description="Runs of each way, interleaved.")
    gradient_checkpointing: bool = False
    measure: str = Field("", description="Internal: measure this way, print JSON.")


def build(config: StepConfig) -> Any:
    """A Qwen2 of the shape with random weights: bfloat16 on a GPU, float32 on a CPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    torch.set_default_dtype(torch.bfloat16 if gpu else torch.float32)
    with torch.device("cuda" if gpu else "cpu"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                **SHAPES[config.shape],
                max_position_embeddings=config.tokens,
                tie_word_embeddings=True,
            )
        )
    torch.set_default_dtype(torch.float32)
    return model


def measure(way: str, config: StepConfig) -> None:
    """One run, in this process: prints one line of JSON."""
    import torch

    from training.hf_model import head, hidden_states
    from training.lora_model import peft_model
    from training.objective import (
        batch_loss,
        decision_loss,
        kl_divergence,
        position_weights,
        token_log_probs,
    )

    model = peft_model(build(config), Lora(), seed=0)
    second = build(config) if way != "ours" else None
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    device = model.device
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(SHAPES[config.shape]["vocab_size"], (1, config.tokens), generator=generator)
    decision = torch.rand(config.tokens - 1, generator=generator) < 0.05
    decision[0] = True
    ids, decision = ids.to(device), decision.to(device)
    mask, tokens = torch.ones_like(ids), ids[0, 1:]
    advantage = torch.ones(config.tokens - 1, device=device)
    rollout = torch.zeros(config.tokens - 1, dtype=torch.long, device=device)
    weights = position_weights(decision, rollout, Objective())
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=0.0)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            if second is None:
                with model.disable_adapter():
                    base = hidden_states(model, ids, mask)[0, :-1]
            else:
                base = hidden_states(second, ids, mask)[0, :-1]
        hidden = hidden_states(model, ids, mask)[0, :-1]
        if second is None:
            return batch_loss(
                hidden, base, head(model), tokens, advantage, decision, rollout, Objective()
            )
        # The straightforward way: both [T, V] in float32, kept for the backward pass.
        logits, base_logits = head(model)(hidden).float(), head(second)(base).float()
        on = decision_loss(
            token_log_probs(logits, tokens),
            token_log_probs(base_logits, tokens),
            advantage,
            Objective(),
        )
        return torch.where(decision, on, kl_divergence(base_logits, logits)) @ weights

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    finish()
    start = time.perf_counter()
    for _ in range(config.steps):
        step()
    finish()
    seconds = (time.perf_counter() - start) / config.steps
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_mib()
    result = {"tokens_per_second": config.tokens / seconds, "seconds": seconds, "peak_mib": peak}
    print(json.dumps(result))


def main() -> None:
    """Command line."""
    config = StepConfig.load()
    if config.measure:
        measure(config.measure, config)
        return
    flags = [
        *("--shape", config.shape, "--tokens", str(config.tokens), "--steps", str(config.steps)),
        *(["--gradient-checkpointing"] if config.gradient_checkpointing else []),
    ]
    module = "benchmarks.training_step"
    found = in_turns(WAYS, config.runs, lambda way: measured_by(module, "--measure", way, *flags))
    metrics = ("tokens_per_second", "seconds", "peak_mib")
    rows = [
        [way, *(show([one[m] for one in runs], 2 if m == "seconds" else 0) for m in metrics)]
        for way, runs in found.items()
    ]
    print_table(["training step", "tokens/s", "s per rollout", "peak MiB"], rows)
    minutes = spread([one["seconds"] for one in found["ours"]])["median"] * PAPER_ROLLOUTS / 60
    print(f"\nthe paper's {PAPER_ROLLOUTS} rollouts at {config.tokens} tokens: {minutes:.0f} min")
    save(
        "training_step",
        {
            "shape": config.shape,
            "tokens": config.tokens,
            "ways": spreads(found, metrics),
            "paper_minutes": minutes,
        },
    )


if __name__ == "__main__":
    main()
