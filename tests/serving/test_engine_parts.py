"""vLLM's private parts are still as vllm_gate/patches.py knows them.

When one of these fails, vLLM has changed: read the new source, correct vllm_gate/, and only then
the table (docs/vllm-versions.md).
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest

from loadtests.preloaded import Command
from vllm_gate import patches
from vllm_gate.errors import PatchError
from vllm_gate.patches import TABLE, Patch


@cache
def parsed(path: Path) -> tuple[list[str], ast.Module]:
    """The lines and the syntax of a file, in which several rows have functions."""
    text = path.read_text(encoding="utf-8")
    return text.splitlines(keepends=True), ast.parse(text)


def by_syntax(row: Patch) -> str:
    """The source of a row's function as Python's own parser finds it."""
    module, _, owner = (row.source or row.owner).partition(":")
    node: ast.AST
    lines, node = parsed(patches._path(module))
    for part in filter(None, (owner, row.name)):
        node = next(one for one in ast.iter_child_nodes(node) if getattr(one, "name", "") == part)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    first = min(one.lineno for one in (node, *node.decorator_list))
    return "".join(lines[first - 1 : node.end_lineno])


def test_the_version() -> None:
    assert patches.supported()


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_sources_our_code_was_written_against(row: Patch) -> None:
    assert patches.source(row) == by_syntax(row)
    assert patches.sha256(row) == row.sha256


@pytest.mark.parametrize("row", [row for row in TABLE if row.ours], ids=str)
def test_what_the_table_names_is_there(row: Patch) -> None:
    ours = patches._load(row.ours)
    if row.how == "override":
        assert row.name in vars(ours), f"{row.ours} overrides no {row.name}"
    if row.how == "replace":  # what vLLM calls takes what vLLM gives
        theirs = patches.theirs(patches._owner(row), row.name)
        wanted = list(inspect.signature(theirs).parameters)
        taken = inspect.signature(ours).parameters.values()
        if all(one.kind is one.POSITIONAL_OR_KEYWORD for one in taken):
            assert len(list(taken)) == len(wanted)


def test_every_override_stands_in_the_table() -> None:
    """Methods of our subclasses that vLLM has too, and nobody noted."""
    from vllm_gate.cpu.seeds import SeededRows
    from vllm_gate.cpu.worker import CorrectedCPUWorker
    from vllm_gate.runner_v1 import GateRunnerV1
    from vllm_gate.runner_v2 import GateRejectionSampler, GateRunnerV2, GateSampler, GateV2
    from vllm_gate.scheduler import GateMixin

    noted = {(row.ours.rpartition(":")[2], row.name) for row in TABLE if row.how == "override"}
    alone = (GateMixin, SeededRows, GateSampler, GateRejectionSampler, CorrectedCPUWorker)
    for ours, theirs in (
        *((one, one.__mro__[1]) for one in alone),
        (GateRunnerV1, SeededRows.__mro__[1]),
        (GateV2, GateRunnerV2.__mro__[2]),
    ):
        shared = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
        shared = {name for name in shared if hasattr(theirs, name)}
        assert {(ours.__name__, name) for name in shared} <= noted


def test_a_mismatch_is_one_line_that_names_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_gate import engine_args

    changed = [row._replace(sha256="0" * 64) if row.name == "schedule" else row for row in TABLE]
    monkeypatch.setattr(patches, "TABLE", tuple(changed))
    with pytest.raises(
        PatchError, match=r"^vllm\.v1\.core\.sched\.scheduler\.Scheduler\.schedule "
    ) as caught:
        engine_args("cpu")
    assert "\n" not in str(caught.value) and "--gate off" in str(caught.value)
    patches.check("cpu", "outputs")  # whose rows are as they were


def test_a_function_that_vllm_no_longer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TABLE[0]._replace(name="bgmv_nothing")
    monkeypatch.setattr(patches, "TABLE", (row,))
    assert patches.mismatches() == [row]


def test_another_plugin_was_there_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.sample.ops import topk_topp_sampler

    (row,) = (row for row in TABLE if row.name == "apply_top_k_top_p_pytorch")
    monkeypatch.setattr(patches, "_changed", {})
    monkeypatch.setattr(patches, "TABLE", (row,))
    monkeypatch.setattr(topk_topp_sampler, row.name, lambda *_: None)
    with pytest.raises(PatchError, match="apply_top_k_top_p_pytorch has been replaced by"):
        patches.install("cpu")


def test_installing_again_reads_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with every gated request."""
    patches.install("outputs")
    monkeypatch.delattr(patches, "source")
    patches.install("outputs")


def test_a_process_that_does_not_gate_changes_nothing(serving: Command) -> None:
    """Importing the package, and vLLM with all its plugins, replaces no function."""
    code = (
        "import vllm_gate; from vllm_gate import engine_args, patches\n"
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "import vllm_gate.arguments, vllm_gate.answers, vllm_gate.scheduler\n"
        "import vllm_gate.cpu.worker, vllm_gate.runner_v1, vllm_gate.runner_v2\n"
        "engine_args('cpu'); assert not patches._changed, patches._changed\n"
    )
    ended = serving.run(["-c", code])
    assert ended.returncode == 0, ended.output


def test_our_endpoints_stay_out_of_a_vllm_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.plugins import load_endpoint_plugins

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert load_endpoint_plugins(("generate",)) == []
    monkeypatch.setenv("VLLM_PLUGINS", "reasonmaxxer_models")
    assert [plugin.name for plugin in load_endpoint_plugins(("generate",))] == [
        "reasonmaxxer_models"
    ]
