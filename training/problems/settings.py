"""Settings of commands that read problems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from training.config import Config


class ProblemsConfig(Config):
    """Base of the settings of each command that reads problems."""

    data_dir: Path | None = Field(
        None,
        description="Folder with local copies of benchmarks, NAME.jsonl or NAME.parquet; default: "
        "the environment variable REASONMAXXER_DATA_DIR, else the hub.",
    )

    @field_validator("data_dir")
    @classmethod
    def _is_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not os.path.isdir(value):
            raise ValueError("is not a folder")
        return value


class ColumnsConfig(ProblemsConfig):
    """Base of the settings of commands to which users bring files and datasets of their own."""

    problem_field: str = Field(
        "problem",
        description="Column with the question, or with chat messages; a.b is b within a. For files "
        "and hub datasets.",
    )
    answer_field: str = Field("answer", description="Column with the reference answer, as above.")
    id_field: str = Field("id", description="Column with the problem's id, as above.")
    grader: Literal["math", "choice", "text"] = Field(
        "math",
        description="What grades answers to files and hub datasets: math, an option's letter "
        "(choice), or the same words (text).",
    )
    dataset_config: str | None = Field(None, description="Configuration of a hub dataset.")
    split: str | None = Field(None, description="Split of a hub dataset.")

    @property
    def reading(self) -> dict[str, Any]:
        """The arguments of `load_problems` that these settings are."""
        same = ("problem_field", "answer_field", "id_field", "grader", "split", "data_dir")
        return {name: getattr(self, name) for name in same} | {"config": self.dataset_config}
