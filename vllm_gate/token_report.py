"""How a gated token is seen outside the engine: by a mark on the request's outputs.

The scheduler marks the token; vLLM carries the mark to the front end in `kv_transfer_params`, the
one free-form field of EngineCoreOutput (v1/engine/__init__.py). There it is taken out again and
added up: on the CompletionOutput, as its attribute `gate`, and for the HTTP answer it belongs to.
Here, too, every token of every request passes on its way out, and whoever follows a sequence is
told: what is counted here is what the client gets, stop strings, aborts and preemptions included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol
from weakref import WeakValueDictionary

from vllm_gate.base_top_tokens import Seen
from vllm_gate.step_plan import TALLY

REPORT = "gate"


def mark(trace: int, position: int, token: int, gated: bool, seen: Seen | None) -> dict[str, Any]:
    """What the scheduler says of a token; nothing where it was not gated and no trace asks."""
    if not gated and trace < 2:
        return {}
    entry: dict[str, Any] = {"position": position, "gated": gated}
    if seen is not None:
        entry["entropy"] = round(seen.entropy, 6)
        if gated:
            entry["rank"] = seen.rank(token)
    if trace:
        entry["token_id"] = token
        if gated and seen is not None:
            entry["base_top"] = seen.top()
    return entry


@dataclass
class Report:
    """What happened to one sequence of a gated request."""

    gated: int = 0  # tokens sampled through the open gate
    trace: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: dict[str, Any]) -> None:
        """One token's mark; an empty one says only that the request is gated."""
        if entry:
            self.gated += entry["gated"]
            self.trace.append(entry)


class Follower(Protocol):
    """Whoever wants to know of one sequence's tokens."""

    def tokens(self, count: int, mark: dict[str, Any] | None) -> None:
        """They go out now; `mark`: the last one's, of a gated request."""


@dataclass
class Tally:
    """The reports of one HTTP answer's sequences, by the index of their choice."""

    separator: str | None  # stands before a prompt's number in its request's id, if it has one
    n: int  # sequences of each prompt
    open: bool = False  # the answer is a gated one
    reports: dict[int, Report] = field(default_factory=dict)

    def add(self, request_id: str, index: int, report: Report) -> None:
        """Sequence `index` of the request `request_id`."""
        prompt = int(request_id.rpartition(self.separator)[2]) if self.separator else 0
        self.reports[prompt * self.n + index] = report

    @property
    def gated(self) -> int:
        """Gated tokens of the whole answer."""
        return sum(report.gated for report in self.reports.values())

    def trace(self, choice: int) -> list[dict[str, Any]]:
        """The decision points of one choice."""
        report = self.reports.get(choice)
        return report.trace if report else []


# By the number in a request's arguments; an answer that is gone takes its tally with it.
TALLIES: WeakValueDictionary[int, Tally] = WeakValueDictionary()


def _nobody(_: Any) -> None:
    return None


def install(follow: Callable[[Any], Follower | None] = _nobody) -> None:
    """Have this process's outputs carry reports; again is harmless.

    Args:
        follow: says who follows the sequence of an EngineCoreRequest; called where it is made.
    """
    from vllm.v1.engine.output_processor import RequestState

    if hasattr(RequestState, "gate_report"):
        return
    make, new = RequestState.make_request_output, RequestState._new_completion_output
    begin = RequestState.from_new_request.__func__

    @wraps(begin)
    def from_new_request(cls: Any, tokenizer: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        state = begin(cls, tokenizer, request, *args, **kwargs)
        params = request.sampling_params
        number = (params.extra_args or {}).get(TALLY) if params is not None else None
        if number is not None:
            state.gate_tally = TALLIES.get(number)
        state.follower = follow(request)
        return state

    @wraps(make)
    def make_request_output(
        self: Any,
        new_token_ids: list[int],
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        told = None
        if kv_transfer_params and REPORT in kv_transfer_params:
            if self.gate_report is None:
                self.gate_report = Report()
                if self.gate_tally is not None:
                    self.gate_tally.add(self.external_req_id, self.request_index, self.gate_report)
            told = kv_transfer_params.pop(REPORT)
            self.gate_report.add(told)
        if new_token_ids and self.follower is not None:
            self.follower.tokens(len(new_token_ids), told)
        return make(
            self,
            new_token_ids,
            pooling_output,
            finish_reason,
            stop_reason,
            kv_transfer_params or None,
            *args,
            **kwargs,
        )

    @wraps(new)
    def new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = new(self, *args, **kwargs)
        output.gate = self.gate_report
        return output

    RequestState.gate_report = RequestState.gate_tally = RequestState.follower = None
    RequestState.from_new_request = classmethod(from_new_request)
    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = new_completion_output
