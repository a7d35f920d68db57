"""A command's configuration: one pydantic model, filled from YAML and overridden by flags.

    defaults  <  --config FILE  <  flags such as --lora.rank 8

A value that does not fit ends the command with exit code 2 and a line that names the field.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from adapters.files import write_text
from adapters.places import shown
from adapters.program import program


def merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the values of `high` laid over it, section by section."""
    merged = dict(low)
    for key, value in high.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_sections else value
    return merged


def usage_error(program: str, message: str) -> NoReturn:
    """Print `message` and leave with exit code 2, as argparse does."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Config(BaseSettings):
    """Base of every command's configuration. Subclasses set `program`."""

    model_config = SettingsConfigDict(extra="forbid", validate_default=True)
    program: ClassVar[str] = ""

    config: Path | None = Field(None, description="YAML file with any of these settings.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Flags and YAML alone: a stray environment variable MODEL must not steer a run.
        return (init_settings,)

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Values below YAML and flags, once those are known."""
        return {}

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Parse flags and YAML. Bad input ends the process with exit code 2."""
        args = sys.argv[1:] if argv is None else list(argv)
        source = CliSettingsSource[Any](
            cls,
            cli_parse_args=args,
            cli_prog_name=program(cls.program),
            cli_kebab_case=True,
            cli_implicit_flags=True,
            cli_hide_none_type=True,
            cli_avoid_json=True,
        )
        try:
            flags = source()
            file = _read_yaml(flags["config"]) if flags.get("config") else {}
            given = merge(file, flags)
            return cls(**merge(cls.defaults(given), given))
        except ValidationError as error:
            usage_error(program(cls.program), describe(error))
        except (ValueError, OSError) as error:
            usage_error(program(cls.program), str(error))

    @contextmanager
    def usage_errors(
        self, wrong: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    ) -> Iterator[None]:
        """Within, an exception of these types ends the process as a wrong flag does.

        It is for what only a file could prove wrong.
        """
        try:
            yield
        except ValidationError as error:  # a ValueError with a text of many lines
            if not isinstance(error, wrong):
                raise
            usage_error(program(self.program), describe(error))
        except wrong as error:
            usage_error(program(self.program), str(error))

    def to_yaml(self) -> str:
        """The whole configuration as YAML; `--config` reads it back."""
        values = self.model_dump(mode="json", exclude={"config"})
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def save(self, path: Path) -> None:
        """Write `to_yaml` beside the results."""
        write_text(path, self.to_yaml())


def describe(error: ValidationError) -> str:
    """One line a field: its flag and what is wrong with the value."""
    lines = []
    for detail in error.errors():
        field = ".".join(str(part).replace("_", "-") for part in detail["loc"])
        got = "" if detail["type"] == "missing" else f" (got {shown(detail['input'])})"
        message = detail["msg"].removeprefix("Value error, ")
        lines.append(f"--{field}: {message}{got}" if field else message)
    return "; ".join(lines)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config: {path} must hold a mapping of settings")
    return values
