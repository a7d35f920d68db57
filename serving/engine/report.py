"""How a gated token is seen outside the engine: counters, and a note on the request's outputs.

The scheduler marks the token; vLLM carries the mark to the front end in `kv_transfer_params`, the
one free-form field of EngineCoreOutput (v1/engine/__init__.py). There it is taken out again and
added up: on the CompletionOutput, as its attribute `gate`, and for the HTTP answer it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

from serving.engine.plan import TALLY

REPORT = "gate"


@dataclass
class Report:
    """What happened to one sequence of a gated request."""

    gated: int = 0  # tokens sampled through the open gate
    trace: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: dict[str, Any]) -> None:
        """One token's mark; an empty one says only that the request is gated."""
        if entry:
            self.gated += 1
            self.trace.append(entry)


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


def install() -> None:
    """Have this process's outputs carry reports; again is harmless."""
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
        if kv_transfer_params and REPORT in kv_transfer_params:
            if self.gate_report is None:
                self.gate_report = Report()
                if self.gate_tally is not None:
                    self.gate_tally.add(self.external_req_id, self.request_index, self.gate_report)
            self.gate_report.add(kv_transfer_params.pop(REPORT))
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

    RequestState.gate_report = RequestState.gate_tally = None
    RequestState.from_new_request = classmethod(from_new_request)
    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = new_completion_output
