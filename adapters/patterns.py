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

    def matcher(self, pattern: str, of_names: bool) -> Matches:
        """A function that tells whether a text matches.

        Args:
            of_names: what strangers wrote of the pattern are letters and dots: `re` is quick then.
        """
        return re.compile(pattern).match if of_names else partial(self.match, pattern)

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
