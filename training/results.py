"""Graded answers: how they are kept, resumed, and summed up.

Recorder   takes answers as they come, verifies them in batches, writes Parquet parts
Result     what they say: pass@1 with its standard error, per-problem scores for pairing
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from adapters.manifest import Mode, Score
from training.generate import TokenRate
from training.metrics import (
    Estimate,
    Floats,
    mean,
    paired_difference,
    pass_at_1,
    pass_at_k,
    per_problem,
    ratio,
)
from training.problems import Problem
from training.run import Parts
from training.verify import Verifier

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("problem_sha256", pa.string()),  # of what is asked and graded: a changed one is asked anew
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("gated", pa.int32()),
        ("finish_reason", pa.string()),  # stop, length
        ("correct", pa.bool_()),
        ("boxed", pa.bool_()),
        ("timed_out", pa.bool_()),
    ]
)
_GRADES = [name for name in SCHEMA.names if name != "text"]
# Answers are verified and written together; what a kill loses at most.
_BATCH = 256
_SECONDS = 30.0


class Reply(NamedTuple):
    """One answer of a model."""

    text: str
    tokens: int  # generated, with the end-of-sequence token
    finish_reason: str  # "stop" or "length"
    gated: int = 0  # tokens sampled through the open gate


@dataclass(frozen=True)
class Result:
    """Graded answers of one model; every array is [problems, samples], in the problems' order."""

    label: str
    mode: Mode
    source: str  # benchmark name or problems file
    temperature: float
    problem_ids: list[str]
    correct: npt.NDArray[np.bool_]
    boxed: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    gated: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    timed_out: int = 0
    sources: Sequence[str] = ()  # each problem's part of a mixture; empty: not a mixture

    @property
    def n(self) -> int:
        """Number of problems."""
        return len(self.problem_ids)

    @property
    def samples(self) -> int:
        """Answers per problem."""
        return int(self.correct.shape[1])

    @property
    def scores(self) -> Floats:
        """Mean correctness of each problem, [problems]."""
        return per_problem(self.correct)

    @property
    def pass_at_1(self) -> Estimate:
        return pass_at_1(self.correct)

    @property
    def stderr(self) -> float:
        """Standard error of pass@1, over problems."""
        return self.pass_at_1.stderr

    @property
    def boxed_rate(self) -> Estimate:
        return mean(per_problem(self.boxed))

    @property
    def mean_tokens(self) -> Estimate:
        return mean(per_problem(self.tokens))

    @property
    def truncated_rate(self) -> Estimate:
        return mean(per_problem(self.truncated))

    @property
    def gate_rate(self) -> Estimate:
        """Gated tokens / generated tokens."""
        return ratio(self.gated.sum(-1), self.tokens.sum(-1))

    def by_source(self) -> dict[str, Estimate]:
        """pass@1 of each part of a mixture; empty where there are not several."""
        names = list(dict.fromkeys(self.sources))
        if len(names) < 2:
            return {}
        sources = np.array(self.sources)
        return {name: pass_at_1(self.correct[sources == name]) for name in names}

    def metrics(self, ks: Iterable[int] = ()) -> dict[str, Estimate]:
        """Metric -> estimate: pass@1, avg@K for K > 1 samples, pass@k for each of `ks`, the rest.

        Raises:
            ValueError: a k larger than the number of samples.
        """
        found = {"pass@1": self.pass_at_1}
        if self.samples > 1:
            found[f"avg@{self.samples}"] = self.pass_at_1
        found |= {f"pass@{k}": pass_at_k(self.correct, k) for k in sorted(set(ks) - {1})}
        return found | {
            "boxed_rate": self.boxed_rate,
            "mean_tokens": self.mean_tokens,
            "truncated_rate": self.truncated_rate,
            **({"gate_rate": self.gate_rate} if self.mode == "gated" else {}),
        }

    def against(self, other: Result) -> Estimate:
        """pass@1 of this minus that of `other`, paired by problem.

        Raises:
            ValueError: the two did not answer the same problems.
        """
        if self.problem_ids != other.problem_ids:
            raise ValueError(f"{self.label} and {other.label} answered different problems")
        return paired_difference(other.scores, self.scores)

    def to_scores(self, ks: Iterable[int] = ()) -> list[Score]:
        """The figures as a manifest keeps them."""
        return [
            Score(
                mode=self.mode,
                problems=self.source,
                metric=metric,
                value=estimate.value,
                stderr=_or_none(estimate.stderr),
                n=estimate.n,
                temperature=self.temperature,
            )
            for metric, estimate in self.metrics(ks).items()
        ]

    def report(self, ks: Iterable[int] = ()) -> dict[str, Any]:
        """The figures as JSON: {"pass@1": x, "stderr": s, "n": n, ...}."""
        values: dict[str, Any] = {}
        for metric, estimate in self.metrics(ks).items():
            values[metric] = estimate.value
            error = "stderr" if metric == "pass@1" else f"{metric}_stderr"
            values[error] = _or_none(estimate.stderr)
        parts = {
            name: {"pass@1": one.value, "stderr": _or_none(one.stderr), "n": one.n}
            for name, one in self.by_source().items()
        }
        return {
            "mode": self.mode,
            **values,
            "n": self.n,
            "samples": self.samples,
            "temperature": self.temperature,
            "timed_out": self.timed_out,
            **({"by_source": parts} if parts else {}),
        }


def _or_none(stderr: float) -> float | None:
    return None if math.isnan(stderr) else stderr


def compare(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each later result against the first, paired by problem, as JSON."""
    differences = []
    for result in results[1:]:
        gain = result.against(results[0])
        differences.append(
            {
                "of": result.label,
                "against": results[0].label,
                "pass@1": gain.value,
                "stderr": _or_none(gain.stderr),
                "n": gain.n,
            }
        )
    return differences


def table(results: Sequence[Result], ks: Iterable[int] = ()) -> str:
    """The results as a table for a terminal, and the paired differences below it."""
    ks = sorted(set(ks))
    columns = list(dict.fromkeys(metric for result in results for metric in result.metrics(ks)))
    rows = [["", "n", "samples", *columns]]
    for result in results:
        cells = {
            metric: f"{estimate.value:.1f}" if metric == "mean_tokens" else str(estimate)
            for metric, estimate in result.metrics(ks).items()
        }
        figures = [cells.get(metric, "") for metric in columns]
        rows.append([result.label, str(result.n), str(result.samples), *figures])
    lines = _aligned(rows)
    for result in results[1:]:
        gain = result.against(results[0])
        lines.append(
            f"{result.label} - {results[0].label}: pass@1 {gain.signed} (paired, {gain.n} problems)"
        )
    parts = [result.by_source() for result in results]
    if parts and parts[0]:
        rows = [["pass@1 by source", "n", *(result.label for result in results)]]
        for name, first in parts[0].items():
            rows.append([name, str(first.n), *(str(part.get(name, "")) for part in parts)])
        lines += ["", *_aligned(rows)]
    return "\n".join(line.rstrip() for line in lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with columns of equal width, the first underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


class Recorder:
    """Answers on their way to a Result. Usable from several threads.

    Args:
        problems: what is being asked, `samples` times each.
        folder: where Parquet parts are kept, and found again after a kill; None: in memory alone.
            It must belong to one model and one set of sampling options.
        label: the progress bar's name.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        samples: int,
        verifier: Verifier,
        folder: Path | None = None,
        label: str = "evaluate",
    ) -> None:
        if not problems:
            raise ValueError("problems: there are none to ask")
        self._problems, self._samples, self._verifier = problems, samples, verifier
        self._keys = [(problem.id, _sha256(problem)) for problem in problems]
        if len({problem.id for problem in problems}) < len(problems):
            raise ValueError("problems: an id occurs twice")
        # One part for each batch that was verified.
        self._parts = Parts(folder, SCHEMA, flush_rows=1) if folder else None
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._batch: list[tuple[int, Sequence[Reply]]] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        if self._parts:
            for row in self._parts.read(_GRADES).to_pylist():
                self._rows[row["problem_id"], row["problem_sha256"]].append(row)
        self.missing = [
            index for index, key in enumerate(self._keys) if len(self._rows[key]) < samples
        ]
        done = len(problems) - len(self.missing)
        if done:
            logger.info("%s: %d of %d problems were answered before", label, done, len(problems))
        self._bar = tqdm(total=len(problems), initial=done, desc=label, unit="problem")
        self.sampled = TokenRate(self._bar)  # for an engine that tells of its tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what is finished, also when the run fails."""
        try:
            self.flush()
        finally:
            self._bar.close()

    def add(self, index: int, replies: Sequence[Reply]) -> None:
        """Take all of problem `index`'s answers."""
        if len(replies) != self._samples:
            raise RuntimeError(f"{len(replies)} answers came where {self._samples} were asked for")
        with self._lock:
            self._batch.append((index, replies))
            self._bar.update()
            full = len(self._batch) * self._samples >= _BATCH
            due = time.monotonic() - self._flushed > _SECONDS
        if full or due:
            self.flush()

    def flush(self) -> None:
        """Verify and write the answers that wait."""
        with self._lock:
            batch, self._batch = self._batch, []
            self._flushed = time.monotonic()
            flat = [
                (index, number, reply) for index, all_ in batch for number, reply in enumerate(all_)
            ]
            verdicts = self._verifier.check(
                [reply.text for _, _, reply in flat],
                [self._problems[index] for index, _, _ in flat],
            )
            rows = [
                {
                    "problem_id": self._keys[index][0],
                    "problem_sha256": self._keys[index][1],
                    "sample": number,
                    **reply._asdict(),
                    **verdict._asdict(),
                }
                for (index, number, reply), verdict in zip(flat, verdicts, strict=True)
            ]
            if self._parts and rows:
                self._parts.add(rows)
            for row in rows:
                del row["text"]  # long answers stay on disk alone
                self._rows[row["problem_id"], row["problem_sha256"]].append(row)
            graded = [row["correct"] for found in self._rows.values() for row in found]
            if graded:
                self.sampled.note = f"pass@1={np.mean(graded):.3f}"
                self.sampled.show()

    def result(self, label: str, mode: Mode, source: str, temperature: float) -> Result:
        """The result, once every problem is answered."""
        self.flush()
        rows = [sorted(self._rows[key], key=lambda row: row["sample"]) for key in self._keys]

        def column(name: str) -> list[list[Any]]:
            return [[row[name] for row in found] for found in rows]

        return Result(
            label=label,
            mode=mode,
            source=source,
            temperature=temperature,
            problem_ids=[problem.id for problem in self._problems],
            correct=np.array(column("correct"), dtype=np.bool_),
            boxed=np.array(column("boxed"), dtype=np.bool_),
            tokens=np.array(column("tokens"), dtype=np.int64),
            gated=np.array(column("gated"), dtype=np.int64),
            truncated=np.array(column("finish_reason")) == "length",
            timed_out=int(np.sum(column("timed_out"))),
            sources=[problem.source for problem in self._problems],
        )


def _sha256(problem: Problem) -> str:
    parts = [problem.problem, problem.answer]
    if problem.grading is not None:
        parts.append(problem.grading.model_dump_json())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
