"""Settings of the benchmarks: what cannot be measured is refused before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from support import Refused

from adapters.command_line import CommandLine
from benchmarks import gate_gpu
from benchmarks.bucket import BucketConfig
from benchmarks.conversation import ConversationConfig
from benchmarks.fit_steps import FitStepsConfig
from benchmarks.gate import GateConfig, gated_at
from benchmarks.grading import pair
from benchmarks.prefix import PrefixConfig
from benchmarks.startup import StartupConfig
from benchmarks.swap import SwapConfig
from training.problems.rows import Row


@pytest.mark.parametrize(
    ("config", "argv", "word"),
    [
        (GateConfig, ["--batch", "4,0"], "--batch.1"),
        (GateConfig, ["--rates", "3"], "--rates.0"),
        (GateConfig, ["--starts", "2"], "--starts goes with --model"),
        (GateConfig, ["--drafts-up-to", "4"], "--drafts-up-to goes with --speculative"),
        (gate_gpu.GpuConfig, ["--batch", "0"], "--batch.0"),
        (StartupConfig, ["--model", "x", "--only", "serving"], "--only: there are plain vLLM"),
        (FitStepsConfig, ["--only", "train"], "--only.0"),
        (ConversationConfig, ["--turns", "3"], "--turns"),
        (ConversationConfig, ["--turns", "60"], "--turns: the conversation has 4696 tokens"),
        (PrefixConfig, ["--prompt", "5000"], "--prompt"),
        (SwapConfig, ["--moves", "0"], "--moves"),
        (BucketConfig, ["--idle", "0"], "--idle"),
        (BucketConfig, ["--adapters", "12"], "--cold must be below --adapters"),
        (BucketConfig, ["--url", "/tmp/store"], "--url is no bucket"),
    ],
)
def test_bad_settings(
    config: type[CommandLine], argv: list[str], word: str, refused: Refused
) -> None:
    assert word in refused(config.load, argv)


@pytest.mark.parametrize("engine", get_args(gate_gpu.Engine))
def test_every_engine_can_be_named(engine: str) -> None:
    assert gate_gpu.GpuConfig.load(["--engines", engine]).engines == [engine]


def test_every_rate_is_a_mode() -> None:
    assert [gated_at(rate) for rate in (0.02, 0.025, 0.07)] == [
        *("gated at 2%", "gated at 2.5%", "gated at 7%")
    ]


def test_an_engine_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "prepare": lambda: None,
        "make_model": lambda *_, **__: (Path("base"), [Path("adapter")], 1),
        "run_child": lambda *_: [],
        "save": lambda *_: None,
    }.items():
        monkeypatch.setattr(gate_gpu, name, value)
    monkeypatch.setattr(sys, "argv", ["gate_gpu", "--shape", "tiny"])
    assert gate_gpu.main() == 1


@pytest.mark.parametrize(("written", "right"), [("False", False), ("true", True), (1, True)])
def test_a_pair_is_right_or_not(written: Any, right: bool) -> None:
    assert pair(Row("x.csv, line 2", {"text": "1", "answer": "1", "right": written}))["right"] is (
        right
    )


@pytest.mark.parametrize("more", [{}, {"right": None}, {"right": "perhaps"}])
def test_a_pair_that_is_none(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--pairs: x\.csv, line 2: .*right"):
        pair(Row("x.csv, line 2", {"text": "1", "answer": "1", **more}))
