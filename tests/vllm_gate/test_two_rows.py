"""Which requests get a second row, and what an engine may be told about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_gate.errors import GateError
from vllm_gate.two_rows import TwoRows, past_rate


def config(told: Any, **more: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    return SimpleNamespace(
        additional_config={} if told is None else {"gate_two_rows": told},
        scheduler_config=SimpleNamespace(max_num_seqs=64, max_num_batched_tokens=48),
        **{
            "use_v2_model_runner": True,
            "speculative_config": None,
            "kv_transfer_config": None,
        }
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
