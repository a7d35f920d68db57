"""Tokens per second in a progress bar that counts problems."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm


class TokenRate:
    """Shows tokens per second in a bar over problems.

    The problems of a large batch finish together, late; tokens come from the first second on. What
    an engine takes to start counts neither in the rate nor in the estimate.
    """

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar, self._tokens = bar, 0
        self._first: tuple[float, int] | None = None  # when the engine had started
        self.note = ""  # shown in front
        bar.set_postfix_str("waiting for the first tokens")

    def __call__(self, tokens: int) -> None:
        """So many tokens have been sampled since the bar began."""
        self._tokens = tokens
        if self._first is None:
            self._first = time.monotonic(), tokens
            self._bar.unpause()
        self.show()

    def show(self) -> None:
        """Draw the bar with the note, the tokens and their rate."""
        parts = [self.note] if self.note else []
        if self._first is not None:
            since, before = self._first
            seconds = time.monotonic() - since
            rate = f", {(self._tokens - before) / seconds:,.0f}/s" if seconds > 0 else ""
            parts.append(f"{self._tokens:,} tokens{rate}")
        self._bar.set_postfix_str(", ".join(parts))
