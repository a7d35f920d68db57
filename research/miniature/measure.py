"""What a miniature base can do: pass@1, pass@8, uncertain positions, exact operations.

python -m research.miniature measure --model models/tiny-qwen2 --problems 400
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, Field

from adapters.gate import entropy
from adapters.prompt import PromptRenderer
from adapters.recipe import Prompt
from research.miniature.kinds import KINDS
from research.miniature.kinds.numbers import apply
from research.miniature.world import Problem, puzzles
from training.config import Config

TAU = 0.3  # nats; a position above it counts as uncertain
SAMPLES = 8
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_EQUATION = re.compile(r"(-?\d+)([-+*/])(\d+)=(-?\d+)")


class Scores(BaseModel):
    """Measured on held-out problems at T 0.6, top_p 0.95, 8 samples a problem."""

    problems: int
    pass_at_1: float
    stderr: float = Field(description="Standard error of pass_at_1, over problems.")
    pass_at_8: float
    mixed: float = Field(description="Share of problems with both right and wrong samples.")
    greedy: float
    uncertain: float = Field(description="Share of sampled positions with entropy > 0.3 nats.")
    exact: float = Field(description="Share of written operations that are right.")
    boxed: float = Field(description="Share of answers with a box.")
    tokens: float = Field(description="Mean answer, in tokens.")


class MeasureConfig(Config):
    """Flags of `python -m research.miniature measure`."""

    program: ClassVar[str] = "python -m research.miniature measure"

    model: Path = Path("models/tiny-qwen2")
    problems: int = Field(400, ge=4)
    seed: int = Field(1, description="Seed of the problems and of the sampling.")
    threads: int = Field(2, ge=1)


class _Sampled(BaseModel):
    text: str
    entropies: list[float]


def boxed(text: str) -> str | None:
    """Content of the last box, None without one."""
    found = _BOXED.findall(text)
    return found[-1] if found else None


def _generate(model: object, tokenizer: object, prompts: list[str], sample: bool) -> list[_Sampled]:
    """Continue every prompt; entropies are the model's own, before temperature and top_p."""
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    assert isinstance(model, PreTrainedModel) and isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    sampling = {"temperature": 0.6, "top_p": 0.95, "top_k": 0} if sample else {}
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=sample,
            max_new_tokens=160,
            output_logits=True,
            return_dict_in_generate=True,
            **sampling,
        )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    entropies = torch.stack([entropy(step) for step in output.logits], dim=1)
    results = []
    for ids, values in zip(new.tolist(), entropies.tolist(), strict=True):
        end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        results.append(_Sampled(text=text, entropies=values[:end]))
    return results


def _operations(texts: Sequence[str]) -> tuple[int, int]:
    """(right, written) operations."""
    found = [match for text in texts for match in _EQUATION.findall(text)]
    return sum(apply(int(a), op, int(b)) == int(c) for a, op, b, c in found), len(found)


def measure(model: Path, problems: int = 400, seed: int = 1, threads: int = 2) -> dict[str, Scores]:
    """Scores of the model folder `model`, per kind and under "all"."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    # bf16 weights, float32 arithmetic: a CPU without a unit for bf16 takes ten times as long in it.
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    renderer = PromptRenderer.of(tokenizer, Prompt())
    asked = [puzzle.problem for puzzle in islice(puzzles(seed, "heldout"), problems)]
    texts = [renderer.text(problem.problem) for problem in asked]
    samples: list[list[_Sampled]] = []
    greedy: list[_Sampled] = []
    for start in range(0, len(asked), 64):
        part = texts[start : start + 64]
        flat = _generate(
            network, tokenizer, [text for text in part for _ in range(SAMPLES)], sample=True
        )
        samples += [flat[i : i + SAMPLES] for i in range(0, len(flat), SAMPLES)]
        greedy += _generate(network, tokenizer, part, sample=False)
    groups = defaultdict(list)
    for index, problem in enumerate(asked):
        groups[problem.kind].append(index)
        groups["all"].append(index)
    return {
        name: _scores(
            [asked[i] for i in group], [samples[i] for i in group], [greedy[i] for i in group]
        )
        for name in (*KINDS, "all")
        if (group := groups[name])
    }


def _scores(asked: list[Problem], samples: list[list[_Sampled]], greedy: list[_Sampled]) -> Scores:
    right = np.array(
        [
            [boxed(sample.text) == problem.answer for sample in row]
            for problem, row in zip(asked, samples, strict=True)
        ]
    )  # [problems, SAMPLES]
    rate = right.mean(1)
    flat = [sample for row in samples for sample in row]
    entropies = np.concatenate([sample.entropies for sample in flat])
    good, written = _operations([sample.text for sample in flat])
    return Scores(
        problems=len(asked),
        pass_at_1=float(rate.mean()),
        stderr=float(rate.std(ddof=1) / len(rate) ** 0.5) if len(rate) > 1 else float("nan"),
        pass_at_8=float(right.any(1).mean()),
        mixed=float(((rate > 0) & (rate < 1)).mean()),
        greedy=float(
            np.mean([boxed(g.text) == p.answer for g, p in zip(greedy, asked, strict=True)])
        ),
        uncertain=float((entropies > TAU).mean()),
        exact=good / max(written, 1),
        boxed=float(np.mean([boxed(sample.text) is not None for sample in flat])),
        tokens=float(np.mean([len(sample.entropies) for sample in flat])),
    )


def table(scores: dict[str, Scores]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| kind | problems | pass@1 | pass@8 | mixed | greedy | > 0.3 nats | exact operations |"
        " boxed | tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {s.problems} | {s.pass_at_1:.3f} ± {s.stderr:.3f} | {s.pass_at_8:.3f} |"
        f" {s.mixed:.2f} | {s.greedy:.3f} | {s.uncertain:.1%} | {s.exact:.2%} | {s.boxed:.1%} |"
        f" {s.tokens:.1f} |"
        for name, s in scores.items()
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `python -m research.miniature measure`."""
    config = MeasureConfig.load(argv)
    print(table(measure(config.model, config.problems, config.seed, config.threads)))
