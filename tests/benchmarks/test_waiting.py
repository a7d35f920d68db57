"""What makes the host wait for the device is counted, with the line that does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.waiting import Line, counted


def test_lines_that_wait_are_named() -> None:
    x = torch.arange(6.0)
    with counted() as waits:
        for _ in range(3):
            float(x.sum())
        x[x > 2].mul_(2)
        (x * 2).sum()
        x.tolist()
    by_line = dict(waits.lines)
    assert sorted(by_line.values()) == [1, 1, 3]
    assert {line.file for line in by_line} == {str(Path(__file__).resolve())}
    figures = waits.figures(steps=5)
    assert figures["waits_per_step"] == 1.0
    assert figures["waits_per_step_in_the_gate"] == 0.0
    assert sum(figures["lines"].values()) == 5


def test_nothing_is_counted_afterwards() -> None:
    with counted() as waits:
        pass
    torch.ones(1).item()
    torch.ones(1).tolist()
    assert waits.figures(steps=0)["waits_per_step"] == 0


@pytest.mark.parametrize(
    ("file", "ours"),
    [("/x/vllm_gate/runner_v2.py", True), ("/x/site-packages/vllm/v1/engine/core.py", False)],
)
def test_the_gates_own_lines(file: str, ours: bool) -> None:
    assert Line(file, 1).ours == ours
    assert str(Line(file, 7)).endswith(":7")
