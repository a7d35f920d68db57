"""Which requests get a second row, and what an engine may be told about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

from vllm_gate.errors import GateError
from vllm_gate.step_plan import Step, attach, plan_of
from vllm_gate.two_rows import SECOND, TwoRows, past_rate, with_second_rows, without_second_rows


def config(told: Any, **more: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    return SimpleNamespace(
        additional_config={} if told is None else {"gate_two_rows": told},
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=48),
        **{"use_v2_model_runner": True, "speculative_config": None, "kv_transfer_config": None}
        | more,
    )


def test_it_is_off_unless_told() -> None:
    assert TwoRows.of(config(None)) == TwoRows(rows=0)
    assert not TwoRows().choose([("a", 1.0)], rows=1)
    assert TwoRows.of(config({"rows": 0}, use_v2_model_runner=False)).rows == 0


def test_no_more_rows_than_there_are_buffers() -> None:
    assert TwoRows.of(config({"rows": 500})).rows == 48
    assert TwoRows.of(config({"rows": 8, "rate": 0})) == TwoRows(8, 0.0)


@pytest.mark.parametrize(
    ("told", "more", "field"),
    [
        (True, {}, "gate_two_rows"),
        ({"row": 3}, {}, "gate_two_rows"),
        ({"rows": -1}, {}, "gate_two_rows.rows"),
        ({"rows": 2.5}, {}, "gate_two_rows.rows"),
        ({"rows": 8, "rate": 2}, {}, "gate_two_rows.rate"),
        ({"rows": 8, "rate": "often"}, {}, "gate_two_rows.rate"),
        ({"rows": 8}, {"use_v2_model_runner": False}, "V2 model runner"),
        ({"rows": 8}, {"speculative_config": 1}, "speculative"),
        ({"rows": 8}, {"kv_transfer_config": 1}, "KV connector"),
    ],
)
def test_a_setting_that_does_not_fit(told: Any, more: Any, field: str) -> None:
    with pytest.raises(GateError, match=field):
        TwoRows.of(config(told, **more))


def test_those_come_first_whose_gate_opens_most() -> None:
    past = [("a", 0.04), ("b", 0.2), ("c", 0.1), ("d", 0.06)]
    assert TwoRows(8, 0.05).choose(past, rows=4) == {"b", "c", "d"}
    assert TwoRows(6, 0.05).choose(past, rows=4) == {"b", "c"}
    assert TwoRows(4, 0.05).choose(past, rows=4) == set()


def test_a_rate_begins_at_zero() -> None:
    assert past_rate(0, 0) == 0
    assert past_rate(1, 1) < 0.06
    assert past_rate(50, 1000) == pytest.approx(0.05, abs=0.001)


def test_a_step_becomes_wider_and_a_batch_narrow_again() -> None:
    output = SchedulerOutput.make_empty()
    output.num_scheduled_tokens, output.total_num_scheduled_tokens = {"a": 1, "b": 1, "c": 1}, 3
    attach(output, {"b": Step(0.5, 1.0, True, False, 0, two_rows=True)})
    wider = with_second_rows(output, ["b", "a"])
    assert list(wider.num_scheduled_tokens) == ["a", "b", "c", "b" + SECOND, "a" + SECOND]
    assert wider.total_num_scheduled_tokens == 5
    assert plan_of(wider) == plan_of(output)
    assert output.total_num_scheduled_tokens == len(output.num_scheduled_tokens) == 3
    # vLLM sorts a step that decodes, and second rows stay behind.
    assert sort_batch_req_ids(wider.num_scheduled_tokens, {}, 1) == list(wider.num_scheduled_tokens)

    batch = InputBatch.make_dummy(5, 5, InputBuffers(8, 8, torch.device("cpu")))
    narrow = without_second_rows(batch, 3)
    assert narrow.num_reqs == narrow.num_tokens == narrow.num_reqs_after_padding == 3
    for name, of_batch in vars(batch).items():
        by_row = hasattr(of_batch, "__len__") and len(of_batch) in (5, 6)
        # By token, and all logits.
        kept = {"positions", "input_ids", "is_padding", "logits_indices"}
        if by_row and name not in kept:
            assert len(getattr(narrow, name)) == len(of_batch) - 2, name
    assert len(narrow.logits_indices) == 5
