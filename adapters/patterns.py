r"""Regular expressions that strangers wrote, matched within a limit of time.

    patience = Patience()
    patience.match(r"(.*\.)?(q_proj)$", "model.layers.0.self_attn.q_proj")

`re` may backtrack for ever, on `(a?){60}` say, and holds up all threads meanwhile. `regex` matches
the same patterns, lets other threads run, and gives up in time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache, partial

import regex  # type: ignore[import-untyped]

SECONDS = 2.0  # for all matches of one adapter; those of a real one take milliseconds
LONGEST = 2000  # letters of a pattern
TOO_LONG = (
    "is too complex a pattern; name modules as PEFT does, such as 'q_proj' or "
    "'layers.0.self_attn.q_proj'"
)

_NAME = re.compile(r"[\w.]+")

Matches = Callable[[str], object]  # true where a text matches


def check(pattern: str) -> str:
    """The pattern, if it is a regular expression of some 2,000 letters at most.

    Raises:
        ValueError: it is none.
    """
    if len(pattern) > LONGEST:
        raise ValueError(TOO_LONG)
    try:
        re.compile(pattern)
        _compiled(pattern)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression ({error})") from error
    return pattern


class Patience:
    """The time that is left for matches, in seconds."""

    def __init__(self) -> None:
        self._left = SECONDS

    def matcher(self, key: str) -> Matches:
        """Whether PEFT finds `key`, of a rank or alpha pattern, at the end of a module's name.

        Most keys are names, on which `re` is quick.
        """
        pattern = rf"(.*\.)?({key})$"
        return re.compile(pattern).match if _NAME.fullmatch(key) else partial(self.match, pattern)

    def match(self, pattern: str, text: str) -> regex.Match[str] | None:
        """As `re.match`.

        Raises:
            ValueError: the time is over.
        """
        begun = time.perf_counter()
        try:
            if self._left <= 0:
                raise TimeoutError
            return _compiled(pattern).match(text, timeout=self._left)
        except TimeoutError:
            raise ValueError(f"{pattern[:100]!a} {TOO_LONG}") from None
        finally:
            self._left -= time.perf_counter() - begun


@lru_cache(8192)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern)
