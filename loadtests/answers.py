"""What is kept of a run, one JSON line each: every answer, the phases, the moves of an alias.

Times `at`, `start` and `end` are seconds since the test began; all others are milliseconds. Locust
rounds the times in its own tables, which is too coarse for gaps between tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CHAT, LONG, HOSTILE = "chat", "long", "hostile"


@dataclass
class Answer:
    """One request and its answer."""

    at: float  # sent
    model: str  # as requested; of a hostile request: its kind
    kind: str = CHAT
    served: str = ""  # the version that answered, NAME@HASH; the base has none
    status: int = 0  # 0: no answer
    error: str = ""  # empty: answered as it should be; a hostile request: refused as it should be
    ms: float = 0.0  # from sending to the end
    ttft: float | None = None  # time to first token
    gaps: list[float] = field(default_factory=list)  # between two pieces of text
    tokens: int = 0
    prompt: int = 0  # tokens
    gated: int | None = None  # gated tokens; None: the model has no gate
    late: float = 0.0  # when sent, by the plan's rate; 0 without a rate

    @property
    def first(self) -> float | None:
        """Time to first token, from when the request was due."""
        return None if self.ttft is None else self.late + self.ttft

    @property
    def arrivals(self) -> np.ndarray:  # [pieces]
        """Seconds since the test began at which each piece of text came."""
        if self.ttft is None:
            return np.empty(0)
        return self.at + np.cumsum([self.ttft, *self.gaps]) / 1000

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first one."""
        seconds = sum(self.gaps) / 1000
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else None

    @property
    def gate_rate(self) -> float | None:
        """Gated tokens / generated tokens."""
        return self.gated / self.tokens if self.gated is not None and self.tokens else None


@dataclass(frozen=True)
class Phase:
    """A part of the run with a constant number of users."""

    name: str
    users: int
    start: float
    end: float


@dataclass(frozen=True)
class Move:
    """One move of an alias."""

    version: str
    start: float  # requested
    end: float  # answered: all later requests get this version
    error: str = ""


class MemorySample(NamedTuple):
    """The memory of the server's processes at one moment."""

    seconds: float
    mib: float


def read_stream(
    answer: Answer,
    start: float,
    read: Callable[[bytes], bytes],
    on_text: Callable[[float], None] | None = None,
) -> None:
    """Read a stream of chat, sent at `start`, and record in `answer` what came when.

    `read` reads up to and including a separator, and returns b"" at the end. `on_text` is called
    with the time of each piece of text. Times are perf_counter's. Raises ValueError if the stream
    broke off, or is not a stream of chat.
    """
    before, finished = start, False
    while event := read(b"\n\n"):
        if not event.startswith(b"data: "):
            continue
        if event.startswith(b"data: [DONE]"):
            break
        now = time.perf_counter()
        chunk = json.loads(event[len(b"data: ") :])
        if "error" in chunk:
            raise ValueError(f"in the stream: {chunk['error']}")
        for choice in chunk["choices"]:
            # What a server with a reasoning parser takes for thoughts is generated text, too.
            if choice["delta"].get("content") or choice["delta"].get("reasoning"):
                passed = 1000 * (now - before)
                if answer.ttft is None:
                    answer.ttft = passed
                else:
                    answer.gaps.append(passed)
                before = now
                if on_text is not None:
                    on_text(now)
            finished = finished or choice["finish_reason"] is not None
        fingerprint = chunk.get("system_fingerprint") or ""
        answer.served = fingerprint if "@" in fingerprint else answer.served
        if usage := chunk.get("usage"):
            answer.tokens, answer.prompt = usage["completion_tokens"], usage["prompt_tokens"]
            answer.gated = (usage.get("completion_tokens_details") or {}).get("gated_tokens")
    if not finished:
        raise ValueError("the stream ended without a finish_reason")
    while read(b"\n\n"):  # to the end of the body, which releases the connection
        pass


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclasses as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def append(file: Any, answer: Answer) -> None:
    """Write one more answer to an open file, with gaps to 10 microseconds."""
    row = vars(answer) | {"gaps": [round(gap, 2) for gap in answer.gaps]}
    file.write(json.dumps(row) + "\n")


def read_answers(folder: Path) -> list[Answer]:
    """Read the answers of a run, in the order of sending."""
    return sorted(read_lines(folder / "answers.jsonl", Answer), key=lambda answer: answer.at)


def read_lines(path: Path, record: Callable[..., Any]) -> list[Any]:
    """Read JSON lines as `record`s; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [record(**json.loads(line)) for line in file]
