"""What the gate costs: generated tokens per second, as a ratio to the base without LoRA enabled.

    python -m benchmarks.gate --batch 16 64

A model of about 31 M parameters with random weights, made on the spot, float32, one thread. Each
mode has an engine of its own in this process; runs are interleaved, so that what else the machine
does falls on all alike. Thresholds are found by measuring: the rate reached stands in the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
VOCAB, PROMPT, TOKENS = 8192, 32, 64


def make_model(folder: Path) -> tuple[Path, Path]:
    """(base, adapter): random, with entropies that vary; rank 32 on q, k, v, o."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    model.save_pretrained(str(folder / "base"))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(folder / "adapter"))
    return folder / "base", folder / "adapter"


def make_engine(base: Path, batch: int, gate: bool) -> Any:
    """vLLM without LoRA, or with LoRA and the gate. Nothing is compiled in either."""
    from vllm import LLM

    with_gate: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": 32,
        "max_loras": 1,
        "scheduler_cls": "serving.engine.scheduler.make_scheduler",
        "worker_cls": "serving.engine.worker.GateCPUWorker",
    }
    return LLM(
        model=str(base),
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=256,
        max_num_seqs=batch,
        block_size=32,
        kv_cache_memory_bytes=2**29,
        enable_prefix_caching=False,
        enforce_eager=True,
        disable_log_stats=True,
        **(with_gate if gate else {}),
    )


def run(engine: Any, batch: int, adapter: Path | None, tau: float | None) -> tuple[float, Any]:
    """(tokens per second, reports) of 2 x batch requests."""
    import torch
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (2 * batch, PROMPT), generator=generator).tolist()
    params = SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=None if tau is None else {"gate_tau": tau, "gate_trace": int(tau == 0)},
    )
    lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
    start = time.perf_counter()
    answers = engine.generate(
        [{"prompt_token_ids": one} for one in ids], params, lora_request=lora, use_tqdm=False
    )
    seconds = time.perf_counter() - start
    return 2 * batch * TOKENS / seconds, [answer.outputs[0].gate for answer in answers]


def threshold(engine: Any, batch: int, adapter: Path, wanted: float) -> tuple[float, float]:
    """(tau, rate it gives): bisection on the engine itself."""
    low, high = 0.0, 12.0
    tau = rate = 0.0
    for _ in range(12):
        tau = (low + high) / 2
        reports = run(engine, batch, adapter, tau)[1]
        rate = sum(report.gated for report in reports) / (2 * batch * TOKENS)
        if abs(rate - wanted) < 0.1 * wanted:
            break
        low, high = (tau, high) if rate > wanted else (low, tau)
    return tau, rate


def measure(base: Path, adapter: Path, batch: int, runs: int) -> None:
    """Print the table of one batch size."""
    plain, gated = make_engine(base, batch, gate=False), make_engine(base, batch, gate=True)
    two, ten = (threshold(gated, batch, adapter, wanted) for wanted in (0.02, 0.1))
    modes: dict[str, tuple[Any, Path | None, float | None]] = {
        "base without LoRA": (plain, None, None),
        "gate never opens": (gated, adapter, 1e9),
        f"gated {two[1]:.1%}": (gated, adapter, two[0]),
        f"gated {ten[1]:.1%}": (gated, adapter, ten[0]),
        "always": (gated, adapter, None),
    }
    speeds: dict[str, list[float]] = {mode: [] for mode in modes}
    for turn in range(runs + 1):  # the first is a warm-up
        for mode, (engine, lora, tau) in modes.items():
            speed = run(engine, batch, lora, tau)[0]
            if turn:
                speeds[mode].append(speed)
    print(f"\n| batch {batch} | tokens/s | ratio to base |\n|---|---|---|")
    for mode, values in speeds.items():
        ratios = [v / b for v, b in zip(values, speeds["base without LoRA"], strict=True)]
        print(f"| {mode} | {statistics.median(values):.0f} | {statistics.median(ratios):.3f} |")


def main() -> None:
    """Measure each batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)

    from serving.engine import report

    report.install()
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = make_model(Path(folder))
        for batch in arguments.batch:
            measure(base, adapter, batch, arguments.runs)


if __name__ == "__main__":
    main()
