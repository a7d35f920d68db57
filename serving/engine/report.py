"""How a gated token is seen outside the engine: counters, and a note on the request's outputs.

The scheduler marks the token; vLLM carries the mark to the front end in `kv_transfer_params`, the
one free-form field of EngineCoreOutput (v1/engine/__init__.py). There it is taken out again and
added up on the CompletionOutput, as its attribute `gate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import wraps
from typing import Any

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


def install() -> None:
    """Have this process's outputs carry reports; again is harmless."""
    from vllm.v1.engine.output_processor import RequestState

    if hasattr(RequestState, "gate_report"):
        return
    make, new = RequestState.make_request_output, RequestState._new_completion_output

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

    RequestState.gate_report = None
    RequestState.make_request_output = make_request_output
    RequestState._new_completion_output = new_completion_output
