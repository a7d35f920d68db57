"""How a gated token is seen outside the engine: by a mark on the request's outputs.

The scheduler marks the tokens of a step. vLLM carries the marks to the front end in
`kv_transfer_params`, the one free-form field of EngineCoreOutput (v1/engine/__init__.py). There the
marks of a sequence are added up. The sum goes out in `RequestOutput.kv_transfer_params`, where
`GateReport.of` finds it, and into the HTTP answer (answers.py).

Every token of every request passes here on its way out, and whoever follows a sequence is told:
what is counted is what the client gets, stop strings, aborts and preemptions included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, Required, TypedDict
from weakref import WeakKeyDictionary

from vllm_gate import patches
from vllm_gate.params import TAU, TRACE

if TYPE_CHECKING:
    from vllm import RequestOutput

    from vllm_gate.base_top_tokens import BaseView, TopToken

REPORT = "gate"  # a key of kv_transfer_params


class TracedToken(TypedDict, total=False):
    """A gated token, or with `trace=2` any token."""

    position: Required[int]  # among the generated tokens, from 0
    gated: Required[bool]
    entropy: float  # of the base there, in nats
    rank: int | None  # of the token for the base, from 1; None beyond 20; gated tokens only
    token_id: int  # with a trace
    base_top: list[TopToken]  # the base's five most likely tokens; gated tokens with a trace


@dataclass
class GateReport:
    """What happened to one sequence of a gated request."""

    gated_tokens: int = 0  # sampled at decision points, that is, from the adapter
    trace: list[TracedToken] = field(default_factory=list)

    @classmethod
    def of(cls, output: RequestOutput, index: int = 0) -> GateReport | None:
        """The report of sequence `index` of an output; None where it was not gated."""
        told = ((output.kv_transfer_params or {}).get(REPORT) or {}).get(str(index))
        return None if told is None else cls(**told)

    def add(self, marks: Sequence[TracedToken]) -> None:
        """Add the marks of a step's tokens; none says only that the request is gated."""
        self.gated_tokens += sum(mark["gated"] for mark in marks)
        self.trace.extend(marks)


def mark(trace: int, position: int, token: int, gated: bool, view: BaseView | None) -> TracedToken:
    """What the scheduler says of a token, with what the base thought of its position."""
    entry: TracedToken = {"position": position, "gated": gated}
    if view is not None:
        entry["entropy"] = round(view.entropy, 6)
        if gated:
            entry["rank"] = view.rank(token)
    if trace:
        entry["token_id"] = token
        if gated and view is not None:
            entry["base_top"] = view.top()
    return entry


class Follower(Protocol):
    """Whoever wants to know of one sequence's tokens."""

    def tokens(self, count: int, marks: Sequence[TracedToken]) -> None:
        """They go out now, with the marks of those among them that have one."""


@dataclass
class AnswerReports:
    """The reports of one HTTP answer's sequences, by the index of their choice."""

    gated: bool = False  # a sequence of it is
    trace: int = 0  # as the request asks
    reports: dict[int, GateReport] = field(default_factory=dict)

    def add(self, state: Any, report: GateReport) -> None:
        """Add the report of a vLLM RequestState."""
        name = state.external_req_id
        # vLLM numbers the prompts of a completion and the turns of a response in their ids.
        separator = {"cmpl": "-", "resp": "_"}.get(name[:4])
        prompt = int(name.rpartition(separator)[2]) if separator else 0
        n = state.parent_req.n if state.parent_req is not None else 1
        self.reports[prompt * n + state.request_index] = report

    @property
    def gated_tokens(self) -> int:
        """Gated tokens of the whole answer."""
        return sum(report.gated_tokens for report in self.reports.values())

    def trace_of(self, choice: int) -> list[TracedToken]:
        """The trace of one choice."""
        report = self.reports.get(choice)
        return report.trace if report else []


# The HTTP answer that the running task is making, where someone wants its reports.
ANSWER: ContextVar[AnswerReports | None] = ContextVar("gate_answer", default=None)


@dataclass
class _Sequence:
    """One sequence whose tokens pass here."""

    follower: Follower | None
    answer: AnswerReports | None
    report: GateReport | None = None  # from its first mark on


# By vLLM's RequestState; and the reports of all sequences of a request, by its first owner.
_sequences: WeakKeyDictionary[Any, _Sequence] = WeakKeyDictionary()
_reports: WeakKeyDictionary[Any, dict[str, GateReport]] = WeakKeyDictionary()
_follow: Callable[[Any], Follower | None] | None = None


def install(follow: Callable[[Any], Follower | None] | None = None) -> None:
    """Have this process's outputs carry reports; again is harmless.

    Args:
        follow: says who follows the sequence of an EngineCoreRequest; called where it is made.
    """
    global _follow  # noqa: PLW0603
    _follow = follow or _follow
    # Nothing here depends on more than the arguments, so another vLLM may differ inside.
    patches.install("outputs", checked=patches.supported())


def from_new_request(stock: Callable[..., Any]) -> Callable[..., Any]:
    """RequestState.from_new_request, in the task of the request: find out who wants its reports."""

    @wraps(stock)
    def begin(cls: Any, tokenizer: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        state = stock(cls, tokenizer, request, *args, **kwargs)
        params = request.sampling_params
        arguments = (params.extra_args if params is not None else None) or {}
        answer = ANSWER.get() if TAU in arguments else None
        if answer is not None:
            answer.gated = True
            answer.trace = max(answer.trace, int(arguments.get(TRACE) or 0))
        follower = _follow(request) if _follow is not None else None
        if follower is not None or answer is not None:
            _sequences[state] = _Sequence(follower, answer)
        return state

    return begin


def make_request_output(stock: Callable[..., Any]) -> Callable[..., Any]:
    """RequestState.make_request_output: tokens on their way out, with their marks."""

    @wraps(stock)
    def make(
        self: Any,
        new_token_ids: list[int],
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        marks: Sequence[TracedToken] = ()
        if kv_transfer_params and REPORT in kv_transfer_params:
            marks = kv_transfer_params.pop(REPORT)
            _report(self).add(marks)
        sequence = _sequences.get(self)
        if new_token_ids and sequence is not None and sequence.follower is not None:
            sequence.follower.tokens(len(new_token_ids), marks)
        output = stock(
            self,
            new_token_ids,
            pooling_output,
            finish_reason,
            stop_reason,
            kv_transfer_params or None,
            *args,
            **kwargs,
        )
        reports = _reports.get(self.parent_req or self)
        if output is not None and reports:
            shown = {
                index: {"gated_tokens": report.gated_tokens, "trace": report.trace}
                for index, report in reports.items()
            }
            output.kv_transfer_params = (output.kv_transfer_params or {}) | {REPORT: shown}
        return output

    return make


def _report(state: Any) -> GateReport:
    """The report of a sequence, begun with its first marks."""
    sequence = _sequences.setdefault(state, _Sequence(None, None))
    if sequence.report is None:
        sequence.report = GateReport()
        _reports.setdefault(state.parent_req or state, {})[str(state.request_index)] = (
            sequence.report
        )
        if sequence.answer is not None:
            sequence.answer.add(state, sequence.report)
    return sequence.report
