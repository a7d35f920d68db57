"""A command's configuration: one pydantic model, filled from YAML and overridden by flags.

    defaults  <  --config FILE  <  flags such as --lora.rank 8

A value that does not fit ends the command with exit code 2 and a line that names the field.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from adapters.command_line import CommandLine
from adapters.files import write_text


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the values of `high` laid over it, section by section."""
    merged = dict(low)
    for key, value in high.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_sections else value
    return merged


def check_greedy(flag: str, count: int, temperature: float | None) -> None:
    """Raise ValueError where several answers are asked for that would all be the same.

    Args:
        flag: of `count`.
    """
    if temperature == 0 and count > 1:
        raise ValueError(f"{flag}: {count} answers at --temperature 0 are one and the same; give 1")


class Config(CommandLine):
    """Base of every configuration. Subclasses set `program`."""

    # Each switch has both forms, --alias and --no-alias: the file may say the contrary.
    model_config = SettingsConfigDict(cli_implicit_flags="dual")

    config: Path | None = Field(None, description="YAML file with any of these settings.")

    @classmethod
    def begin(cls, argv: Sequence[str] | None = None) -> Self:
        """`load`, as a command does first; what it logs from then on goes to stderr."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        return cls.load(argv)

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Values below YAML and flags, once those are known."""
        return {}

    @classmethod
    def completed(cls, flags: dict[str, Any]) -> dict[str, Any]:
        """Defaults, YAML and flags, each over the one before."""
        file = _read_yaml(flags["config"]) if flags.get("config") else {}
        given = merge(file, flags)
        return merge(cls.defaults(given), given)

    def values(self, *besides: str) -> dict[str, Any]:
        """The settings as JSON has them, without the file's name and those named in `besides`."""
        return self.model_dump(mode="json", exclude={"config", *besides})

    def to_yaml(self) -> str:
        """The whole configuration as YAML; `--config` reads it back."""
        return yaml.safe_dump(self.values(), sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write `to_yaml` beside the results."""
        write_text(path, self.to_yaml())


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"--config: {path} must hold a mapping of settings")
    return values
