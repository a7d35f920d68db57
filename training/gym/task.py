"""A task of Reasoning Gym: a generator with options, `chain_sum,min_terms=3,max_terms=5`."""

from __future__ import annotations

import difflib
import importlib.util
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from training.split_text import split_outside


def require_reasoning_gym() -> None:
    """Raise ValueError with the command that installs Reasoning Gym if it is missing."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(
            "problems: reasoning_gym needs the package of that name: uv pip install -e '.[gym]'"
        )


@dataclass(frozen=True)
class GymTask:
    """A generator's name and the options that were given, as text."""

    name: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> GymTask:
        """Read NAME[,option=value...]. Raises ValueError on text that is not of that form."""
        name, *rest = (part.strip() for part in split_outside(text, ","))
        if not name:
            raise ValueError("reasoning_gym: a generator's name is missing, as in "
                             "reasoning_gym:chain_sum")  # fmt: skip
        options: dict[str, str] = {}
        for part in rest:
            option, equals, value = (piece.strip() for piece in part.partition("="))
            if not (option and equals and value):
                raise ValueError(f"reasoning_gym:{name}: '{part}' is not option=value")
            if option in options:
                raise ValueError(f"reasoning_gym:{name}: {option} is given twice")
            options[option] = value
        return cls(name, options)

    def __str__(self) -> str:
        return ",".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def dataset(self, seed: int, size: int) -> Any:
        """The generator, ready to draw `size` problems.

        Raises:
            ValueError: there is no such generator or option, or the generator refuses a value.
        """
        from reasoning_gym.factory import DATASETS, create_dataset

        known = sorted(set(DATASETS) - {"composite"})  # "+" mixes here
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=3) or known[:3]
            raise ValueError(
                f"reasoning_gym: there is no generator '{self.name}'; did you mean "
                f"{', '.join(near)}? ({len(known)} are listed at "
                "https://github.com/open-thought/reasoning-gym)"
            )
        config = DATASETS[self.name][1]
        values = self._values(config)
        try:
            return create_dataset(self.name, seed=seed, size=size, **values)
        except Exception as error:  # AssertionError from most, anything from the rest
            raise ValueError(f"reasoning_gym:{self}: {error or type(error).__name__}") from error

    def _values(self, config: type) -> dict[str, Any]:
        """The options as the generator's configuration wants them."""
        types = typing.get_type_hints(config)
        known = [one.name for one in fields(config) if one.name not in ("seed", "size")]
        values = {}
        for option, text in self.options.items():
            if option not in known:
                raise ValueError(
                    f"reasoning_gym:{self.name}: there is no option '{option}'; there are "
                    f"{', '.join(['seed', 'count', *known])}"
                )
            try:
                values[option] = TypeAdapter(types[option]).validate_python(_value(text))
            except (ValidationError, PydanticUserError, yaml.YAMLError) as error:
                detail = (
                    error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not valid"
                )
                raise ValueError(
                    f"reasoning_gym:{self.name}: {option}: {detail} (got '{text}')"
                ) from None
        return values


def _value(text: str) -> Any:
    """A list where it is written as one; otherwise pydantic reads the text."""
    if text.startswith(("[", "{")):
        return yaml.safe_load(text)
    return None if text.lower() in ("none", "null") else text
