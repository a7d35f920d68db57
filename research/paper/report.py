"""The report of all cells that are there: README.md, report.json and plots, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.files import write_json, write_text
from research.paper.claims import judge
from research.paper.plan import METHOD
from research.paper.plots import plot_ablations, plot_overlaps
from research.paper.tables import (
    ABLATION_HEADER,
    HEADER,
    Results,
    Row,
    ablations,
    gate_rate,
    main_rows,
    markdown,
    show,
)

TUNED = ("grpo", METHOD)
_HEAD = """# The paper's claims, measured

Made by `{command}` from the cells beside this file: {made} of {planned} are there. Base models
are miniatures of this project (`python -m research.miniature pretrain --base NAME`); every score
is pass@1 at T 0.6 on six held-out benchmarks (`research/miniature/benchmarks.py`), with the
standard error over problems and seeds; gains are paired by problem, greedy answers' with the base's
greedy ones: they tell what a model would choose, however sure it is of it. `tokens`: generated for
training; those that answered held-out problems, to choose a checkpoint, are named below each table.
A temperature of the gate divides the adapter's logits where the gate is open; it is chosen on
held-out problems too, and shown beside the base that has it without an adapter. The large bases'
recipe has one; without it they are fitted from fewer rollouts, as before.
"""


def write_report(results: Results, folder: Path, command: str) -> dict[str, Any]:
    """Write it into `folder`; return what report.json holds."""
    claims = judge(results)
    parts = [
        _HEAD.format(command=command, made=len(results.found), planned=len(results.cells)),
        "## The claims\n",
        markdown(
            ["claim", "measured", "verdict"],
            [[c.text, "<br>".join(c.measured), f"**{c.verdict}**"] for c in claims],
        ),
    ]
    mains = {base: main_rows(results, base) for base in results.bases}
    for base, rows in mains.items():
        if rows:
            parts += [f"\n## {base}\n", markdown(HEADER, [one.cells() for one in rows.values()])]
            parts += _looks(results, base)
    footprints = {
        f"{tuned} on {base}": found[0]
        for base in results.bases
        for tuned in TUNED
        if (found := results.of(base, "footprint", tuned))
    }
    if footprints:
        parts.append("\n## The gate as a finder of changed positions\n")
        parts.append("![precision and recall over the gate rate](overlap.png)")
        plot_overlaps(footprints, folder / "overlap.png")
    changes = ablations(results, results.bases[0])
    if len(changes) > 1:
        parts.append(f"\n## Ablations on {results.bases[0]}, gated\n")
        parts.append(markdown(ABLATION_HEADER, [one.cells() for one in changes]))
        plot_ablations([one.row for one in changes], folder / "ablations.png")
        parts.append("\n![gain by ablation](ablations.png)")
    warnings = sorted(
        f"- {cell.id}: {sentence}"
        for cell, result in results.found.items()
        for sentence in result.get("warnings", ())
    )
    if warnings:
        parts += ["\n## What the fits warned of\n", *warnings]
    write_text(folder / "README.md", "\n".join(parts) + "\n")
    report = {
        "cells": [cell.id for cell in results.found],
        "missing": [cell.id for cell in results.cells if cell not in results.found],
        "claims": [claim._asdict() for claim in claims],
        "bases": {b: {k: _json(one) for k, one in rows.items()} for b, rows in mains.items()},
        "ablations": {
            one.row.label: _json(one.row)
            | {
                "change": one.change and one.change.value,
                "change_stderr": one.change and one.change.stderr,
            }
            for one in changes
        },
    }
    write_json(folder / "report.json", report)
    return report


def _json(row: Row) -> dict[str, Any]:
    return {
        "pass@1": row.score.value,
        "stderr": row.score.stderr,
        "n": row.score.n,
        "gain": row.gain and row.gain.value,
        "gain_stderr": row.gain and row.gain.stderr,
        "seeds": row.seeds,
        "tokens": row.tokens,
        "benchmarks": row.benchmarks,
    }


def _looks(results: Results, base: str) -> list[str]:
    """Footprints and interventions of a base, and the gate rate."""
    parts = []
    prints, steps = [], []
    for tuned in TUNED:
        for one in results.of(base, "footprint", tuned):
            shares = [show(one[n], "{:.2%}".format) for n in ("unshifted", "reranked", "shifted")]
            ratio = show(one["entropy_ratio"], "{:.1f}".format)
            prints.append([tuned, *shares, show(one["mean_rank"], "{:.2f}".format), ratio])
        for one in results.of(base, "intervene", tuned):
            steps += [
                [tuned, name, f"{r['pass@1']:.3f} ± {r['stderr']:.3f}", f"{r['taken_rate']:.3f}"]
                for name, r in one["results"].items()
            ]
    if prints:
        header = ["footprint of", "unshifted", "reranked", "shifted", "mean rank", "entropy ratio"]
        parts += ["", markdown(header, prints)]
    if steps:
        parts += ["", markdown(["tuned", "its token at", "pass@1", "share of tokens"], steps)]
    if fits := results.of(base, "fit", METHOD):
        rates = ", ".join(f"{gate_rate(one['gated']):.3f}" for one in fits)
        seconds = ", ".join(f"{one['cost']['seconds']:.0f}" for one in fits)
        steps_ = ", ".join(str(one["cost"]["steps"]) for one in fits)
        parts.append(
            f"\nReasonMaxxer: gate rate {rates}; {steps_} optimizer steps; {seconds} s a fit; "
            f"{_heldout(fits)} tokens to choose by."
        )
    for one in results.of(base, "grpo"):
        end = "stopped rising" if one["stopped_rising"] else "was still rising at its last step"
        parts.append(
            f"\nGRPO: {one['cost']['steps']} optimizer steps, {one['cost']['seconds']:.0f} s; "
            f"held-out accuracy {end}; kept step {one['kept']['step']}; {_heldout([one])} "
            "tokens to choose by."
        )
    return parts


def _heldout(seeds: list[dict[str, Any]]) -> str:
    """Tokens that chose the checkpoints, millions, each seed's."""
    return ", ".join(f"{one['cost']['heldout_tokens'] / 1e6:.3f} M" for one in seeds)
