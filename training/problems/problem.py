"""What a problem is: its text, its reference answer, and who grades answers to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from adapters.files import write_text


class Grading(BaseModel):
    """The grader of a problem that math-verify cannot grade, and what that grader needs to know.

    Everything is text, so that a problem can be stored, and its answers graded again, long after
    the process that drew it has ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grader: str = Field(description="A name in training.grading.GRADERS.")
    task: str = Field(description="Which task of that grader: generator and options, say.")
    entry: str = Field(description="JSON that the grader wrote when the problem was made.")


class Problem(BaseModel):
    """One problem and its reference answer.

    Attributes:
        grading: who grades it; None: math-verify.
        source: the part of a mixture that it comes from, for reports; not stored with the rest.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str
    problem: str
    answer: str
    grading: Grading | None = None
    source: str = Field("", exclude=True)

    @field_validator("id", "problem", "answer")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty")
        return value.strip()

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A problem that math-verify grades is stored, and hashed, as id, problem and answer.
        values: dict[str, Any] = handler(self)
        if values.get("grading") is None:
            values.pop("grading", None)
        return values

    @property
    def question(self) -> str:
        """The text with its white space normalized: two problems that share it are the same."""
        return " ".join(self.problem.split())


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write `problems` as JSONL; `load_problems` reads them back with their graders."""
    lines = []
    for problem in problems:
        values = problem.model_dump() | ({"source": problem.source} if problem.source else {})
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
