"""What the gate cannot work with is refused at the start, by name, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_launch import arguments

from serving.settings import Settings, SettingsError
from vllm_gate import GateError, compat, engine_arguments, patches


@pytest.fixture
def settings(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Settings(model=str(base_folder))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--pipeline-parallel-size", "2"),
        ("--prefill-context-parallel-size", "2"),
        ("--decode-context-parallel-size", "2"),
        ("--ubatch-size", "2"),
        ("--watermark-config", '{"key": 1}'),
        ("--scheduler-cls", "theirs.Scheduler"),
        ("--worker-cls", "theirs.Worker"),
    ],
)
def test_flags(settings: Settings, tmp_path: Path, flag: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag}.*: not together with the gate.*--gate off"):
        arguments(settings, tmp_path, flag, value)
    off = arguments(settings.model_copy(update={"gate": "off"}), tmp_path, flag, value)
    assert off.scheduler_cls in (None, "theirs.Scheduler")
    assert off.worker_cls in (engine_arguments.CORRECTED, "theirs.Worker")
    assert not off.logits_processors


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"method": "ngram", "num_speculative_tokens": 2}, None),
        ({"model": "drafter", "num-speculative-tokens": 2}, None),
        ({"method": "extract_hidden_states"}, "extract_hidden_states.*never verified"),
        ({"method": "ngram", "rejection-sample-method": "synthetic"}, "synthetic.*a given rate"),
        ({"method": "dspark", "enable_adaptive_verification": True}, "adaptive_verification"),
    ],
)
def test_ways_to_draft(
    settings: Settings, tmp_path: Path, told: dict[str, Any], words: str | None
) -> None:
    flags = ("--speculative-config", json.dumps(told))
    if words is None:
        assert arguments(settings, tmp_path, *flags).scheduler_cls == engine_arguments.SCHEDULER
        return
    with pytest.raises(SettingsError, match=f"--speculative-config: .*{words}.*--gate off"):
        arguments(settings, tmp_path, *flags)
    plain = {key.replace("-", "_"): value for key, value in told.items()}
    with pytest.raises(GateError, match=f"speculative decoding, .*{words}.*--gate off"):
        compat.check(config(speculative_config=SimpleNamespace(**plain)), layers())


def test_a_way_to_draft_named_by_a_flag_of_its_own(settings: Settings, tmp_path: Path) -> None:
    arguments(settings, tmp_path, "--spec-method", "ngram", "--spec-tokens", "2")
    with pytest.raises(SettingsError, match="extract_hidden_states"):
        arguments(settings, tmp_path, "--spec-method", "extract_hidden_states")


def test_what_goes_in(settings: Settings, tmp_path: Path) -> None:
    args = arguments(settings, tmp_path, "--logits-processors", "theirs:Processor")
    assert args.scheduler_cls == engine_arguments.SCHEDULER
    assert args.worker_cls == engine_arguments.WORKERS["cpu"]
    assert args.logits_processors == [engine_arguments.ARGUMENTS, "theirs:Processor"]


def test_another_vllm_or_device(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms import current_platform

    with monkeypatch.context() as patch:
        patch.setattr(patches, "supported", lambda: False)
        with pytest.raises(SettingsError, match=r"written for vLLM 0\.32\.x, and this is"):
            arguments(settings, tmp_path)
    args = arguments(settings.model_copy(update={"gate": "off"}), tmp_path)
    monkeypatch.setattr(type(current_platform), "device_type", "tpu")
    with pytest.raises(GateError, match="'tpu' devices"):
        compat.put_in(args)


def config(**changes: Any) -> Any:
    """What `check` looks at of vLLM's configuration, with nothing wrong in it."""
    return SimpleNamespace(
        **{
            "speculative_config": None,
            "kv_transfer_config": None,
            "parallel_config": SimpleNamespace(pipeline_parallel_size=1),
            "scheduler_config": SimpleNamespace(async_scheduling=False),
            "use_v2_model_runner": False,
        }
        | changes
    )


def layers(*specs: Any) -> Any:
    """A KV cache configuration of these groups."""
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])


SHAPE = {"block_size": 16, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}


def test_attention_of_any_reach_is_let_in() -> None:
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        SlidingWindowSpec,
        UniformTypeKVCacheSpecs,
    )

    full = FullAttentionSpec(**SHAPE)
    window = SlidingWindowSpec(**SHAPE, sliding_window=8)
    chunk = ChunkedLocalAttentionSpec(**SHAPE, attention_chunk_size=8)
    mixed = UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"one": full, "other": full})
    compat.check(config(), layers(full, window, chunk, mixed))


def test_models_whose_past_cannot_be_read_again() -> None:
    from vllm.v1.kv_cache_interface import CrossAttentionSpec, FullAttentionSpec, MambaSpec

    full = FullAttentionSpec(**SHAPE)
    mamba = MambaSpec(block_size=16, shapes=((2, 2),), dtypes=(torch.float32,))
    for odd, why in (
        (mamba, "the state after a position has that position folded in"),
        (CrossAttentionSpec(**SHAPE), "CrossAttentionSpec"),
    ):
        with pytest.raises(GateError, match=f"{why}.*--gate off"):
            compat.check(config(), layers(full, odd))


def connector(name: str, *parts: str) -> Any:
    """The configuration of a KV connector, or of several in one."""
    return SimpleNamespace(
        kv_connector=name,
        kv_connector_extra_config={"connectors": [{"kv_connector": part} for part in parts]},
    )


def test_connectors_that_cannot_tell_adapters_apart() -> None:
    for good in (
        connector("OffloadingConnector"),
        connector("MultiConnector", "NixlConnector", "OffloadingConnector"),
    ):
        compat.check(config(kv_transfer_config=good), layers())
    for bad in (
        connector("LMCacheConnectorV1"),
        connector("MultiConnector", "NixlConnector", "LMCacheMPConnector"),
    ):
        with pytest.raises(GateError, match=r"LMCache.*by their tokens alone.*--gate off"):
            compat.check(config(kv_transfer_config=bad), layers())


def test_the_names_of_those_connectors_are_vllms() -> None:
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    assert set(compat.BY_TOKENS) <= KVConnectorFactory._registry.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_config": SimpleNamespace(enable_prompt_embeds=True)}, "prompt embeddings"),
        ({"watermark_config": object()}, "watermarks"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline parallelism"),
        ({"scheduler_config": SimpleNamespace(async_scheduling=True)}, "--no-async-scheduling"),
    ],
)
def test_configurations_that_only_the_engine_knows(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GateError, match=words):
        compat.check(config(**changes), layers())


def test_stray_arguments_are_refused_at_admission() -> None:
    from vllm import SamplingParams

    from vllm_gate.arguments import GateArguments

    validate = GateArguments.validate_params
    validate(SamplingParams(extra_args={"gate_tau": 0.5, "gate_trace": 1, "gate_temperature": 1}))
    validate(SamplingParams(extra_args={"gate_tau": 0.5, "correction_temperature": 0.5}))
    validate(SamplingParams(prompt_logprobs=1, extra_args={"gate_tau": 0.5}))
    validate(SamplingParams(extra_args={"theirs": 1}))
    for told, words in (
        ({"gate_trace": 1}, "gate_trace"),
        ({"gate_rate": 0.1}, "gate_rate"),
        ({"gate_tau": float("nan")}, "gate_tau"),
        ({"gate_tau": True}, "gate_tau"),
        ({"correction_temperature": 0.5}, "goes with a gated model"),
        ({"gate_tau": 1, "gate_temperature": 0}, "correction_temperature"),
        (
            {"gate_tau": 1, "gate_temperature": 1, "correction_temperature": 1},
            "gate_temperature: deprecated",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            validate(SamplingParams(extra_args=told))
