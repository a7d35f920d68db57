"""The public face: engine_args, GateParams, GateReport, and the parts that belong together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support import python

from vllm_gate import GateError, GateParams, GateReport, engine_args
from vllm_gate.params import LONGEST, WATCHED


@pytest.mark.parametrize(
    "more",
    [
        {"correction_temperature": 0.25, "trace": 2},
        {"guidance_scale": 1.5, "guidance_prompt": (3, 4)},
        {"watched": True},
    ],
)
def test_params_make_the_round_trip(more: dict[str, Any]) -> None:
    params = GateParams(tau=0.5, **more)
    assert GateParams.of(params.extra_args()) == params


def test_the_engine_is_told_no_more_than_is_asked() -> None:
    told = GateParams(0.5).extra_args()
    assert WATCHED not in told and not any(name.startswith("guidance") for name in told)
    assert GateParams.of(None) is GateParams.of({"theirs": 1}) is None
    assert GateParams.of({"gate_tau": 1, "theirs": 1}) == GateParams(1.0)


def test_the_old_name_of_the_temperature() -> None:
    assert GateParams.of({"gate_tau": 1, "gate_temperature": 0.5}) == GateParams(1.0, 0.5)
    with pytest.raises(ValueError, match="gate_temperature: deprecated"):
        GateParams.of({"gate_tau": 1, "gate_temperature": 0.5, "correction_temperature": 0.5})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tau": -1}, "gate_tau: must be a number >= 0, in nats, not -1"),
        ({"tau": float("nan")}, "gate_tau"),
        ({"tau": 1, "correction_temperature": 0}, "correction_temperature: must be a number"),
        ({"tau": 1, "trace": 3}, "gate_trace: must be 0, 1 or 2, not 3"),
        ({"tau": 1, "guidance_scale": 1.5}, "guidance_scale"),
        ({"tau": 1, "guidance_prompt": (1,)}, "guidance_prompt"),
        ({"tau": 1, "guidance_scale": -0.1, "guidance_prompt": (1,)}, "guidance_scale"),
        ({"tau": 1, "guidance_scale": float("nan"), "guidance_prompt": (1,)}, "guidance_scale"),
        *(
            ({"tau": 1, "guidance_scale": 2, "guidance_prompt": prompt}, "guidance_prompt")
            for prompt in ((1,) * (LONGEST + 1), (True,), "a text")
        ),
    ],
)
def test_params_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GateParams(**values)


def test_a_report_by_sequence() -> None:
    told = {"0": {"gated_tokens": 1, "trace": [{"position": 0, "gated": True}]}}
    output: Any = SimpleNamespace(kv_transfer_params={"gate": told, "theirs": 1})
    assert GateReport.of(output) == GateReport(1, [{"position": 0, "gated": True}])
    assert GateReport.of(output, 1) is None
    for params in (None, {}, {"theirs": 1}):
        assert GateReport.of(SimpleNamespace(kv_transfer_params=params)) is None  # type: ignore[arg-type]


def test_the_package_needs_neither_torch_nor_vllm_to_import() -> None:
    code = (
        "import sys, vllm_gate\n"
        "found = {'torch', 'vllm', 'training', 'serving'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    ended = python("-c", code, check=False)
    assert ended.returncode == 0, ended.stderr


def test_engine_args() -> None:
    pytest.importorskip("vllm")
    assert set(engine_args("cpu")) == {"scheduler_cls", "worker_cls", "logits_processors"}
    assert engine_args("cuda")["worker_cls"] != engine_args("cpu")["worker_cls"]
    assert set(engine_args("cpu", gate=False)) == {"worker_cls"}
    assert engine_args("cuda", gate=False) == {}
    with pytest.raises(GateError, match="no model runner for 'tpu' devices"):
        engine_args("tpu")


def config(**arguments: Any) -> Any:
    """As much of a VllmConfig as says which classes it uses."""
    chosen = engine_args("cpu") | arguments
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=chosen["scheduler_cls"]),
        parallel_config=SimpleNamespace(worker_cls=chosen["worker_cls"]),
        model_config=SimpleNamespace(logits_processors=chosen["logits_processors"]),
    )


def test_our_check_of_arguments_stands_in_no_drafts_way() -> None:
    """vLLM's V1 runner takes no logits processor with speculative decoding; ours edits nothing."""
    pytest.importorskip("vllm")
    from vllm_gate.arguments import GateArguments, build_logitsprocs

    build = build_logitsprocs(lambda *arguments: arguments[-1])
    given = [*engine_args("cpu")["logits_processors"], "theirs:Processor", GateArguments]
    for drafts, wanted in ((None, given), (object(), ("theirs:Processor",))):
        made = build(SimpleNamespace(speculative_config=drafts), None, False, False, given)
        assert made == wanted


def test_a_gate_with_a_part_missing_does_not_start() -> None:
    pytest.importorskip("vllm")
    from vllm_gate.arguments import GateArguments
    from vllm_gate.compat import check_parts

    check_parts(config())
    check_parts(config(logits_processors=["theirs:Processor", GateArguments]))
    for flag, part in (
        ("--scheduler-cls", {"scheduler_cls": None}),
        ("--worker-cls", {"worker_cls": "vllm.v1.worker.cpu_worker.CPUWorker"}),
        ("--logits-processors", {"logits_processors": None}),
    ):
        with pytest.raises(GateError, match=f"^{flag}: the gate needs vllm_gate") as caught:
            check_parts(config(**part))
        assert "\n" not in str(caught.value)
