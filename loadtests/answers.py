"""What became of each request, and where the run stood: one JSON line each.

Times `at` are seconds since the test began; all others are milliseconds. Locust rounds the times in
its own tables (to whole milliseconds below 100), which is too coarse for gaps between tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CHAT, LONG, HOSTILE = "chat", "long", "hostile"


@dataclass
class Answer:
    """One request and its answer."""

    at: float  # sent, seconds since the test began
    model: str  # as asked
    kind: str = CHAT
    served: str = ""  # the `model` of the answer: NAME@HASH
    status: int = 0  # 0: no answer
    error: str = ""  # empty: answered as it should be, or, where hostile, refused so
    ms: float = 0.0  # from sending to the end
    ttft: float | None = None  # to the first text
    gaps: list[float] = field(default_factory=list)  # between two pieces of text
    tokens: int = 0
    prompt: int = 0  # tokens
    gated: int | None = None  # None: the model has no gate

    @property
    def arrivals(self) -> np.ndarray:
        """Seconds since the test began at which a piece of text came."""
        if self.ttft is None:
            return np.empty(0)
        return self.at + np.cumsum([self.ttft, *self.gaps]) / 1000

    @property
    def rate(self) -> float | None:
        """Tokens a second while it was written."""
        seconds = sum(self.gaps) / 1000
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    @property
    def gate_rate(self) -> float | None:
        """Gated tokens / generated tokens."""
        return self.gated / self.tokens if self.gated is not None and self.tokens else None


@dataclass(frozen=True)
class Phase:
    """A stretch of the run with one number of users."""

    name: str
    users: int
    start: float
    end: float


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    version: str
    start: float  # asked for
    end: float  # answered: from here on all new requests get it
    error: str = ""


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Dataclasses as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def append(file: Any, answer: Answer) -> None:
    """One more line, gaps to 10 microseconds."""
    row = vars(answer) | {"gaps": [round(gap, 2) for gap in answer.gaps]}
    file.write(json.dumps(row) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_answers(folder: Path) -> list[Answer]:
    """All answers of a run, in the order they were asked for."""
    answers = [Answer(**row) for row in read_lines(folder / "answers.jsonl")]
    return sorted(answers, key=lambda answer: answer.at)


def read_phases(folder: Path) -> list[Phase]:
    """The phases of a run."""
    return [Phase(**row) for row in read_lines(folder / "phases.jsonl")]


def read_moves(folder: Path) -> list[Move]:
    """The moves of an alias during a run; none where none was to move."""
    path = folder / "moves.jsonl"
    return [Move(**row) for row in read_lines(path)] if path.exists() else []
