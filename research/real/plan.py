"""Which cells there are of a base, in the order in which they are made.

What answers most for its cost comes first: the rule, the base, then the first seed of the method
and its controls, then the other seeds, then what explains them.
"""

from __future__ import annotations

from collections.abc import Sequence

from research.paper.cells import Cell

METHOD = "method"
RULE, BASE, GREEDY = "rule", "base", "greedy"
# Of the method's adapters: behind the gate at temperature 0, at every step, and the base behind
# their gate.
GATED_GREEDY, ALWAYS, ALONE = "gated-greedy", "always", "base-behind-the-gate"
GUIDED = "guided"  # the base alone, guided at decision points: MTI, which needs no training
FIT, SFT, GRPO = "fit", "sft", "grpo"
SIGNAL, FOOTPRINT, INTERVENE = "signal", "footprint", "intervene"
PAPER = "paper"  # fitted at every position, served at every step
TRANSFER, TEMPLATE, OVERLAP = "transfer", "template", "overlap"

# Variant -> flags of `training.fit`. All train on the same rollouts.
CONTROLS: dict[str, tuple[str, ...]] = {
    "random-rewards": ("--selection.reward", "random"),
    "random-positions": ("--selection.gate", "random"),
    "shut-gate": ("--selection.gate", "shut"),
    "right-answers-alone": ("--selection.advantages", "positive"),
}
# What the claim of low dimension needs, of the first seed.
SMALLER: dict[str, tuple[str, ...]] = {
    "rank-1": ("--lora.rank", "1", "--lora.alpha", "2"),
    "o-only": ("--lora.target-modules", "o_proj"),
}


def plan(base: str, seeds: Sequence[int], tasks: Sequence[str]) -> list[Cell]:
    """All cells of a base.

    Args:
        tasks: those that are measured; the first two that are trained on show the transfer. Empty:
            the rule is not applied yet.
    """
    first = [Cell(base, RULE)]
    if not tasks:
        return first
    main = [Cell(base, BASE), Cell(base, GREEDY)]
    for seed in seeds:
        main.append(Cell(base, FIT, METHOD, seed))
        main += [Cell(base, FIT, name, seed, flags) for name, flags in CONTROLS.items()]
        main += [Cell(base, kind, METHOD, seed) for kind in (GATED_GREEDY, ALWAYS, ALONE)]
    start = seeds[0]
    explain = [
        Cell(base, OVERLAP),
        Cell(base, SIGNAL, METHOD, start),
        *(Cell(base, FOOTPRINT, f"{METHOD}/{task}", start) for task in tasks),
        *(Cell(base, INTERVENE, f"{METHOD}/{task}", start) for task in tasks),
        *(Cell(base, FIT, name, start, flags) for name, flags in SMALLER.items()),
        Cell(base, GUIDED, METHOD, start),
        *(Cell(base, TRANSFER, task, start) for task in tasks[:2]),
        Cell(base, TEMPLATE, METHOD, start),
    ]
    others = [Cell(base, kind, "", seed) for seed in seeds for kind in (SFT, PAPER, GRPO)]
    return [*first, *main, *explain, *others]
