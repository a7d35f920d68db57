"""Settings of commands: what flags they make, what help says, how bad input is named."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field
from pydantic_settings import CliPositionalArg
from support import Refused

from adapters.command_line import CommandLine

PLACE = Path("/a/100%/place")


class Cook(CommandLine):
    """Cook a meal.

    cook soup --servings 3
    """

    program: ClassVar[str] = "cook"

    the_meal: CliPositionalArg[str] = Field(description="What is cooked.")
    servings: int = Field(2, ge=1, description="For how many.")
    kitchen: Path = Field(default_factory=lambda: PLACE, description="Where.")
    heat: Literal["low", "high"] = Field("low", description="Of the stove.")
    guest: str | None = Field(None, description="Who comes; default: nobody.")
    salt: bool = Field(True, description="Leave the salt out.")
    loud: bool = Field(False, alias="noise", description="Sing.")
    spices: list[str] = Field([], description="Names, such as a,b.")


def test_flags() -> None:
    plain = Cook.load(["soup"])
    assert (plain.the_meal, plain.servings, plain.kitchen) == ("soup", 2, PLACE)
    assert (plain.salt, plain.loud, plain.guest) == (True, False, None)
    told = Cook.load(["soup", "--servings=3", "--no-salt", "--noise", "--spices", "a,b"])
    assert (told.servings, told.salt, told.loud, told.spices) == (3, False, True, ["a", "b"])


def test_the_environment_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVINGS", "9")
    assert Cook.load(["soup"]).servings == 2


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Cook.load(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: cook [-h] [--servings int]")
    assert "Cook a meal. cook soup --servings 3 positional" in text
    assert "For how many. (default: 2)" in text
    assert f"Where. (default: {PLACE})" in text
    for none in ("default: nobody.", "Leave the salt out.", "Sing."):
        assert f"{none} --" in text  # no "(default: None)", and no "(default: True)"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["soup", "--servings", "0"], "cook: error: --servings: Input should be greater than"),
        (["soup", "--servings", "x"], "--servings: Input should be a valid integer"),
        (["soup", "--servings"], "--servings: expected one argument"),
        (["soup", "--heat", "mild"], "--heat: Input should be 'low' or 'high' (got 'mild')"),
        (["soup", "--serving", "1"], "unrecognized arguments: --serving"),
        ([], "the following arguments are required: THE-MEAL"),
    ],
)
def test_bad_input_is_named(argv: list[str], words: str, refused: Refused) -> None:
    assert words in refused(Cook.load, argv)


def test_all_that_is_wrong_is_said_at_once(refused: Refused) -> None:
    text = refused(Cook.load, ["soup", "--servings", "0", "--heat", "mild"])
    assert "--servings: " in text and "; --heat: " in text


def test_what_a_file_proves_wrong_ends_alike(refused: Refused) -> None:
    def find() -> None:
        with Cook.load(["soup"]).usage_errors():
            raise ValueError("soup: there is none")

    assert refused(find) == "cook: error: soup: there is none\n"
