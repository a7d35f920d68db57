"""How a gated token is seen outside the engine: by a mark on the request's outputs.

The scheduler marks the tokens of a step. vLLM carries the marks to the front end in
`kv_transfer_params`, the one free-form field of EngineCoreOutput (v1/engine/__init__.py). There the
marks of a sequence are added up. The sum goes out in `RequestOutput.kv_transfer_params`, where
`GateReport.of` finds it, and into the HTTP answer (answers.py).

Every token of every request passes here on its way out, and the answer's context is told of it. So
what is counted is what the client gets, stop strings, aborts and preemptions included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Required, TypeAlias, TypedDict, cast
from weakref import WeakKeyDictionary

from vllm_gate import patches
from vllm_gate.guidance import check_prompt
from vllm_gate.params import PROMPT, TAU, TRACE, WATCHED

if TYPE_CHECKING:
    from starlette.datastructures import MutableHeaders
    from torch import Tensor
    from vllm import PoolingRequestOutput, RequestOutput
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.engine import EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from vllm_gate.base_top_tokens import BaseView, TopToken

REPORT = "gate"  # a key of kv_transfer_params
Output: TypeAlias = "RequestOutput | PoolingRequestOutput"


class TracedToken(TypedDict, total=False):
    """A gated token, or with `trace=2` any token."""

    position: Required[int]  # among the generated tokens, from 0
    gated: Required[bool]
    entropy: float  # of the base there, in nats
    # Of the token for the base, from 1; None beyond 20. Gated tokens only, on a GPU with a trace.
    rank: int | None
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

    def add(self, marks: Iterable[TracedToken]) -> None:
        """Add the marks of a step's tokens; none says only that the request is gated."""
        for mark in marks:
            self.gated_tokens += mark["gated"]
            self.trace.append(mark)


def mark(trace: int, position: int, token: int, gated: bool, view: BaseView | None) -> TracedToken:
    """What the scheduler says of a token, with what the base thought of its position."""
    entry: TracedToken = {"position": position, "gated": gated}
    if view is not None:
        entry["entropy"] = round(view.entropy, 6)
        if gated and view.ids:
            entry["rank"] = view.rank(token)
    if trace:
        entry["token_id"] = token
        if gated and view is not None:
            entry["base_top"] = view.top()
    return entry


@dataclass
class AnswerContext:
    """One answer while it is made, with the reports of its sequences by the index of their choice.

    A server follows a request further by a class of its own (`serving/request.py`).
    """

    gated: bool = False  # a sequence of it is
    trace: int = 0  # as the request asks
    reports: dict[int, GateReport] = field(default_factory=dict)

    def begin(self, request: EngineCoreRequest) -> Sequence | None:
        """A sequence of the answer begins; None if nobody needs to follow it."""
        params = request.sampling_params
        arguments = (params.extra_args if params is not None else None) or {}
        if TAU not in arguments or (WATCHED in arguments and request.lora_request is None):
            return None  # of the base, also where it is watched
        self.gated = True
        self.trace = max(self.trace, int(arguments.get(TRACE) or 0))
        return Sequence(self)

    def tokens(self, sequence: Sequence, count: int, marks: list[TracedToken]) -> None:
        """`count` tokens of a sequence go out now, with the marks of those that have one."""

    def headers(self, headers: MutableHeaders) -> None:
        """Complete the headers of the answer."""

    def edit(self, body: bytes) -> bytes:
        """Change a whole JSON answer, or a chunk of a stream, on its way to the client."""
        return body

    def add(self, state: RequestState, report: GateReport) -> None:
        """Add the report of a vLLM RequestState."""
        n = state.parent_req.n if state.parent_req is not None else 1
        self.reports[_number_of(state.external_req_id) * n + state.request_index] = report

    @property
    def gated_tokens(self) -> int:
        """Gated tokens of the whole answer."""
        return sum(report.gated_tokens for report in self.reports.values())

    def trace_of(self, choice: int) -> list[TracedToken]:
        """The trace of one choice."""
        report = self.reports.get(choice)
        return report.trace if report else []


# The prompts of a completion, and the turns of a response, whose id a client may choose.
_NUMBERED = re.compile(r"cmpl-.*-(\d{1,9})|(?!chatcmpl-).*_(\d{1,9})", re.ASCII | re.DOTALL)


def _number_of(request_id: str) -> int:
    """Which of an answer's requests to the engine it is; vLLM numbers them in their ids."""
    found = _NUMBERED.fullmatch(request_id)
    return int(found[1] or found[2]) if found else 0


@dataclass
class Sequence:
    """One sequence on its way to the client."""

    answer: AnswerContext | None
    report: GateReport | None = None  # from its first mark on
    last: float | None = None  # seconds, when its last token went out


# The answer that the running task is making, where someone follows it.
ANSWER: ContextVar[AnswerContext | None] = ContextVar("answer", default=None)

# By vLLM's RequestState; and the reports of all sequences of a request, by its first owner.
_sequences: WeakKeyDictionary[RequestState, Sequence] = WeakKeyDictionary()
_reports: WeakKeyDictionary[RequestState | ParentRequest, dict[str, GateReport]] = (
    WeakKeyDictionary()
)


_observe: Callable[[float], None] | None = None


def install(observe: Callable[[float], None] | None = None) -> None:
    """Have this process's outputs carry reports; again is harmless.

    Args:
        observe: gets the base's entropy, in nats, at each token of a watched request.
    """
    global _observe  # noqa: PLW0603
    _observe = observe or _observe
    # Nothing here depends on more than the arguments, so another vLLM may differ inside.
    patches.install("outputs", checked=patches.supported())


def from_new_request(stock: Callable[..., RequestState]) -> Callable[..., RequestState]:
    """RequestState.from_new_request, in the task of the request: find out who follows it."""

    @wraps(stock)
    def begin(
        cls: type[RequestState],
        tokenizer: TokenizerLike | None,
        request: EngineCoreRequest,
        *args: Any,
        **kwargs: Any,
    ) -> RequestState:
        if request.sampling_params is not None:
            _check(request.sampling_params.extra_args, tokenizer)
        state = stock(cls, tokenizer, request, *args, **kwargs)
        answer = ANSWER.get()
        sequence = answer.begin(request) if answer is not None else None
        if sequence is not None:
            _sequences[state] = sequence
        return state

    return begin


def _check(arguments: dict[str, Any] | None, tokenizer: TokenizerLike | None) -> None:
    """What admission could not know, which has no tokenizer; vLLM answers 400."""
    try:
        check_prompt(arguments, tokenizer)
    except ValueError as error:
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(str(error), parameter=PROMPT) from error


def make_request_output(stock: Callable[..., Output | None]) -> Callable[..., Output | None]:
    """RequestState.make_request_output: tokens on their way out, with their marks."""

    @wraps(stock)
    def make(
        self: RequestState,
        new_token_ids: list[int],
        pooling_output: Tensor | None,
        finish_reason: FinishReason | None,
        stop_reason: int | str | None,
        kv_transfer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Output | None:
        marks: list[TracedToken] = []
        if kv_transfer_params and WATCHED in kv_transfer_params:
            for entropy in kv_transfer_params.pop(WATCHED):
                if _observe is not None:
                    _observe(entropy)
        if kv_transfer_params and REPORT in kv_transfer_params:
            marks = kv_transfer_params.pop(REPORT)
            _report(self).add(marks)
        sequence = _sequences.get(self)
        if new_token_ids and sequence is not None and sequence.answer is not None:
            sequence.answer.tokens(sequence, len(new_token_ids), marks)
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
            gated = cast("RequestOutput", output)
            gated.kv_transfer_params = (gated.kv_transfer_params or {}) | {REPORT: shown}
        return output

    return make


def _report(state: RequestState) -> GateReport:
    """The report of a sequence, begun with its first marks."""
    sequence = _sequences.setdefault(state, Sequence(None))
    if sequence.report is None:
        sequence.report = GateReport()
        _reports.setdefault(state.parent_req or state, {})[str(state.request_index)] = (
            sequence.report
        )
        if sequence.answer is not None:
            sequence.answer.add(state, sequence.report)
    return sequence.report
