"""How much memory and time a fit takes, computed from the shape of the base.

    python -m training.resources                    # the table of docs/real-models-gpu.md
    python -m training.resources --memory-gb 141 --bandwidth 4800

Nothing here is measured. The terms are those that grow with the base; activations, CUDA graphs and
the allocator come on top, for which `ROOM` is kept free.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import ceil, inf

ROOM = 0.15  # share of a GPU's memory that is left to everything not counted
BYTES = 2  # bfloat16
# LoRA in float32: weights, gradients, and AdamW's two moments.
LORA_BYTES = 16


@dataclass(frozen=True)
class Shape:
    """What config.json tells of a dense decoder."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool  # embeddings are the head

    @property
    def parameters(self) -> int:
        """Weights of the matrices; norms and biases are less than a thousandth."""
        query, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.hidden * (2 * query + 2 * keys)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * BYTES * self.layers * self.kv_heads * self.head_size

    @property
    def gathered_bytes(self) -> int:
        """Whole weights that a process with a share of the base holds for a moment.

        Embeddings and head, and two layers: one that runs, and the next one, which is fetched.
        """
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return BYTES * (embeddings + 2 * (self.parameters - embeddings) // self.layers)

    def lora_parameters(self, rank: int) -> int:
        """On q_proj, o_proj and the MLP, as a gated adapter has them."""
        query = self.heads * self.head_size
        attention = 2 * (self.hidden + query)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


SHAPES = (
    Shape("Qwen2.5-1.5B", 28, 1536, 12, 2, 128, 8960, 151_936, True),
    Shape("Qwen2.5-7B", 28, 3584, 28, 4, 128, 18_944, 152_064, False),
    Shape("Qwen2.5-32B", 64, 5120, 40, 8, 128, 27_648, 152_064, False),
    Shape("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28_672, 128_256, False),
)


@dataclass(frozen=True)
class Gpu:
    """One GPU; defaults are an H100 with 80 GB."""

    memory_gb: float = 80
    bandwidth: float = 3350  # GB/s
    teraflops: float = 989  # bfloat16, dense
    utilization: float = 0.4  # of both, that real programs reach


@dataclass(frozen=True)
class Work:
    """One fit; defaults are the paper's."""

    problems: int = 300
    rollouts: int = 20
    answer: int = 800  # tokens
    gate_rate: float = 0.05  # decision points / tokens
    kept: int = 8  # rollouts of a problem that are trained on
    epochs: float = 2
    rank: int = 32
    batch: int = 256  # sequences decoded at a time


@dataclass(frozen=True)
class Estimate:
    """Of one base."""

    weights_gb: float
    sampling_gpus: int  # that share the weights (--tensor-parallel-size)
    kv_tokens: int  # that fit beside them, on all of those GPUs together
    # That train; with more than one the base is sharded (--use_fsdp). 0: however many there are,
    # each would hold too much at once.
    training_gpus: int
    training_gb: float  # of each process: its share of the base, LoRA, and its optimizer
    sampling_hours: float  # of these GPUs
    training_hours: float  # of those GPUs, without what they say to each other


def estimate(shape: Shape, gpu: Gpu, work: Work) -> Estimate:
    """Memory and time of a fit."""
    weights = BYTES * shape.parameters
    room = gpu.memory_gb * 1e9 * (1 - ROOM)
    gpus = 1
    while gpus * room < weights * 1.2:  # a fifth as much again for keys and values, at least
        gpus *= 2
    tokens = work.problems * work.rollouts * work.answer
    # Decoding reads all weights once for each step of a batch, and computes 2 P for each token.
    reading = tokens / work.batch * weights / (gpus * gpu.bandwidth * 1e9)
    computing = 2 * shape.parameters * tokens / (gpus * gpu.teraflops * 1e12)
    sampling = (reading + computing) / gpu.utilization
    # The base runs once over what is trained on; then the adapter, forward and back, at its
    # decision points: 2 P forward, and 2 P back through the frozen weights.
    trained = work.problems * work.kept * work.answer
    passes = 2 * trained + 4 * work.epochs * trained * work.gate_rate
    training = passes * shape.parameters / (gpu.teraflops * 1e12 * gpu.utilization)
    trainers = _trainers(shape, room, work.rank)
    held = _held(shape, trainers, work.rank) if trainers else _held_at_least(shape, work.rank)
    return Estimate(
        weights_gb=weights / 1e9,
        sampling_gpus=gpus,
        kv_tokens=int((gpus * room - weights) / shape.kv_bytes),
        training_gpus=trainers,
        training_gb=held / 1e9,
        sampling_hours=sampling / 3600,
        training_hours=training / trainers / 3600 if trainers else inf,
    )


def _trainers(shape: Shape, room: float, rank: int) -> int:
    """GPUs with so much room that must train together; 0: no number of them is enough."""
    if _held_at_least(shape, rank) >= room:
        return 0
    gpus = 1
    while _held(shape, gpus, rank) > room:
        gpus *= 2
    return gpus


def _held(shape: Shape, gpus: int, rank: int) -> float:
    """Bytes of one of so many training processes."""
    weights = BYTES * shape.parameters
    if gpus == 1:
        return weights + LORA_BYTES * shape.lora_parameters(rank)
    return weights / gpus + _held_at_least(shape, rank)


def _held_at_least(shape: Shape, rank: int) -> float:
    """The same, without its share of the base."""
    return shape.gathered_bytes + LORA_BYTES * shape.lora_parameters(rank)


HEAD = """\
| base | weights | GPUs to sample | tokens of cache | sampling | GPUs to train | each | training |
|---|---|---|---|---|---|---|---|"""


def table(gpu: Gpu, work: Work) -> str:
    """The bases as a Markdown table."""
    lines = [HEAD]
    for shape in SHAPES:
        one = estimate(shape, gpu, work)
        lines.append(
            f"| {shape.name} | {one.weights_gb:.0f} GB | {one.sampling_gpus} "
            f"| {one.kv_tokens // 1000:,} k | {_minutes(one.sampling_hours)} "
            f"| {one.training_gpus or 'too small'} | {one.training_gb:.0f} GB "
            f"| {_minutes(one.training_hours)} |"
        )
    return "\n".join(lines)


def _minutes(hours: float) -> str:
    if hours == inf:
        return ""
    return f"{max(1, ceil(hours * 60))} min"


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name, value in Gpu().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    given = vars(parser.parse_args(argv))
    for name, value in given.items():
        if not 0 < value < inf:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, not {value:g}")
    print(table(Gpu(**given), Work()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
