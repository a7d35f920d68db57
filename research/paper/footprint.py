r"""What tuning changed, token by token, on the same prefixes: the footprint (claims 1 and 2).

    python -m research.paper.footprint --model models/tiny-qwen2 --tuned tiny-math \
        --problems asked.jsonl
    python -m research.paper.footprint --model models/tiny-qwen2 --tuned runs/grpo/model \
        --problems asked.jsonl --output runs/footprint

`--tuned` is an adapter (a folder, or a name in the store; it runs at every step) or a whole model.
It answers the problems; then base and tuned model read those answers, and at each position the
tuned model's first choice is *unshifted* (the base's too), *reranked* (in the base's top 5) or
*shifted* (outside it). report.json and footprint.png say how often, at which of the base's ranks
and entropies, and how much of it a gate H > tau would have found.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from adapters.files import write_json
from adapters.gate import RATES, calibrate, entropy
from research.paper.base_and_tuned import Asked, Pair, PairConfig
from training.evaluation.statistics import Estimate, mean, ratio
from training.generation import Applied, Completion
from training.hf_model import batches, head, hidden_states, pad_right

logger = logging.getLogger("research.paper.footprint")

TOP = 5  # of the base: within it a choice is reranked, outside it shifted


class FootprintConfig(PairConfig):
    """Settings of a footprint."""

    program: ClassVar[str] = "python -m research.paper.footprint"


class Footprint(NamedTuple):
    """Positions of all answers, one after another, [T] each."""

    answer: npt.NDArray[np.int64]  # which one a position belongs to
    rank: npt.NDArray[np.int64]  # the base's, of the tuned model's first choice; 1 is the highest
    entropy: npt.NDArray[np.float32]  # of the base, nats

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """Where the two would go on differently."""
        return self.rank > 1


def choice_ranks(base_logits: torch.Tensor, tuned_logits: torch.Tensor) -> torch.Tensor:
    """The base's rank, from 1, of the tuned model's first choice: two [T, V] -> [T] long.

    Tokens as likely as that choice do not count before it, so that a tie is no change.
    """
    chosen = base_logits.gather(-1, tuned_logits.argmax(-1, keepdim=True))
    return (base_logits > chosen).sum(-1) + 1


@torch.inference_mode()
def footprint(
    pair: Pair,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    token_budget: int = 16384,
    chunk: int = 1024,
) -> Footprint:
    """Hold tuned model against base at every token of `answers` ([T] each, token ids)."""
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    found: dict[int, tuple[Any, Any]] = {}
    with tqdm(desc="footprint", unit="tok", total=sum(lengths), unit_scale=True) as bar:
        for rows in batches(lengths, token_budget):
            ids, mask = pad_right([prompts[row] + answers[row] for row in rows])
            ids, mask = ids.to(pair.device), mask.to(pair.device)
            with pair.base() as model:
                base, base_head = hidden_states(model, ids, mask), head(model)
            with pair.tuned() as model:
                tuned, tuned_head = hidden_states(model, ids, mask), head(model)
            for place, row in enumerate(rows):
                first, length = len(prompts[row]) - 1, len(answers[row])
                ranks, entropies = [], []
                for start in range(first, first + length, chunk):
                    part = slice(start, min(start + chunk, first + length))
                    base_logits = base_head(base[place, part])
                    ranks.append(choice_ranks(base_logits, tuned_head(tuned[place, part])))
                    entropies.append(entropy(base_logits))
                found[row] = (torch.cat(ranks).cpu().numpy(), torch.cat(entropies).cpu().numpy())
                bar.update(lengths[row])
    order = range(len(answers))
    return Footprint(
        np.repeat(order, [len(answer) for answer in answers]),
        np.concatenate([found[row][0] for row in order]),
        np.concatenate([found[row][1] for row in order]),
    )


def summarize(prints: Footprint) -> dict[str, Any]:
    """The paper's figures, each with its standard error over answers.

    unshifted, reranked, shifted: shares of positions. mean_rank: of the promoted tokens.
    entropy_ratio: of each answer with a changed position, the base's mean entropy there to that of
    all its positions. overlap: for each gate rate, how much of the gate is changed (precision) and
    how much of what is changed the gate finds (recall).
    """
    rank, h, changed = prints.rank, prints.entropy, prints.changed
    starts = np.flatnonzero(np.diff(prints.answer, prepend=-1))

    def per_answer(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.add.reduceat(np.asarray(values, dtype=np.float64), starts)

    tokens, changes = per_answer(np.ones_like(rank)), per_answer(changed)
    some = changes > 0
    shares = {
        "unshifted": ratio(per_answer(~changed), tokens),
        "reranked": ratio(per_answer(changed & (rank <= TOP)), tokens),
        "shifted": ratio(per_answer(rank > TOP), tokens),
    }
    at_changed = per_answer(h * changed)[some] / changes[some] if some.any() else np.array([])
    everywhere = per_answer(h)[some] / tokens[some]
    return {
        "positions": int(rank.size),
        "answers": len(starts),
        **{name: _estimate(share) for name, share in shares.items()},
        "mean_rank": _estimate(ratio(per_answer(rank * changed), changes)) if some.any() else None,
        "entropy_ratio": _estimate(mean(at_changed / everywhere)) if some.any() else None,
        "overlap": [overlap(prints, calibrate(h, rate)) for rate in RATES],
    }


def overlap(prints: Footprint, tau: float) -> dict[str, float | None]:
    """The gate H > tau as a finder of changed positions; None where nothing is open or changed."""
    opened, changed = prints.entropy > tau, prints.changed
    both, gate, all_ = (int(x.sum()) for x in (opened & changed, opened, changed))
    return {
        "tau": tau,
        "gate_rate": gate / opened.size,
        "precision": both / gate if gate else None,
        "recall": both / all_ if all_ else None,
    }


def _estimate(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "stderr": found.stderr}


# ------------------------------------------------------------------------------- as a command


def tuned_answers(asked: Asked) -> list[list[Completion]]:
    """What the tuned model answers, at every step."""
    adapter = asked.tuned.adapter
    with asked.generator() as generator:
        applied = Applied(adapter.path) if adapter else None
        return generator.generate(asked.prompts, asked.options, applied, label="tuned answers")


def run(config: FootprintConfig) -> dict[str, Any]:
    """The whole of it; returns what report.json holds."""
    asked = Asked.of(config)
    flat = [
        (prompt, one.token_ids)
        for prompt, answers in zip(asked.prompts, tuned_answers(asked), strict=True)
        for one in answers
    ]
    pair = Pair(asked.base, asked.tuned)
    prints = footprint(pair, [p for p, _ in flat], [a for _, a in flat])
    return {
        "base": asked.base.name,
        "tuned": asked.tuned.name,
        "family": asked.recipe.family,
        "problems": len(asked.prompts),
        "sampling": asdict(asked.options),
        **summarize(prints),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Shares of positions, and precision and recall over the gate rate, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = ("unshifted", "reranked", "shifted")
    values = [report[name]["value"] for name in names]
    bars = left.bar(names, values, yerr=[report[name]["stderr"] for name in names])
    left.bar_label(bars, [f"{value:.2%}" for value in values])
    left.set(ylabel="share of positions", title=f"{report['tuned']} on {report['base']}")
    rates = [row["gate_rate"] for row in report["overlap"]]
    for name in ("precision", "recall"):
        right.plot(rates, [row[name] for row in report["overlap"]], marker="o", label=name)
    right.set(xlabel="gate rate (H > tau)", xscale="log", ylim=(0, 1), title="gate and footprint")
    right.legend()
    figure.savefig(path, dpi=120)


def describe(report: dict[str, Any]) -> str:
    """A few lines for a terminal."""

    def show(name: str, form: str) -> str:
        found = report[name]
        return f"{found['value']:{form}} \u00b1 {found['stderr']:{form}}" if found else "-"

    lines = [f"{name:14}{show(name, '.2%')}" for name in ("unshifted", "reranked", "shifted")]
    lines += [f"{'mean rank':14}{show('mean_rank', '.2f')}"]
    lines += [f"{'entropy ratio':14}{show('entropy_ratio', '.1f')}"]
    for row in report["overlap"]:
        figures = [f"{name} {row[name]:.2f}" for name in ("precision", "recall") if row[name]]
        lines.append(
            f"gate rate {row['gate_rate']:.3f} (tau {row['tau']:.2f}): {', '.join(figures)}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = FootprintConfig.begin(argv)
    with config.usage_errors():
        report = run(config)
    print(describe(report))
    if config.output:
        config.save(config.output / "footprint.yaml")
        write_json(config.output / "report.json", report)
        plot(report, config.output / "footprint.png")


if __name__ == "__main__":
    main()
