"""A long prompt shared by several adapters: time to the first token, beside the base's own.

    python -m benchmarks.prefix --adapters 8

Requests come one at a time, the same long prompt with a short tail of their own: from the base
without LoRA, from a gated model for each adapter, and from each adapter at every step. Gated
requests share the base's KV of the prompt; an adapter at every step can share none with another.
Where the gate opens at the first token, that token takes one step more: both cases are shown.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from benchmarks.engines import LONGEST, SHAPES, Shape, exactly, make_engine, make_model, prepare
from benchmarks.report import print_table, ratios, save, show, spread
from training.config import Config
from vllm_gate.params import NEVER

ALWAYS = 0.0  # nats
BASE = "base without LoRA"


class PrefixConfig(Config):
    """Settings of the benchmark."""

    program: ClassVar[str] = "python -m benchmarks.prefix"

    shape: Shape = "31m"
    adapters: int = Field(8, ge=2, description="Requests that share a prompt, an adapter each.")
    prompt: int = Field(2000, ge=64, le=3840, description="Tokens of the shared prompt.")
    tail: int = Field(16, ge=1, le=255, description="Tokens of each request's own.")
    runs: int = Field(5, ge=1, description="Runs of each mode, interleaved, on fresh prompts.")


def first_token(engine: Any, prompt: list[int], lora: Any, tau: float | None) -> float:
    """Seconds from the request to its first token."""
    params = exactly(1, extra_args=None if tau is None else {"gate_tau": tau})
    start = time.perf_counter()
    engine.generate([{"prompt_token_ids": prompt}], params, lora_request=lora, use_tqdm=False)
    return time.perf_counter() - start


def measure(config: PrefixConfig, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of the first request and of the others, of each mode and run."""
    import torch
    from vllm.lora.request import LoRARequest

    base, paths, parameters = make_model(folder, config.shape, config.adapters)
    print(f"{parameters / 1e6:.1f} M parameters")
    limits = {"max_num_seqs": 8, "max_model_len": LONGEST, "enable_prefix_caching": True}
    plain = make_engine(base, gate=False, **limits)
    gated = make_engine(base, gate=True, adapters=config.adapters, **limits)
    loras = [LoRARequest(f"adapter-{n}", n, str(path)) for n, path in enumerate(paths, 1)]
    nothing = [None] * config.adapters
    modes: dict[str, tuple[Any, list[Any], float | None]] = {
        BASE: (plain, nothing, None),
        "gated, first token is the base's": (gated, loras, NEVER),
        "gated, first token is corrected": (gated, loras, ALWAYS),
        "always": (gated, loras, None),
    }
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        vocabulary = SHAPES[config.shape]["vocab_size"]
        return torch.randint(1, vocabulary, (count,), generator=generator).tolist()

    times: dict[str, dict[str, list[float]]] = {mode: {"first": [], "others": []} for mode in modes}
    for turn in range(config.runs + 1):
        for mode, (engine, with_loras, tau) in modes.items():
            shared = tokens(config.prompt)
            seconds = [
                first_token(engine, shared + tokens(config.tail), lora, tau) for lora in with_loras
            ]
            if turn:  # the first loads the adapters
                times[mode]["first"].append(1000 * seconds[0])
                times[mode]["others"].append(1000 * statistics.median(seconds[1:]))
    return times


def main() -> None:
    """Command line."""
    config = PrefixConfig.load()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(config, Path(folder))
    others = {mode: found["others"] for mode, found in times.items()}
    ratio = {mode: ratios(values, others[BASE]) for mode, values in others.items()}
    print(f"\nmedian (range) of {config.runs} runs\n")
    print_table(
        [
            f"{config.prompt} tokens, shared by {config.adapters}",
            "first request, ms",
            "others (median of a run), ms",
            "to the base's",
        ],
        [
            [
                mode,
                show(found["first"]),
                show(found["others"], 1),
                show(ratio[mode], 2),
            ]
            for mode, found in times.items()
        ],
    )
    figures = {
        mode: {which: spread(values) for which, values in found.items()}
        for mode, found in times.items()
    }
    to_base = {mode: spread(values) for mode, values in ratio.items()}
    save("prefix", {**config.values(), "ms": figures, "others_to_the_base": to_base})


if __name__ == "__main__":
    main()
