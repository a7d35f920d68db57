"""What is kept of a decision point: the entropy, and the most likely tokens of the base.

The entropy and the rank of the token taken go into the metrics; a request that asks for a trace
gets the base's best with their probabilities as well. On a GPU, which would have to sort all rows
in every step, only a trace has ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch

if TYPE_CHECKING:
    from vllm.v1.outputs import ModelRunnerOutput

DEPTH = 20  # tokens looked at; a rank beyond is not told
TOP = 5  # of them shown in a trace


class TopToken(TypedDict):
    """One of the base's most likely tokens."""

    token_id: int
    probability: float


class BaseView(NamedTuple):
    """The base's distribution at one position."""

    entropy: float  # nats
    ids: Sequence[int] = ()  # the base's best tokens, best first; none where the gate stayed shut
    probabilities: Sequence[float] = ()  # theirs, where a trace asks

    def rank(self, token: int) -> int | None:
        """1 for the base's best token; None beyond DEPTH."""
        return self.ids.index(token) + 1 if token in self.ids else None

    def top(self) -> list[TopToken]:
        """The best tokens, for a trace."""
        return [
            {"token_id": token, "probability": round(p, 6)}
            for token, p in zip(self.ids[:TOP], self.probabilities, strict=False)
        ]


class StepViews(NamedTuple):
    """What the base thought at one gated request's positions in one step.

    With speculative decoding a step verifies several positions, and ends at a decision point.
    """

    opened: BaseView | None = None  # the decision point at which the step ended
    corrected: BaseView | None = None  # the one whose token the step gives, from a second row
    shut: Sequence[BaseView] = ()  # with `trace=2`: the positions before it where the gate is shut


BaseViews = dict[str, StepViews]  # by request id; absent where there is nothing to tell


def attach(output: ModelRunnerOutput, views: BaseViews) -> None:
    """Send `views` along. The output is pickled to the scheduler with all its attributes."""
    output.gate_views = views  # type: ignore[attr-defined]


def views_of(output: ModelRunnerOutput) -> BaseViews:
    """What `attach` has sent along with a step's result."""
    return getattr(output, "gate_views", None) or {}


def best(logits: torch.Tensor, traced: bool) -> tuple[torch.Tensor, ...]:
    """Of logits [R, V], nothing synchronised: ids [R, DEPTH], and for a trace the probabilities."""
    values, ids = logits.topk(min(DEPTH, logits.shape[-1]))
    if not traced:
        return (ids,)
    return ids, (values.float() - logits.float().logsumexp(-1, keepdim=True)).exp()
