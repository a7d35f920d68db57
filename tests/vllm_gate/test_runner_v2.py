"""Where a step ends in the V2 runner, by hand: rows of logits in, tokens and views out.

The whole engine runs under Triton's interpreter in tests/serving/test_gate_v2.py, which is slow.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from vllm_gate import runner_v2
from vllm_gate.device_state import GateTable
from vllm_gate.runner_v2 import GateV2
from vllm_gate.step_plan import Step

VOCAB = 8
TAU = 1.0
SURE, UNSURE = 0, 1  # kinds of rows: entropies of about 0, and of log 8 = 2.08 nats
START = 40  # position of each request's first row


class Case(NamedTuple):
    """One request of the batch."""

    rows: list[int]
    sampled: int  # tokens that vLLM's sampler gives
    left: int  # of them, after the gate
    opened: int | None  # the row of the decision point that counts
    gated: bool = True
    replays: bool = False


CASES = [
    Case([SURE, SURE, UNSURE, SURE], sampled=4, left=2, opened=2),
    Case([SURE, SURE, UNSURE, SURE], sampled=3, left=2, opened=2),
    Case([SURE, SURE, UNSURE, SURE], sampled=2, left=2, opened=None),  # a draft before it fell
    Case([UNSURE, UNSURE], sampled=2, left=0, opened=0),
    Case([UNSURE, SURE, SURE], sampled=3, left=3, opened=None, replays=True),
    Case([UNSURE, UNSURE, SURE], sampled=3, left=1, opened=1, replays=True),
    Case([UNSURE, UNSURE, SURE], sampled=1, left=1, opened=None, replays=True),
    Case([UNSURE, UNSURE], sampled=2, left=2, opened=None, gated=False),
    Case([SURE, UNSURE], sampled=2, left=1, opened=1),  # the one behind all drafts
    Case([UNSURE], sampled=0, left=0, opened=None),  # a prompt that is not finished
    Case([UNSURE], sampled=1, left=0, opened=0),
    Case([SURE], sampled=1, left=1, opened=None),
]


def batch_of(cases: list[Case]) -> Any:
    """As much of vLLM's InputBatch as the gate looks at. Slots are turned round."""
    counts = torch.tensor([len(case.rows) for case in cases])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]).int()
    slots = torch.arange(len(cases)).flip(0)
    places = torch.cat([torch.arange(int(count)) for count in counts]).int()
    return SimpleNamespace(
        req_ids=[str(number) for number in range(len(cases))],
        has_structured_output_reqs=False,
        cu_num_logits=starts,
        cu_num_logits_np=starts.numpy(),
        idx_mapping=slots,
        expanded_idx_mapping=slots.repeat_interleave(counts),
        expanded_local_pos=places,
        positions=START + places.long(),
        logits_indices=torch.arange(int(starts[-1])),
    )


def logits_of(cases: list[Case]) -> torch.Tensor:
    """[L, V]: row number n is sure of token n mod V, or of none."""
    rows = [kind for case in cases for kind in case.rows]
    sure = torch.nn.functional.one_hot(torch.arange(len(rows)) % VOCAB, VOCAB) * 50.0
    return sure * (torch.tensor(rows) == SURE)[:, None]


def runner_of(cases: list[Case], trace: int) -> Any:
    """A runner in the middle of a step."""
    runner: Any = GateV2()
    runner.parallel_config = SimpleNamespace(tensor_parallel_size=1)
    runner.device = torch.device("cpu")
    runner.table = GateTable(len(cases), torch.device("cpu"))
    runner.plan = {}
    for number, (slot, case) in enumerate(zip(reversed(range(len(cases))), cases, strict=True)):
        runner.table.add(slot, TAU if case.gated else None)
        if case.replays:
            runner.table.point[slot] = START
        if case.gated:
            runner.plan[str(number)] = Step(TAU, 1.0, True, case.replays, trace)
    runner.replays = torch.tensor([case.replays for case in cases])
    return runner


def output_of(cases: list[Case]) -> Any:
    """What the sampler gives."""
    counts = torch.tensor([len(case.rows) for case in cases], dtype=torch.int32)
    sampled = torch.tensor([case.sampled for case in cases], dtype=torch.int32)
    return SimpleNamespace(num_sampled=sampled, num_rejected=counts - sampled)


def views_of(runner: Any, output: Any) -> dict[str, Any]:
    """The views that go to the scheduler with the tokens that are left."""
    told = SimpleNamespace(
        req_ids=[str(number) for number in range(len(output.num_sampled))],
        sampled_token_ids=[[1] * int(count) for count in output.num_sampled],
    )
    result = SimpleNamespace(get_output=lambda: told)
    runner_v2._attach(result, runner.plan, runner.views)
    return result.get_output().gate_views


def step(cases: list[Case], trace: int = 2) -> tuple[Any, Any, dict[str, Any]]:
    """(the runner, the sampler's output, the views) after the gate."""
    batch, runner, output = batch_of(cases), runner_of(cases, trace), output_of(cases)
    points, _ = runner.test(logits_of(cases), batch)
    runner.end_at_points(output, points, batch)
    return runner, output, views_of(runner, output)


@pytest.mark.parametrize("cases", [CASES, CASES[-3:]], ids=["drafts", "no drafts"])
def test_tokens_that_are_left(cases: list[Case]) -> None:
    runner, output, views = step(cases)
    assert output.num_sampled.tolist() == [case.left for case in cases]
    assert output.num_sampled.dtype == output.num_rejected.dtype == torch.int32
    rejected = [
        len(case.rows) - (case.left if case.opened is not None else case.sampled) for case in cases
    ]
    assert output.num_rejected.tolist() == rejected
    points = [-1 if case.opened is None else START + case.opened for case in cases]
    assert runner.table.point.flip(0).tolist() == points
    for number, case in enumerate(cases):
        if not case.gated:
            assert str(number) not in views
            continue
        view = views[str(number)]
        assert (view.opened is not None) == (case.opened is not None)
        if view.opened is not None:
            assert view.opened.entropy == pytest.approx(np.log(VOCAB))
            assert len(view.opened.probabilities) == VOCAB
        shut = case.rows[int(case.replays) : case.left]
        assert [one.entropy > TAU for one in view.shut] == [kind == UNSURE for kind in shut]


def test_views_that_nobody_asks_for() -> None:
    _, _, views = step(CASES, trace=0)
    assert set(views) == {str(n) for n, case in enumerate(CASES) if case.opened is not None}
    assert not any(view.shut or view.opened.ids for view in views.values())


def test_a_trace_is_of_the_requests_that_ask_for_it() -> None:
    """The rows of one are not the other's."""
    batch, runner = batch_of(CASES), runner_of(CASES, 0)
    number = next(n for n, case in enumerate(CASES) if case.opened == 1)
    runner.plan[str(number)] = runner.plan[str(number)]._replace(trace=1)
    logits = logits_of(CASES)
    row = int(batch.cu_num_logits[number]) + 1
    logits[row, 5] += 0.1  # the best at that decision point
    points, _ = runner.test(logits, batch)
    ids, probabilities = points.seen
    assert ids.shape == probabilities.shape == (1, VOCAB)
    assert int(ids[0, 0]) == 5


TWO_ROWS = [
    Case([UNSURE], sampled=1, left=1, opened=None),  # its second row gives the token
    Case([UNSURE], sampled=1, left=0, opened=0),  # has no second row
    Case([SURE], sampled=1, left=1, opened=None),
    Case([UNSURE], sampled=1, left=1, opened=None, replays=True),
    Case([UNSURE], sampled=1, left=1, opened=None, gated=False),
]


def test_a_second_row_gives_the_token_where_the_gate_opens() -> None:
    batch, runner, logits = batch_of(TWO_ROWS), runner_of(TWO_ROWS, 1), logits_of(TWO_ROWS)
    runner.second_rows = ["2", "0", "3"]
    second = torch.arange(3.0)[:, None].expand(3, VOCAB) + 100
    runner.table.temperature[:] = 0.5
    runner.plan["0"] = runner.plan["0"]._replace(temperature=0.5)
    points, changed = runner.test(logits, batch)
    before = changed.clone()
    points, chosen = runner.take_second(points, changed, second, batch)
    assert points.corrected.tolist() == [True, False, False, False, False]
    assert (chosen[0] == 101 / 0.5).all()  # the second of the three, made sharper
    assert (chosen[1:] == before[1:]).all()
    output = output_of(TWO_ROWS)
    runner.end_at_points(output, points, batch)
    assert output.num_sampled.tolist() == [case.left for case in TWO_ROWS]
    views = views_of(runner, output)
    assert set(views) == {"0", "1"}
    assert views["0"].opened is None and views["1"].corrected is None
    assert views["0"].corrected.entropy == pytest.approx(np.log(VOCAB))


def test_a_grammar_masks_second_rows_too() -> None:
    batch, runner, logits = batch_of(TWO_ROWS), runner_of(TWO_ROWS, 0), logits_of(TWO_ROWS)
    batch.has_structured_output_reqs = True
    logits[0, 3] = -torch.inf
    runner.second_rows = ["0"]
    points, logits = runner.test(logits, batch)
    _, chosen = runner.take_second(points, logits, torch.zeros(1, VOCAB), batch)
    assert chosen[0].isneginf().nonzero()[:, 0].tolist() == [3]


def test_only_a_replay_itself_is_made_sharper() -> None:
    batch, runner, logits = batch_of(CASES), runner_of(CASES, 0), logits_of(CASES)
    runner.plan = {name: one._replace(temperature=0.5) for name, one in runner.plan.items()}
    runner.table.temperature[:] = 0.5
    _, changed = runner.test(logits.clone() + 1, batch)
    factors = (changed / (logits + 1))[:, 0].tolist()
    wanted = [
        2.0 if case.replays and place == 0 else 1.0
        for case in CASES
        for place, _ in enumerate(case.rows)
    ]
    assert factors == wanted
