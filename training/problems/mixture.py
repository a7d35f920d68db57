"""Several sources in one: `2*reasoning_gym:chain_sum+1*gsm8k_train`.

A weight is a source's share of the total. Shares are kept along the whole mixture, so that its
first hundred problems are mixed as its last hundred are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from training.problems.problem import Problem
from training.split_text import split_outside

_WEIGHTED = re.compile(r"(-?[\d.]+(?:e-?\d+)?)\s*\*(.*)", re.DOTALL)


class Part(NamedTuple):
    """One source of a mixture, and its weight."""

    weight: float
    source: str


def parse_mixture(text: str) -> list[Part]:
    """The parts of a mixture: WEIGHT*SOURCE, joined by "+"; a weight left out is 1.

    A text without "+" and weight is one part, and so is the path of a file that exists.

    Raises:
        ValueError: a part is empty, a bracket is not closed, or a weight is not a positive number.
    """
    if os.path.isfile(text):
        return [Part(1.0, text)]
    parts = []
    for piece in split_outside(text, "+"):
        weighted = _WEIGHTED.fullmatch(piece.strip())
        source = (weighted[2] if weighted else piece).strip()
        if not source:
            raise ValueError(f"'{text}' has an empty part; sources are joined as in gsm8k+math500")
        try:
            weight = float(weighted[1]) if weighted else 1.0
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise ValueError(f"'{piece.strip()}': a weight is a positive number, as in 2*gsm8k")
        parts.append(Part(weight, source))
    return parts


def interleave(
    parts: Sequence[Sequence[Problem]], weights: Sequence[float], limit: int | None = None
) -> list[Problem]:
    """Problems of all parts in the proportion of `weights`, until one runs out or `limit` is met.

    At each step the part that lags most behind its share gives its next problem. A question that an
    earlier problem asked is skipped.
    """
    waiting = [iter(part) for part in parts]
    taken = [0] * len(parts)
    shares = [weight / sum(weights) for weight in weights]
    seen: set[str] = set()
    mixed: list[Problem] = []
    while limit is None or len(mixed) < limit:
        behind = [share * (len(mixed) + 1) - n for share, n in zip(shares, taken, strict=True)]
        chosen = max(range(len(parts)), key=behind.__getitem__)
        problem = next((one for one in waiting[chosen] if one.question not in seen), None)
        if problem is None:
            break
        seen.add(problem.question)
        taken[chosen] += 1
        mixed.append(problem)
    return mixed
