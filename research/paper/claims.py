"""Each claim of the paper beside what was measured: holds, holds in part, does not hold.

A claim holds where it does on every base that was measured, in part where it does on some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from research.paper.tables import ALONE, COOLER, GRPO, OURS, Results, Row, ablations, main_rows
from training.evaluation.statistics import ratio_over_seeds

SHARE_OF_GAIN = 0.95  # of GRPO's, for as good
TOKENS = 30  # GRPO generates at least so many times ours


class Claim(NamedTuple):
    """One claim and its verdict."""

    text: str
    measured: list[str]  # a line a base
    verdict: str


def verdict(found: dict[str, bool]) -> str:
    """Base, or a part of the claim on it -> whether it holds there -> the verdict."""
    if not found:
        return "not measured"
    if all(found.values()):
        return "holds"
    return "holds in part" if any(found.values()) else "does not hold"


Measured = tuple[list[str], dict[str, bool]]  # lines, and what `verdict` judges


def judge(results: Results) -> list[Claim]:
    """The five claims, in the paper's order."""
    found = ((text, *measure(results)) for measure, text in CLAIMS.items())
    return [Claim(text, lines, verdict(ok)) for text, lines, ok in found]


def _footprints(results: Results) -> dict[str, dict[str, Any]]:
    """Base -> the footprint of GRPO's model."""
    return {b: found[0] for b in results.bases if (found := results.of(b, "footprint", "grpo"))}


def sparse(results: Results) -> Measured:
    """Claim 1."""
    prints = _footprints(results)
    lines = [
        f"{base}: {one['unshifted']['value']:.2%} unshifted, {one['reranked']['value']:.2%} "
        f"reranked, {one['shifted']['value']:.2%} shifted"
        for base, one in prints.items()
    ]
    ok = {
        base: one["unshifted"]["value"] >= 0.95 and one["shifted"]["value"] <= 0.001
        for base, one in prints.items()
    }
    return lines, ok


def uncertain(results: Results) -> Measured:
    """Claim 2."""
    prints = {b: one for b, one in _footprints(results).items() if one["entropy_ratio"]}
    lines = [
        f"{base}: {one['entropy_ratio']['value']:.1f} ± {one['entropy_ratio']['stderr']:.1f} times"
        for base, one in prints.items()
    ]
    ok = {base: one["entropy_ratio"]["value"] >= 5 for base, one in prints.items()}
    return lines, ok


def causal(results: Results) -> Measured:
    """Claim 3, of three parts on each base."""
    lines: list[str] = []
    ok: dict[str, bool] = {}
    for base in results.bases:
        for found in results.of(base, "intervene", "grpo"):
            scores = {name: one["pass@1"] for name, one in found["results"].items()}
            gain = scores["tuned"] - scores["base"]
            if gain <= 0:
                continue
            shares = {
                name: (scores[name] - scores["base"]) / gain
                for name in ("oracle", "random", "entropy")
            }
            lines.append(
                f"{base}: of a gain of {gain:+.3f}, "
                + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            )
            ok |= {f"{base}, {name}": shares[name] >= 0.8 for name in ("oracle", "entropy")}
            ok[f"{base}, random"] = shares["random"] <= 0.2
    return lines, ok


def low_dimensional(results: Results) -> Measured:
    """Claim 4."""
    base = results.bases[0]
    found = {one.row.label: one for one in ablations(results, base)}
    lines = []
    ok: dict[str, bool] = {}
    for name in ("rank-1", "o-only"):
        one = found.get(name)
        if one is None or one.change is None:
            continue
        gain, change = one.row.gain, one.change
        assert gain is not None
        lines.append(
            f"{base}: {name} {gain.signed}, to the recipe on the same seeds {change.signed}"
        )
        ok[name] = gain.value >= 0.8 * (gain.value - change.value)
    return lines, ok


def no_loop(results: Results) -> Measured:
    """Claim 5: by the recipe, or by it with a temperature of the gate."""
    lines: list[str] = []
    ok: dict[str, bool] = {}
    for base in results.bases:
        rows = main_rows(results, base)
        for way in (OURS, COOLER):
            if not {GRPO, way} <= rows.keys():
                continue
            theirs, ours = rows[GRPO], rows[way]
            assert theirs.gain and ours.gain and theirs.tokens and ours.tokens
            assert theirs.gains is not None and ours.gains is not None
            share = ratio_over_seeds(ours.gains, theirs.gains)
            times = theirs.tokens / ours.tokens
            lines.append(
                f"{base}: {ours.gain.signed} gated{_cooler(rows, way)}, GRPO "
                f"{theirs.gain.signed} ({share.value:.0%} ± {share.stderr:.0%}) with {times:.1f} "
                "times the generated tokens"
            )
            enough = share.value >= SHARE_OF_GAIN and times >= TOKENS
            ok[base] = ok.get(base, False) or enough
    return lines, ok


def _cooler(rows: dict[str, Row], way: str) -> str:
    """What a gate with a temperature does without an adapter; nothing of one that has none."""
    if ALONE[way] not in rows:
        return ""
    alone = rows[ALONE[way]].gain
    assert alone is not None
    return f" with a temperature (the base behind that gate {alone.signed})"


CLAIMS: dict[Callable[[Results], Measured], str] = {
    sparse: (
        "RL changes few choices: at least 95 % of positions unshifted, none shifted (paper: "
        "95.9-99.0 %, 0 %)."
    ),
    uncertain: (
        "It changes them where the base is uncertain: the base's entropy there is at least 5 times "
        "the answer's mean (paper: 5-12)."
    ),
    causal: (
        "Those positions are the cause: the tuned model's token there, or where entropy exceeds "
        "tau, recovers its gain (at least 80 %), at random positions it does not (at most 20 %)."
    ),
    low_dimensional: (
        "The change is low-dimensional: rank 1, or o_proj alone, keeps at least 80 % of the gain."
    ),
    no_loop: (
        f"No RL loop is needed: at least {SHARE_OF_GAIN:.0%} of GRPO's gain with at most "
        f"1/{TOKENS} of its generated tokens."
    ),
}
