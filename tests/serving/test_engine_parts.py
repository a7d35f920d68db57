"""vLLM's private parts are still as vllm_gate/ knows them.

When one of these fails, vLLM has changed: read the new source, correct vllm_gate/, and only
then the expectation here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
from collections.abc import Iterable
from pathlib import Path

import pytest

# The start of the SHA-256 of each function's source.
EXPECTED = {
    "vllm.lora.ops.torch_ops.lora_ops": {
        "bgmv_shrink": "e7a5eafed74a",
        "bgmv_expand": "634dfed32331",
        "bgmv_expand_slice": "3534905281a2",
        "sgmv_shrink": "1f116c7327f6",
        "sgmv_expand": "b00eeaef34aa",
        "sgmv_expand_slice": "d41ef5aa4be6",
    },
    "vllm.entrypoints.serve.engine.serving": {
        "BaseServing._check_model": "5a2f4707ffb7",
        "BaseServing._maybe_get_adapters": "c7bc850c2f8d",
        "BaseServing._is_model_supported": "1b697475252e",
    },
    "vllm.v1.worker.gpu_model_runner": {
        "GPUModelRunner._sample": "5cb5c1da02cf",
        "GPUModelRunner._bookkeeping_sync": "13c3e81003a7",
        "GPUModelRunner._get_slot_mappings": "a7830268c258",
    },
    "vllm.v1.worker.gpu.model_runner": {"GPUModelRunner.prepare_attn": "da2162a643e4"},
    "vllm.v1.worker.gpu.block_table": {"BlockTables.compute_slot_mappings": "d62049117725"},
    "vllm.v1.core.sched.scheduler": {"Scheduler._preempt_request": "4113f5de8a84"},
    "vllm.lora.layers.base_linear": {
        "BaseLinearLayerWithLoRA._apply_lora_to_output": "57c8604ccec2",
        "BaseLinearLayerWithLoRA.set_lora": "c73fd59a99a6",
        "BaseLinearLayerWithLoRA.reset_lora": "496c868b1208",
    },
    "vllm.lora.layers.column_parallel_linear": {
        "ColumnParallelLinearWithLoRA.forward": "8384ac3c1339",
        "MergedColumnParallelLinearWithLoRA.set_lora": "111b25b22b35",
    },
    "vllm.lora.layers.row_parallel_linear": {
        "RowParallelLinearWithLoRA.forward": "8ad5c46718ce",
    },
    "vllm.lora.layers.replicated_linear": {
        "ReplicatedLinearWithLoRA.forward": "f6b4ab36b9c4",
    },
    "vllm.lora.layers.vocab_parallel_embedding": {
        "VocabParallelEmbeddingWithLoRA.forward": "5b169c35ea69",
        "VocabParallelEmbeddingWithLoRA.set_lora": "38bf7c9b7e45",
    },
    "vllm.lora.layers.logits_processor": {
        "LogitsProcessorWithLoRA._get_logits": "e78cb65460f6",
        "LogitsProcessorWithLoRA.set_lora": "e06c5b852bde",
    },
    "vllm.lora.punica_wrapper.punica_base": {
        "PunicaWrapperBase.update_metadata": "d495e482e77f",
        "PunicaWrapperBase._update_base_metadata": "e0c8bab8013a",
    },
    "vllm.lora.punica_wrapper.utils": {"convert_mapping": "f95d398f21af"},
}


def source_hashes(module: str, names: Iterable[str]) -> dict[str, str]:
    """Of the functions as they stand in the file: our plugin may have replaced the live ones."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    found = {}
    for name in names:
        node: ast.AST = ast.parse(text)
        for part in name.split("."):
            node = next(
                one for one in ast.iter_child_nodes(node) if getattr(one, "name", "") == part
            )
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        first = min(one.lineno for one in (node, *node.decorator_list))
        source = "".join(lines[first - 1 : node.end_lineno])
        found[name] = hashlib.sha256(source.encode()).hexdigest()[:12]
    return found


def test_the_version() -> None:
    import vllm_gate

    assert vllm_gate.supported()


@pytest.mark.parametrize("module", EXPECTED)
def test_the_sources_our_replacements_were_written_against(module: str) -> None:
    assert source_hashes(module, EXPECTED[module]) == EXPECTED[module]


def test_kernels_keep_vllms_signatures() -> None:
    from vllm_gate.cpu import lora_kernels

    for name in lora_kernels.KERNELS:
        function = getattr(lora_kernels, name)
        assert list(inspect.signature(function).parameters)[:4] == [
            "inputs",
            "lora_b_weights",
            "output_tensor",
            "lora_indices_tensor",
        ]


def test_the_plugin_warns_and_leaves_another_vllm_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import vllm_gate
    from vllm_gate import plugin
    from vllm_gate.cpu import lora_kernels

    def refuse() -> None:
        raise AssertionError("installed on a vLLM it was not written for")

    monkeypatch.setattr(vllm_gate, "supported", lambda: False)
    monkeypatch.setattr(lora_kernels, "install", refuse)
    plugin.register()
    assert "written for vLLM 0.32" in caplog.text


def test_our_endpoints_stay_out_of_a_vllm_that_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.plugins import load_endpoint_plugins

    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert load_endpoint_plugins(("generate",)) == []
    monkeypatch.setenv("VLLM_PLUGINS", "reasonmaxxer,reasonmaxxer_models")
    assert [plugin.name for plugin in load_endpoint_plugins(("generate",))] == [
        "reasonmaxxer_models"
    ]
