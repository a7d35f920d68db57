"""The report on real models: real.md, real.json and a plot, from the cells that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.files import atomic_write, write_json, write_text
from research.paper.tables import markdown
from research.real import plan, ways
from research.real.claims import OPEN, Claim, judge
from research.real.tables import AGAINST, Line, Results, gain, gate_rate, lines, same_adapters
from research.real.tasks import training_tasks

_HEAD = """# The method on real models

Made by `{command}` from the cells beside this file: {made} of {planned} are there. Scores are
pass@1 on test problems that nothing was chosen by, one answer each (self-consistency: the vote of
{samples}), at the temperature of the base's recipe unless a row says greedy. ± is one standard
error, over problems and, in rows with several seeds, over seeds: what one seed varies by is not in
its row. Differences are paired by problem. Gains at the base's lengths describe, and prove nothing:
lengths are the adapter's doing too. Adapters are fitted task by task,
those for MATH-500 on GSM8K. All adapters of a task train on one set of rollouts, so that seeds
differ in training alone. The last step is measured, chosen by nothing. Where the gate has no
correction temperature it changes no token without an adapter, and its row is the base's.

## The claims
"""
_RULE = """
The rule, stated before anything was measured: a task is admitted where the base's pass@1 on {rule}
training problems lies between .15 and .85; of Reasoning Gym's tasks the first six in alphabetical
order are taken, and those behind them are not asked. GSM8K and MATH-500 (levels 1 to 3) are
measured whatever the rule says.
"""


def write_report(
    bases: dict[str, Results], folder: Path, command: str, rule: int, samples: int
) -> dict[str, Any]:
    """Write the report of all cells that are there into `folder`; returns what real.json holds."""
    claims = judge(bases)
    made = sum(len(one.found) for one in bases.values())
    planned = sum(len(one.cells) for one in bases.values())
    parts = [_HEAD.format(command=command, made=made, planned=planned, samples=samples)]
    parts.append(
        markdown(
            ["claim", "measured", "verdict"],
            [[c.text, "<br>".join(_with_verdicts(c)), f"**{c.verdict}**"] for c in claims],
        )
    )
    figures: dict[str, Any] = {}
    for base, results in bases.items():
        parts.append(f"\n## {base}\n")
        parts += _base(results, rule)
        figures[base] = {
            task: {name: _json(line) for name, line in lines(results, task).items()}
            for task in results.tasks
        }
    if any(any(tasks.values()) for tasks in figures.values()):
        plot_gains(bases, folder / "real-gains.png")
        parts.append("\n## Gains of the gated adapters\n\n![gains by task](real-gains.png)")
    write_text(folder / "real.md", "\n".join(parts) + "\n")
    report = {
        "cells": [cell.id for one in bases.values() for cell in one.found],
        "missing": [c.id for one in bases.values() for c in one.cells if c not in one.found],
        "claims": [claim._asdict() | {"verdict": claim.verdict} for claim in claims],
        "bases": figures,
    }
    write_json(folder / "real.json", report)
    return report


def _with_verdicts(claim: Claim) -> list[str]:
    """What was measured, each line with the verdict on its base and task."""
    told = [
        f"{line} ({claim.verdicts.get(line.partition(': ')[0], OPEN)})" for line in claim.measured
    ]
    return told or ["nothing yet"]


def _base(results: Results, rule: int) -> list[str]:
    """The chapter of a base."""
    parts = []
    if found := results.of(plan.RULE):
        parts.append(_RULE.format(rule=rule))
        rows = [
            [name, f"{one['pass@1']:.3f} ± {one['stderr']:.3f}", f"{one['boxed']:.2f}",
             "yes" if one["admitted"] else "no", "yes" if name in results.tasks else ""]
            for name, one in found[0]["tasks"].items()
        ]  # fmt: skip
        parts.append(markdown(["task", "base", "boxed", "admitted", "measured"], rows))
    for task in results.tasks:
        table = list(lines(results, task).values())
        if table:
            parts.append(f"\n### {task}\n")
            parts.append(markdown(HEADER, [_cells(line) for line in table]))
            rate = gate_rate(results, task)
            if rate:
                parts.append(f"\nThe gate opened at {rate.value:.1%} of the tokens.")
            controls = [
                f"{way.label} {less.signed}"
                for way in results.ways
                if way.trained in ways.CONTROLS and (less := gain(results, task, ways.GATED, way))
            ]
            if controls:
                parts.append(f"\nGated less each control: {', '.join(controls)}.")
            others = [
                f"{way.label} {less.signed}"
                for way in ways.SAME_ADAPTERS
                if (less := same_adapters(results, task, way))
            ]
            if others:
                told = ", ".join(others)
                parts.append(f"\nOther ways less gated, paired by adapter and problem: {told}.")
    return [*parts, *_explained(results)]


HEADER = [
    "", "pass@1", "seeds", *(f"to {one.label}" for one in AGAINST),
    "right of those that finished", "boxed", "tokens", "gain at the base's lengths",
]  # fmt: skip


def _cells(line: Line) -> list[str]:
    return [
        line.label,
        str(line.score),
        str(line.seeds),
        *(line.gains[one.name].signed if one.name in line.gains else "" for one in AGAINST),
        str(line.finished) if line.finished else "",
        "" if line.boxed is None else f"{line.boxed:.2f}",
        "" if line.tokens is None else f"{line.tokens:.0f}",
        line.matched.signed if line.matched else "",
    ]


def _explained(results: Results) -> list[str]:
    """Signal, the other prompt, overlap, cost."""
    parts = []
    sources = training_tasks(results.tasks)
    signals = [(task, one) for task in sources for one in results.of(plan.SIGNAL, task)]
    for task, one in signals:
        parts.append(f"\n### Where the gradient is: {task}, {one['rollouts']} rollouts\n")
        rows = [
            [name, f"{g['tokens']:.0f}", f"{g['signal_per_token']:.3f}", f"{g['share']:.1%}"]
            for name, g in one["gates"].items()
        ]
        parts.append(markdown(["trained at", "tokens", "signal per token", "share"], rows))
        places = ", ".join(f"{share:.0%}" for share in one["places"])
        parts.append(f"\nDecision points by tenth of the answer: {places}.")
    for task in results.tasks:
        if other := gain(results, task, ways.OTHER_GATED, ways.OTHER_BASE):
            parts.append(f"\nWith another instruction, gated to base on {task}: {other.signed}.")
    for one in results.of(plan.OVERLAP):
        shared = ", ".join(f"{task} {n} of {one['of'][task]}" for task, n in one["shared"].items())
        parts.append(f"\nTest problems that share 13 words in a row with a training one: {shared}.")
    for label, trained in (("fit", ways.METHOD), ("GRPO", ways.GRPO)):
        for task in sources:
            costs = [one["cost"] for one in results.fits(trained, task)]
            if costs:
                told = "; ".join(f"{c['tokens']:.0f} tokens, {c['seconds']:.0f} s" for c in costs)
                parts.append(f"\nCost of each {label} on {task}: {told}.")
    return parts


def _json(line: Line) -> dict[str, Any]:
    return {
        "pass@1": line.score.value,
        "stderr": line.score.stderr,
        "n": line.score.n,
        "seeds": line.seeds,
        "gains": {
            other: {"value": one.value, "stderr": one.stderr} for other, one in line.gains.items()
        },
        "finished": line.finished and line.finished.value,
        "boxed": line.boxed,
        "tokens": line.tokens,
    }


def plot_gains(bases: dict[str, Results], path: Path) -> None:
    """The gated adapters' gains over the base and over its greedy answers, with standard errors."""
    from matplotlib.figure import Figure

    shown = [
        (f"{base}: {task}", line)
        for base, results in bases.items()
        for task in results.tasks
        if (line := lines(results, task).get(ways.GATED.name))
    ]
    figure = Figure(figsize=(8, 0.4 * len(shown) + 1.2), layout="constrained")
    axes = figure.subplots()
    rivals = ((-0.15, ways.BASE, "tab:blue"), (0.15, ways.GREEDY, "tab:orange"))
    for offset, other, color in rivals:
        there = [
            (place, one.gains[other.name])
            for place, (_, one) in enumerate(shown)
            if other.name in one.gains
        ]
        axes.errorbar(
            [one.value for _, one in there],
            [place + offset for place, _ in there],
            xerr=[one.stderr for _, one in there],
            fmt="o", color=color, label=f"to {other.label}",
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="gain, pass@1")
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
