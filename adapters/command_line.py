"""A command's settings: one pydantic model, filled by flags.

    class Collect(CommandLine):
        "Delete versions that nobody uses."

        program: ClassVar[str] = "python -m adapters gc"
        keep: int = Field(1, ge=0, description="Roll-backs that stay possible.")

    settings = Collect.load(["--keep", "2"])

A value that does not fit ends the command with exit code 2 and a line that names the flag. A switch
that is off by default is `--name`, and one that is on is `--no-name`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NoReturn, Self

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.sources.types import _CliPositionalArg

from adapters.places import shown
from adapters.program import program


def usage_error(name: str, message: str) -> NoReturn:
    """Print `message` and leave with exit code 2, as argparse does."""
    print(f"{name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class CommandLine(BaseSettings):
    """Base of every command's settings. Subclasses set `program`; their docstring is the help."""

    model_config = SettingsConfigDict(
        extra="forbid",
        validate_default=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags="toggle",
        cli_kebab_case=True,
    )
    program: ClassVar[str] = ""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # What was given alone: a stray environment variable MODEL must not steer a run.
        return (init_settings,)

    @classmethod
    def called(cls) -> str:
        """What it calls itself in usage lines and errors."""
        return program(cls.program)

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Parse a command line. Bad input ends the process with exit code 2."""
        args = sys.argv[1:] if argv is None else list(argv)
        source = CliSettingsSource[Any](
            cls,
            cli_parse_args=args,
            cli_prog_name=cls.called(),
            formatter_class=partial(_HelpFormatter, cls),
        )
        try:
            return cls(**cls.completed(source()))
        except ValidationError as error:
            usage_error(cls.called(), cls.describe(error))
        except (ValueError, OSError) as error:
            usage_error(cls.called(), str(error))

    @classmethod
    def completed(cls, flags: dict[str, Any]) -> dict[str, Any]:
        """All values that are given, where there are others than flags."""
        return flags

    @classmethod
    def describe(cls, error: ValidationError) -> str:
        """Name each field by its flag, and say what is wrong with its value."""
        lines = []
        for detail in error.errors():
            names = [str(part) for part in detail["loc"]]
            got = "" if detail["type"] == "missing" else f" (got {shown(detail['input'])})"
            message = detail["msg"].removeprefix("Value error, ")
            if detail["type"] == "extra_forbidden":  # of a file: argparse has refused such flags
                dashed = "-" in names[-1]
                message = "there is no such setting" + (
                    "; names in a file have underscores" if dashed else ""
                )
            lines.append(f"{cls._flag(names)}: {message}{got}" if names else message)
        return "; ".join(lines)

    @classmethod
    def _flag(cls, names: Sequence[str]) -> str:
        """`--lora.rank`; an argument that needs no flag as the usage line has it: FILE."""
        field = cls.model_fields.get(names[0])
        if field is not None and _CliPositionalArg in field.metadata:
            return names[0].upper().replace("_", "-")
        return "--" + ".".join(names).replace("_", "-")

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
            usage_error(self.called(), self.describe(error))
        except wrong as error:
            usage_error(self.called(), str(error))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that a reader wants to know, and those that are worked out as values."""

    def __init__(self, settings: type[CommandLine], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._settings = settings

    def _format_text(self, text: str) -> str:
        return super()._format_text(inspect.cleandoc(text))  # a docstring of several lines

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, mark, default = (action.help or "").rpartition(" (default")
        if not mark:
            return action.help
        switch = action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
        if switch or default in (": None)", ": )"):  # a switch says what it changes
            return text
        field = self._settings.model_fields.get(action.dest)
        if field is None or field.default_factory is None:
            return action.help
        value = str(field.get_default(call_default_factory=True)).replace("%", "%%")
        return f"{text} (default: {value})"
