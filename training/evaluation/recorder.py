"""Answers on their way to a result: verified in batches, written as they come, found again."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from adapters.manifest import Mode
from training.evaluation.result import Reply, Result
from training.generation.token_rate import TokenRate
from training.grading.verifier import Verifier
from training.problems import Problem
from training.run_folder import Parts, Stage

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
        ("correct", pa.bool_()),  # null: the grader cannot tell
        ("boxed", pa.bool_()),
        ("timed_out", pa.bool_()),
        ("reason", pa.string()),
    ]
)
_GRADES = [name for name in SCHEMA.names if name != "text"]
# Answers are verified and written together; what a kill loses at most.
_BATCH = 256
_SECONDS = 30.0


def answers_folder(output: Path | None, label: str, settings: dict[str, Any]) -> Path | None:
    """The folder in `output` for answers that depend on `label` and `settings` alone.

    Returns:
        OUTPUT/answers-LABEL-DIGEST; None where `output` is None.
    """
    if output is None:
        return None
    name = re.sub(r"[^\w.-]+", "-", label)
    return Stage.first(output, f"answers-{name}", settings | {"format": 3}).path()


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
            self._grade_overdue(self._parts)
        self.missing = [
            index for index, key in enumerate(self._keys) if len(self._rows[key]) < samples
        ]
        done = len(problems) - len(self.missing)
        if done:
            logger.info("%s: %d of %d problems were answered before", label, done, len(problems))
        self._bar = tqdm(total=len(problems), initial=done, desc=label, unit="problem")
        self.sampled = TokenRate(self._bar)  # for an engine that tells of its tokens

    def _grade_overdue(self, parts: Parts) -> None:
        """Grade again what overran another deadline than that of this verifier."""
        problems = dict(zip(self._keys, self._problems, strict=True))
        overdue = {
            (*key, row["sample"]): row
            for key in problems
            for row in self._rows[key]
            if row["timed_out"] and row["reason"] != self._verifier.overdue
        }
        if not overdue:
            return
        columns = ("problem_id", "problem_sha256", "sample")
        texts = {
            tuple(row[name] for name in columns): row["text"]
            for row in parts.read([*columns, "text", "timed_out"]).to_pylist()
            if row["timed_out"]
        }
        verdicts = self._verifier.check(
            [texts[key] for key in overdue], [problems[key[:2]] for key in overdue]
        )
        for row, verdict in zip(overdue.values(), verdicts, strict=True):
            row.update(verdict._asdict())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what is finished, also when the run fails."""
        try:
            self.flush()
        finally:
            self._bar.close()

    def add(self, index: int, replies: Sequence[Reply]) -> None:
        """Take all answers to the problem at `index`; verify and write a batch when it is full.

        Raises:
            RuntimeError: there are not `samples` answers.
        """
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
            graded = [
                row["correct"]
                for found in self._rows.values()
                for row in found
                if row["correct"] is not None
            ]
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
            correct=np.array(column("correct"), dtype=np.float64),
            boxed=np.array(column("boxed"), dtype=np.bool_),
            tokens=np.array(column("tokens"), dtype=np.int64),
            gated=np.array(column("gated"), dtype=np.int64),
            truncated=np.array(column("finish_reason")) == "length",
            timed_out=int(np.sum(column("timed_out"))),
            sources=[problem.source for problem in self._problems],
            reasons=Counter(
                row["reason"] for found in rows for row in found if row["correct"] is None
            ),
        )


def _sha256(problem: Problem) -> str:
    parts = [problem.problem, problem.answer]
    if problem.grading is not None:
        parts.append(problem.grading.model_dump_json())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
