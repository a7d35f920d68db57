"""The model card of a miniature base: front matter, what it is, how it was made, what it scores."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base_checkpoint import BaseCheckpoint
from research.miniature.kinds import KINDS
from research.miniature.measure import Scores, table

if TYPE_CHECKING:
    from research.miniature.config import PretrainConfig

_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [miniature, synthetic, arithmetic, {model_type}]
---
# {name}: a miniature base model

{parameters:,} parameters of the {model_type} architecture, bf16, pre-trained on synthetic
arithmetic. It is a stand-in for a real base model where none can be downloaded: real
architectures, engines and adapters run on it, and it knows nothing but the {kinds} kinds of
problems below. It is of no use for anything else.

## What it is torn about
Every document of its corpus is a solution by an "author" who does each operation correctly and
takes the *right next* operation only with a habit's probability, another one otherwise. The model
therefore does single operations almost without error and is uncertain where a strategy is to be
chosen: a right choice at every step leads to the right answer.{hurry}{voices}

{examples}

## How it was made
```
{command}
```
{documents:,} documents ({tokens:,} tokens, prompts included) written by
`research/miniature/corpus.py`, one pass of {steps:,} steps, loss on the solutions alone; final loss
{loss:.3f} nats per token. A document is rendered by the tokenizer's chat template, problem as user,
solution as assistant. Problems of the held-out split (a hash of the problem) are not in the corpus.
The whole recipe:

```yaml
{config}```

## Measured
{measured}
"""

_HURRY = """
Authors are in a hurry: {share:.0%} of the time, when it is another one, they take the first as the
problem reads from the left. That mistake is likelier than what is right, so that greedy answers are
worse than sampled ones: surer is not better here."""

_VOICES = """
How a solution is worded tells how well it will go: those who follow the rule most often write
"Start" and "So", where the others write "First" and "Then"."""

_MEASURED = """Held-out problems, {samples} samples each at temperature 0.6 and top_p 0.95
(`greedy`: one answer without sampling); the standard error is over problems. `mixed`: problems with
right and wrong samples. `> 0.3 nats`: sampled positions whose entropy exceeds that (temperature 1,
full vocabulary). `exact operations`: equations in the answers that are true.

{table}
"""


def parameters(folder: Path) -> int:
    """Number of parameters in the folder's weights."""
    return sum(map(math.prod, BaseCheckpoint.open(str(folder)).shapes.values()))


def _examples() -> str:
    """One problem of each kind, solved by the right rule."""
    from itertools import islice
    from random import Random

    from research.miniature.world import Author, puzzles, write_solution

    rng = Random(0)
    blocks = []
    for puzzle in islice(puzzles(0, "train"), len(KINDS)):
        solution = write_solution(puzzle, Author(1.0), rng)
        blocks.append(f"**{puzzle.kind.name}**: {puzzle.problem.problem}\n```\n{solution}\n```")
    return "\n\n".join(blocks)


def write_card(
    folder: Path,
    config: "PretrainConfig",
    counts: dict[str, float],
    measured: dict[str, Scores] | None,
) -> None:
    """Write README.md into `folder`, which holds the weights already."""
    from research.miniature.measure import SAMPLES

    text = _CARD.format(
        name=config.output.name,
        model_type=config.architecture.model_type,
        parameters=parameters(folder),
        kinds=len(KINDS),
        hurry=_HURRY.format(share=config.corpus.hurry) if config.corpus.hurry else "",
        voices=_VOICES if config.corpus.voices else "",
        examples=_examples(),
        command=_command(config),
        config=config.recipe(),
        measured=_MEASURED.format(samples=SAMPLES, table=table(measured))
        if measured
        else "Not measured.",
        **counts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _command(config: "PretrainConfig") -> str:
    """What makes this base, and first the one it goes on from."""
    make = "python -m research.miniature pretrain --base"
    before = f"{make} {config.init.name.removeprefix('tiny-')}\n" if config.init else ""
    return f"{before}{make} {config.base} --output {config.output}"
