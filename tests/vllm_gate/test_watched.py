"""A watched request reports the base's entropies to its process, and nothing of that to clients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_gate import token_report
from vllm_gate.base_top_tokens import BaseView
from vllm_gate.params import NEVER, WATCHED, GateParams
from vllm_gate.scheduler import Gate, OutgoingTokens, _told
from vllm_gate.token_report import ANSWER, REPORT, AnswerContext

VIEW = BaseView(0.75, [7, 8])
LORA: Any = SimpleNamespace(lora_name="theirs@0")


def told(
    params: GateParams, lora: Any, position: int = 3, gated: bool = False, view: Any = VIEW
) -> dict[str, Any]:
    return _told(OutgoingTokens(Gate(params, lora), position, gated, [view]), [8])


def test_what_the_engine_says_of_a_token() -> None:
    # Of the base: the entropy alone, also at the first token.
    base = GateParams(NEVER, watched=True)
    assert told(base, None) == told(base, None, position=0) == {WATCHED: [0.75]}
    assert told(base, None, view=None) == {}
    # Of a gated request: beside what is told anyway.
    gated = GateParams(0.5, watched=True)
    assert told(gated, LORA) == {WATCHED: [0.75]}
    assert told(gated, LORA, position=0) == {WATCHED: [0.75], REPORT: []}
    found = told(gated, LORA, gated=True)
    assert found[WATCHED] == [0.75]
    assert found[REPORT] == [{"position": 3, "gated": True, "entropy": 0.75, "rank": 2}]
    # What nobody watches is as it was; an offline request of the base may ask for a trace.
    assert told(GateParams(0.5), LORA) == {}
    assert set(told(GateParams(NEVER, trace=2), None)) == {REPORT}


def test_what_the_engine_says_of_several_tokens() -> None:
    """A step that verifies drafts gives several; a stop may have cut the last ones off."""
    views = [BaseView(2.0, [7, 8]), BaseView(0.25), BaseView(0.5)]
    for trace, wanted in ((0, [2.0]), (2, [2.0, 0.25])):
        gate = Gate(GateParams(1.0, trace=trace, watched=True), LORA)
        found = _told(OutgoingTokens(gate, 5, True, views), [8, 9])
        assert found[WATCHED] == [2.0, 0.25]
        assert [mark["entropy"] for mark in found[REPORT]] == wanted
        assert [mark["position"] for mark in found[REPORT]] == [5, 6][: len(wanted)]
        assert [mark["gated"] for mark in found[REPORT]] == [True, False][: len(wanted)]


class State:
    """vLLM's RequestState, as far as reports look."""

    external_req_id, parent_req, request_index = "chatcmpl-1", None, 0


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_the_front_end_makes_of_it(lora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(token_report, "_observe", seen.append)
    answer = AnswerContext()
    state = State()
    begin = token_report.from_new_request(lambda *_: state)
    make = token_report.make_request_output(lambda *_: SimpleNamespace(kv_transfer_params=_[5]))
    params = SimpleNamespace(
        extra_args=GateParams(0.5 if lora else NEVER, watched=True).extra_args()
    )
    token = ANSWER.set(answer)
    try:
        begin(State, None, SimpleNamespace(sampling_params=params, lora_request=lora))
    finally:
        ANSWER.reset(token)
    marks: list[dict[str, Any]] = [{WATCHED: [0.25]}, {WATCHED: [0.5]}]
    if lora is not None:
        marks[0][REPORT] = []
    outputs = [make(state, [8], None, None, None, mark) for mark in marks]
    assert seen == [0.25, 0.5]
    assert answer.gated == (lora is not None)
    for output in outputs:
        wanted = {REPORT: {"0": {"gated_tokens": 0, "trace": []}}} if lora else None
        assert output.kv_transfer_params == wanted
