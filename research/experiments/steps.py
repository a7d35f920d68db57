"""What does an adapter change in an answer: how many steps it shows, or whether they are right?

    python -m research.experiments.steps base=runs/x/answers-base-1 gated=runs/x/answers-gated-2

A step is an equation between numbers, such as 67 - 21 = 46. The answers are folders that `evaluate`
keeps. The table has the steps of an answer, the share of right ones, and where answers fail: in a
step, though no step is wrong, without any step, or without a final answer.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from benchmarks.report import print_table
from training.grading.reading.arithmetic import read_number

_PLAIN = r"-?\d+(?:\.\d+)?"
_NUMBER = rf"(?:\({_PLAIN}\)|{_PLAIN})"
_SIGN = r"(?:[-+*/×÷]|\\times|\\div|\\cdot)"
# Not followed by a further sign: in 3 + 4 = 5 + 2 the right side is no number.
_STEP = re.compile(
    rf"(?<![\d.)\w])({_NUMBER}(?:\s*{_SIGN}\s*{_NUMBER})+)\s*=\s*({_PLAIN})"
    rf"(?!\.?\d|\s*{_SIGN}\s*\d)"
)
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "÷": "/"})
_BITS = 256
KINDS = ("right", "a wrong step", "no wrong step", "no step", "no final answer")


def steps(text: str) -> Iterator[bool]:
    """Of each step in an answer, whether it is right."""
    for left, right in _STEP.findall(text.replace("**", "").translate(_SIGNS)):
        numbers = [read_number(side) for side in (left, right)]
        try:
            values = [number.value(_BITS) for number in numbers if number is not None]
        except ValueError:  # a division by zero
            continue
        if len(values) == 2:
            yield values[0] == values[1]


def kind(answer: dict[str, Any], found: list[bool]) -> str:
    """How an answer ends; one of KINDS."""
    if answer["correct"]:
        return "right"
    if not answer["boxed"]:
        return "no final answer"
    if not found:
        return "no step"
    return "no wrong step" if all(found) else "a wrong step"


def row(name: str, answers: list[dict[str, Any]]) -> list[str]:
    """A line of the table."""
    found = [list(steps(answer["text"])) for answer in answers]
    kinds = Counter(map(kind, answers, found))
    every = [right for one in found for right in one]
    count = len(answers)
    return [
        name,
        str(count),
        f"{len(every) / count:.2f}",
        f"{sum(every) / max(len(every), 1):.3f}",
        *(f"{kinds[name] / count:.3f}" for name in KINDS),
    ]


def main(arguments: list[str]) -> None:
    """The table of all folders, each given as NAME=FOLDER."""
    rows = []
    for argument in arguments:
        name, _, folder = argument.partition("=")
        parts = sorted(map(str, Path(folder or "-").glob("part-*.parquet")))
        if not parts:
            print(f"{argument}: not NAME=FOLDER with a folder of kept answers", file=sys.stderr)
            raise SystemExit(2)
        rows.append(row(name, ds.dataset(parts).to_table().to_pylist()))
    print_table(["", "answers", "steps of one", "steps right", *KINDS], rows)


if __name__ == "__main__":
    main(sys.argv[1:])
