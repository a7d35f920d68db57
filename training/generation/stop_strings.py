"""Stop strings outside of vLLM: where they end an answer, to the token and to the character."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Stopped(NamedTuple):
    """An answer that a stop string ended."""

    token_ids: list[int]  # up to and including the token that completed the string
    text: str  # before the string


class StopStrings:
    """Finds `stop` in answers, as vLLM does: the string that is complete first ends the answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        # A token holds a byte at least; some more, since a window may begin within a character.
        self._window = max((len(one.encode()) for one in stop), default=0) + 4

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _occurs(self, text: str) -> bool:
        return any(one in text for one in self._stop)

    def cut(self, token_ids: list[int]) -> Stopped | None:
        """The answer up to its first stop string; None if it has none."""
        if not self._stop or not self._occurs(self._decode(token_ids)):
            return None
        counts = range(1, len(token_ids) + 1)
        count = 1 + bisect_left(
            counts, True, key=lambda count: self._occurs(self._decode(token_ids[:count]))
        )
        text = self._decode(token_ids[:count])
        ends = [(text.find(one) + len(one), one) for one in self._stop if one in text]
        end, one = min(ends, key=lambda found: found[0])
        return Stopped(token_ids[:count], text[: end - len(one)])

    def ended(self, answers: torch.Tensor) -> torch.Tensor:
        """Which rows of `answers` [B, T] end in a stop string just now: [B] bool."""
        if not self._stop:
            return torch.zeros(len(answers), dtype=torch.bool, device=answers.device)
        texts = [self._decode(row) for row in answers[:, -self._window :].tolist()]
        return torch.tensor([self._occurs(text) for text in texts], device=answers.device)
