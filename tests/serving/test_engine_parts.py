"""vLLM's private parts are still as serving/engine/ knows them.

When one of these fails, vLLM has changed: read the new source, correct serving/engine/, and only
then the expectation here.
"""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import ROOT

EXPECTED = [
    *("e7a5eafed74a", "634dfed32331", "3534905281a2"),  # bgmv_*
    *("1f116c7327f6", "b00eeaef34aa", "d41ef5aa4be6"),  # sgmv_*
    *("5a2f4707ffb7", "c7bc850c2f8d", "1b697475252e"),  # BaseServing
    *("5cb5c1da02cf", "13c3e81003a7"),  # GPUModelRunner
    *("57c8604ccec2", "c73fd59a99a6", "496c868b1208"),  # BaseLinearLayerWithLoRA
    *("8384ac3c1339", "111b25b22b35"),  # ColumnParallel, MergedColumnParallel
    *("8ad5c46718ce", "f6b4ab36b9c4"),  # RowParallel, Replicated
    *("5b169c35ea69", "38bf7c9b7e45"),  # embedding
    *("e78cb65460f6", "e06c5b852bde"),  # logits
    *("d495e482e77f", "e0c8bab8013a", "f95d398f21af"),  # PunicaWrapperBase, convert_mapping
]


def source_hash(function: Callable[..., Any]) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def test_the_version() -> None:
    from serving import engine

    assert engine.supported()


def test_the_sources_our_replacements_were_written_against() -> None:
    # In a process of its own: here the plugin may have replaced them already.
    script = (
        "from test_engine_parts import source_hash as h\n"
        "from vllm.lora.ops.torch_ops import lora_ops as o\n"
        "from vllm.entrypoints.serve.engine.serving import BaseServing as b\n"
        "from vllm.v1.worker.gpu_model_runner import GPUModelRunner as r\n"
        "from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA as l\n"
        "from vllm.lora.layers.column_parallel_linear import ColumnParallelLinearWithLoRA as c\n"
        "from vllm.lora.layers.column_parallel_linear import"
        " MergedColumnParallelLinearWithLoRA as m\n"
        "from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA as w\n"
        "from vllm.lora.layers.replicated_linear import ReplicatedLinearWithLoRA as p\n"
        "from vllm.lora.layers.vocab_parallel_embedding import"
        " VocabParallelEmbeddingWithLoRA as e\n"
        "from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA as g\n"
        "from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase as u\n"
        "from vllm.lora.punica_wrapper.utils import convert_mapping as v\n"
        "print(*map(h, (o.bgmv_shrink, o.bgmv_expand, o.bgmv_expand_slice, o.sgmv_shrink,"
        " o.sgmv_expand, o.sgmv_expand_slice, b._check_model, b._maybe_get_adapters,"
        " b._is_model_supported, r._sample, r._bookkeeping_sync,"
        " l._apply_lora_to_output, l.set_lora, l.reset_lora, c.forward, m.set_lora, w.forward,"
        " p.forward, e.forward, e.set_lora, g._get_logits, g.set_lora, u.update_metadata,"
        " u._update_base_metadata, v)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "tests" / "serving",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.split() == EXPECTED


def test_kernels_keep_vllms_signatures() -> None:
    from serving.engine import cpu_lora

    for name in cpu_lora.KERNELS:
        function = getattr(cpu_lora, name)
        assert list(inspect.signature(function).parameters)[:4] == [
            "inputs",
            "lora_b_weights",
            "output_tensor",
            "lora_indices_tensor",
        ]


def test_the_plugin_warns_and_leaves_another_vllm_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from serving import engine, plugin
    from serving.engine import cpu_lora

    def refuse() -> None:
        raise AssertionError("installed on a vLLM it was not written for")

    monkeypatch.setattr(engine, "supported", lambda: False)
    monkeypatch.setattr(cpu_lora, "install", refuse)
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
