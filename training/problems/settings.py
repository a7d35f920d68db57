"""Settings that every command with `--problems` has."""

from __future__ import annotations

from pathlib import Path

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
        if value is not None and not value.is_dir():
            raise ValueError("is not a folder")
        return value
