"""Draw problems from a generator.

    python -m training.gym.draw chain_sum,min_terms=3 11 400     (task, seed, count)

Drawing runs in a process of its own, with a fixed `PYTHONHASHSEED`: several generators iterate over
sets of strings, and would draw other problems each time the same command starts. It also keeps what
generators print, and what they do to the global random state, out of a fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from typing import NamedTuple

from training.gym.entry import encode_entry
from training.gym.task import GymTask, require_reasoning_gym

_WITHOUT_NEW = 200  # draws in a row that repeat earlier questions: the generator has no more


class Drawn(NamedTuple):
    """One problem as a generator drew it."""

    draw: int  # its number, from 0
    question: str
    answer: str  # empty: the generator gives no reference answer
    entry: str  # JSON


def gym_seed(name: str, seed: int) -> int:
    """The seed that generator `name` is given for our `seed`.

    Reasoning Gym draws problem i from `Random(seed + i)`, so that its seeds 11 and 12 share all
    problems but one. A hash puts ours far apart.
    """
    digest = hashlib.sha256(f"reasoning_gym:{name}:{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # numpy wants less than 2^32


def draw(task: GymTask, seed: int, count: int) -> list[Drawn]:
    """Up to `count` problems with different questions, drawn in a process of its own.

    Raises:
        ValueError: the task is refused, or Reasoning Gym is not installed.
    """
    require_reasoning_gym()
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "training.gym.draw", str(task), str(seed), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise ValueError(f"reasoning_gym:{task}: drawing failed:\n{done.stderr.strip()[-2000:]}")
    return [Drawn(*json.loads(line)) for line in done.stdout.splitlines()]


def draw_here(task: GymTask, seed: int, count: int) -> list[Drawn]:
    """As `draw`, but in this process, whose hash seed must be 0."""
    most = count + _WITHOUT_NEW
    dataset = task.dataset(gym_seed(task.name, seed), most)
    drawn: dict[str, Drawn] = {}
    last = 0
    for index in range(1_000_000):
        if len(drawn) == count or index - last > _WITHOUT_NEW:
            break
        try:
            entry = dataset[index]
            question = str(entry["question"])
            stored = encode_entry(entry)
        except Exception as error:
            raise ValueError(f"reasoning_gym:{task}: problem {index} failed: {error!r}") from error
        key = " ".join(question.split())
        if key not in drawn:
            last = index
            answer = entry["answer"]
            drawn[key] = Drawn(index, question, "" if answer is None else str(answer), stored)
    return list(drawn.values())


def main(argv: list[str]) -> None:
    """Write the problems to standard output, one JSON array a line; exit code 2 on a bad task."""
    task, seed, count = argv
    try:
        with redirect_stdout(sys.stderr):  # generators print
            found = draw_here(GymTask.parse(task), int(seed), int(count))
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    for one in found:
        print(json.dumps(one))


if __name__ == "__main__":
    main(sys.argv[1:])
