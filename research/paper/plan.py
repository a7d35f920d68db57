"""Which cells there are, in the order in which they are made: what others depend on comes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from research.paper.cells import Cell

# The controls that the method's critics ask for; on every base, with every seed.
CONTROLS: dict[str, tuple[str, ...]] = {
    "random-gate": ("--selection.gate", "random"),
    "random-reward": ("--selection.reward", "random"),
}


def _rank(rank: int) -> tuple[str, ...]:
    return ("--lora.rank", str(rank), "--lora.alpha", str(2 * rank))


def _targets(*modules: str) -> tuple[str, ...]:
    return ("--lora.target-modules", ",".join(f"{module}_proj" for module in modules))


# Decision points are drawn to what the base believes already: how much of a gain needs no reward.
SHARPENED = ("--objective.anchor-weight", "3", "--objective.anchor-temperature", "0.2")

# Decision points are made surer of what the adapter prefers.
SURER = ("--objective.entropy-weight", "0.3")

# As many rollouts, of more problems.
MANY = ("--limit", "256", "--sampling.rollouts", "4")

# One change to the recipe each; on the first base, with every seed.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "positive-only": ("--selection.advantages", "positive"),
    "every-position": ("--selection.gate", "none"),
    "gate-by-position": ("--selection.gate", "position"),
    **{f"rate-{rate}": ("--gate.rate", rate) for rate in ("0.02", "0.04", "0.1", "0.2")},
    **{f"rank-{rank}": _rank(rank) for rank in (1, 2, 4, 16, 32, 64)},
    "o-only": _targets("o"),
    "qkvo": _targets("q", "k", "v", "o"),
    "all-linear": _targets("q", "k", "v", "o", "gate", "up", "down"),
    **{f"problems-{n}": ("--limit", str(n)) for n in (10, 25, 50, 100, 200)},
    **{f"rollouts-{n}": ("--sampling.rollouts", str(n)) for n in (4, 8, 20)},
    "paper-objective": ("--objective.name", "paper"),
    **{f"kl-{weight}": ("--objective.kl-weight", weight) for weight in ("0", "0.05", "1")},
    "anchored": ("--objective.anchor-weight", "0.3"),
    "sharpened": SHARPENED,
    "sharpened-random-reward": (*SHARPENED, *CONTROLS["random-reward"]),
    "surer": SURER,
    "surer-random-reward": (*SURER, *CONTROLS["random-reward"]),
    "at-decision-points": ("--objective.positions", "decisions"),
    "mean-per-token": ("--objective.mean", "token"),
    "baseline-of-the-problem": ("--selection.baseline", "problem"),
    "many-problems": MANY,
    "many-problems-sharpened": (*MANY, *SHARPENED),
    "rollouts-as-answers": ("--sampling.rollout-temperature", "0.6"),
}

METHOD = "method"
LARGE_ENDING = "-large"  # of the large bases' names
# The recipe of the large bases has a temperature of the gate, that of the small ones has none; on
# every base the other way is a cell too. Each has the rollouts that help it, with a temperature
# within 1/30 of GRPO's generated tokens.
LARGE_LIMIT = ("--limit", "128")
# A temperature makes much of a little: this control never trains on a decision point.
SHUT = {"shut-gate": ("--selection.gate", "shut")}
WARM = "warm"
WARM_FLAGS = ("--sampling.rollouts", "12", "--optimizer.epochs", "2", "--gate.temperatures", "[]")
COOLED = "cooled"
COOLED_FLAGS = ("--sampling.rollouts", "12", "--gate.temperatures", "0.3,0.1")
GRPO_SEEDS = 2  # bases with all seeds of GRPO; the others have the first


def fits(base: str) -> dict[str, tuple[str, ...]]:
    """Variant -> flags, of the main table."""
    if base.endswith(LARGE_ENDING):
        controls = {n: (*LARGE_LIMIT, *flags) for n, flags in (CONTROLS | SHUT).items()}
        warm = {f"{WARM}-{n}": (*WARM_FLAGS, *flags) for n, flags in CONTROLS.items()}
        return {METHOD: LARGE_LIMIT, **controls, WARM: WARM_FLAGS, **warm}
    return {METHOD: (), **CONTROLS, COOLED: COOLED_FLAGS}


def plan(bases: Sequence[str], seeds: Sequence[int], ablations: Iterable[str]) -> list[Cell]:
    """All cells: the main table first, then what explains it, then the ablations.

    Args:
        bases: names; the first is that of the ablations.
        ablations: names of ABLATIONS.
    """
    main, explain = [], []
    for place, base in enumerate(bases):
        main.append(Cell(base, "base"))
        variants = fits(base)
        main += [
            Cell(base, "fit", name, seed, flags)
            for seed in seeds
            for name, flags in variants.items()
        ]
        main += [
            Cell(base, "grpo", seed=seed)
            for seed in (seeds if place < GRPO_SEEDS else seeds[:1])
        ]  # fmt: skip
        explain += [
            Cell(base, kind, tuned, seeds[0], variants.get(tuned, ()))
            for kind in ("footprint", "intervene")
            for tuned in (METHOD, "grpo")
        ]
        if base.endswith(LARGE_ENDING):  # GRPO is ahead by its choices, or by being surer of them
            explain += [
                Cell(base, "greedy", tuned, seed, variants[tuned])
                for tuned in (METHOD, WARM)
                for seed in seeds
            ]
            explain.append(Cell(base, "greedy", "grpo", seeds[0]))
    return [
        *main,
        *explain,
        *(
            Cell(bases[0], "fit", name, seed, ABLATIONS[name])
            for name in ablations
            for seed in seeds
        ),
    ]
