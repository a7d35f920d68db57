"""The server's own log: what a logged exception shows, in both forms."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from serving import logs


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """`serving`'s logger, as it was before when the test is done."""
    ours = logging.getLogger("serving")
    before = ours.handlers[:], ours.propagate, ours.level
    yield ours
    ours.handlers[:], ours.propagate, ours.level = before


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_shows_no_local_variables(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], form: Literal["text", "json"]
) -> None:
    logs.configure(form)
    prompt = "".join(["the patient's", " name"])  # not in this line's source
    try:
        raise RuntimeError(f"{len(prompt)} letters")
    except RuntimeError:
        logger.exception("it failed")
    said = capsys.readouterr().err
    assert "it failed" in said and "RuntimeError: 18 letters" in said
    assert prompt not in said
    if form == "json":
        (line,) = said.splitlines()
        assert json.loads(line)["message"] == "it failed"
    else:
        assert len(said.splitlines()) < 10
