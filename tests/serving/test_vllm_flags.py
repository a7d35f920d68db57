"""Every flag of the installed vLLM's server: passed on, honoured, or refused by name.

A flag that is in no list was added by a newer vLLM. Look at what it does before it is let through:
whether `vllm serve` acts on it outside of `run_server`, whether it names other files or adapters
than the launcher checks, and whether the gate works with it.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from test_gate_refused import config, layers

from serving import vllm_flags
from serving.settings import SettingsError
from serving.vllm_flags import HONOURED, REFUSED
from vllm_gate import GateError, compat

# vLLM alone acts on these, and the launcher, the store and the gate do not depend on them.
_PASSED_ON = """
    disable_log_stats aggregate_engine_logging fail_on_environ_validation enable_log_requests
    gdn_prefill_backend kda_prefill_backend kda_decode_backend

    chat_template_content_format trust_request_chat_template trust_request_mm_kwargs
    default_chat_template_kwargs response_role return_tokens_as_token_ids enable_auto_tool_choice
    exclude_tools_when_tool_choice_none tool_call_parser tool_parser_plugin tool_strict_level
    tool_server max_log_len enable_prompt_tokens_details enable_per_request_metrics
    enable_server_load_tracking enable_force_include_usage sse_keep_alive_interval
    enable_tokenizer_info_endpoint enable_log_outputs enable_log_deltas cohere_is_reasoning_model
    cohere_format anthropic_disabled_thinking_effort log_error_stack tokens_only enable_scale_out
    fingerprint_mode fingerprint_value

    disable_uvicorn_access_log disable_access_log_for_endpoints allow_credentials allowed_origins
    allowed_methods allowed_headers enable_ssl_refresh root_path enable_request_id_headers
    disable_fastapi_docs h11_max_incomplete_event_size h11_max_header_count enable_offline_docs
    enable_flash_late_interaction

    dtype seed allowed_local_media_path allowed_media_domains max_model_len quantization
    quantization_config allow_deprecated_quantization enforce_eager max_logprobs logprobs_mode
    use_fp64_gumbel disable_sliding_window disable_cascade_attn skip_tokenizer_init hf_overrides
    model_class_overrides pooler_config override_generation_config enable_sleep_mode
    sleep_mode_offload_cudagraph sleep_preserve_parameter_names enable_cumem_allocator
    enable_nccl_comm_suspend model_impl io_processor_plugin renderer_num_workers

    safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size
    model_loader_extra_config ignore_patterns use_tqdm_on_load pt_load_map_location

    speculative_config spec_method spec_model spec_tokens

    attention_backend mamba_backend mamba_ssu_algorithm enable_mamba_cache_stochastic_rounding
    mamba_cache_philox_rounds reasoning_parser reasoning_parser_plugin

    distributed_executor_backend master_addr master_port distributed_timeout_seconds
    cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus device_ids
    tensor_parallel_size dcp_comm_backend dcp_q_replicate dcp_kv_cache_interleave_size
    cp_kv_cache_interleave_size data_parallel_size enable_hc_sp enable_expert_parallel
    enable_ep_weight_filter all2all_backend enable_shm_tensor_arena
    dbo_decode_token_threshold dp_sync_interval dbo_prefill_token_threshold
    disable_nccl_for_dp_synchronization enable_eplb eplb_config expert_placement_strategy
    max_parallel_loading_workers ray_workers_use_nsight disable_custom_all_reduce
    fault_tolerance_config

    block_size gpu_memory_utilization kv_cache_dtype num_gpu_blocks_override enable_prefix_caching
    prefix_caching_hash_algo prefix_cache_retention_interval kv_cache_dtype_skip_layers
    swa_bounded_replay mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size prefix_match_unit
    mamba_cache_mode enable_mamba_shared_prefix_checkpoint replayssm_buffer_len use_replayssm
    kv_offloading_size kv_offloading_backend offload_backend cpu_offload_gb cpu_offload_params
    offload_group_size offload_num_in_group offload_prefetch_step offload_params

    language_model_only limit_mm_per_prompt enable_mm_embeds media_io_kwargs mm_processor_kwargs
    mm_processor_cache_gb mm_processor_cache_type mm_hasher_algorithm
    mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode mm_encoder_attn_backend
    mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
    mm_encoder_fp8_scale_save_margin interleave_mm_strings skip_mm_profiling video_pruning_rate
    video_pruning_method mm_tensor_ipc mm_processor_device mm_ipc_gpu_memory_gb
    mm_device_do_normalize

    lora_dtype enable_tower_connector_lora fully_sharded_loras enable_mixed_moe_lora_format
    enable_moe_shared_loras max_lora_cls_labels

    show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces
    per_request_spec_decode_metrics kv_cache_metrics kv_cache_metrics_sample
    custom_histogram_buckets cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics
    enable_logging_iteration_details jit_monitor_mode jit_monitor_verbose

    max_num_batched_tokens max_num_scheduled_tokens max_num_seqs max_num_active_seqs
    max_num_queued_reqs max_num_queued_tokens long_prefill_token_threshold
    long_prefill_token_threshold_adaptive scheduling_policy enable_chunked_prefill
    disable_chunked_mm_input scheduler_reserve_full_isl watermark prefill_schedule_interval
    disable_hybrid_kv_cache_manager async_scheduling stream_interval

    cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority enable_flashinfer_autotune
    moe_backend linear_backend sparse_indexer_topk_backend

    kv_transfer_config kv_events_config ec_transfer_config ec_manager_config compilation_config
    attention_config engram_config reasoning_config kernel_config additional_config
    structured_outputs_config profiler_config optimization_level performance_mode
"""
PASSED_ON = set(_PASSED_ON.split())
IN_ENGINE = {"aux_output_config"}  # an object in any case; the gate looks at it in the engine

# A value that is refused, of each flag that is.
VALUES: dict[str, tuple[str, ...]] = {
    "api_server_count": ("2",),
    "grpc_port": ("9000",),
    "data_parallel_rank": ("1",),
    "data_parallel_start_rank": ("1",),
    "data_parallel_size_local": ("1",),
    "data_parallel_address": ("10.0.0.2",),
    "data_parallel_rpc_port": ("9000",),
    "data_parallel_backend": ("ray",),
    "elastic_ep_max_dp_size": ("4",),
    "data_parallel_supervisor_port": ("9000",),
    "dp_supervisor_probe_interval_s": ("1",),
    "dp_supervisor_probe_timeout_s": ("1",),
    "dp_supervisor_probe_failure_threshold": ("1",),
    "nnodes": ("2",),
    "node_rank": ("1",),
    "lora_modules": ("name=folder",),
    "default_mm_loras": ('{"image": "folder"}',),
    "lora_target_modules": ("q_proj",),
    "runner": ("pooling",),
    "convert": ("embed",),
    "hf_config_path": ("elsewhere",),
    "config_format": ("mistral",),
    "load_format": ("dummy",),
    "tokenizer_mode": ("mistral",),
    "weight_transfer_config": ('{"backend": "nccl"}',),
    "worker_extension_cls": ("theirs.Extension",),
    "api_key": ("secret",),
}


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    made: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    return made


def test_each_flag_is_in_one_list(parser: argparse.ArgumentParser) -> None:
    flags = {action.dest for action in parser._actions} - {"help"}
    lists = {
        "passed on": PASSED_ON,
        "honoured": set(HONOURED) - set(compat.NOT_GATED),
        "refused": set(REFUSED),
        "refused with the gate": set(compat.NOT_GATED) | IN_ENGINE,
    }
    where = {flag: [name for name, members in lists.items() if flag in members] for flag in flags}
    assert {flag: names for flag, names in where.items() if len(names) != 1} == {}
    assert set().union(*lists.values()) - flags == set(), "this vLLM has no such flags"


def test_each_refused_flag_is_named_with_the_way_out(parser: argparse.ArgumentParser) -> None:
    bare = {action.dest for action in parser._actions if action.nargs == 0}
    line = []
    for dest in REFUSED:
        if dest in VALUES:
            line += [f"--{dest.replace('_', '-')}", *VALUES[dest]]
        elif dest in bare:
            line.append(f"--{dest.replace('_', '-')}")
        else:
            assert dest in ("model_tag", "config"), f"{dest}: no value to try"
    with pytest.raises(SettingsError) as error:
        vllm_flags.parse(["some/model", *line])
    lines = str(error.value).splitlines()
    assert lines[0] == "some/model: name the base with --model"
    named = {line.partition(":")[0] for line in lines}
    assert named == {"some/model", *(f"--{dest.replace('_', '-')}" for dest in REFUSED)} - {
        "--model-tag",
        "--config",
    }
    assert all(refusal.why for refusal in REFUSED.values())


def test_engines_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="--data-parallel-size 0: 1 or more"):
        vllm_flags.parse(["--data-parallel-size", "0"])
    drafts = '{"method": "ngram", "num_speculative_tokens_per_batch_size": [[1, 4, 4]]}'
    line = ["--speculative-config", drafts]
    assert vllm_flags.parse(line).speculative_config["method"] == "ngram"
    with pytest.raises(SettingsError, match="ignores num_speculative_tokens_per_batch_size"):
        vllm_flags.parse([*line, "--data-parallel-size", "2"])


def test_harmless_values_are_let_through() -> None:
    args = vllm_flags.parse(
        [
            *("--api-server-count", "1", "--runner", "generate", "--load-format", "safetensors"),
            *("--tokenizer-mode", "hf", "--config-format", "hf", "--nnodes", "1"),
        ]
    )
    assert (args.api_server_count, args.runner) == (1, "generate")


@pytest.fixture(scope="module")
def defaults(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The value of each flag that is not given; the gate works with these."""
    values = {action.dest: action.default for action in parser._actions}
    compat.put_in(Namespace(**values))
    return values


@pytest.mark.parametrize("dest", sorted(compat.NOT_GATED))
def test_each_flag_that_cannot_be_gated_is_named(dest: str, defaults: dict[str, Any]) -> None:
    with pytest.raises(GateError, match=f"--{dest.replace('_', '-')}: not together with the gate"):
        compat.put_in(Namespace(**defaults | {dest: "theirs"}))


@pytest.mark.parametrize("path", sorted(compat.NOT_GATED_IN_ENGINE))
def test_the_engine_looks_for_the_same(path: str) -> None:
    """Where it was made by `vllm serve` or `vllm.LLM`, which do not call our launcher."""
    part = whole = config()
    compat.check(whole, layers())
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(part, parent):
            setattr(part, parent, SimpleNamespace())
        part = getattr(part, parent)
    setattr(part, name, True)
    with pytest.raises(GateError, match=compat.NOT_GATED_IN_ENGINE[path]):
        compat.check(whole, layers())


def test_those_names_are_vllms() -> None:
    from dataclasses import fields

    from vllm.config import VllmConfig

    known = {field.name for field in fields(VllmConfig)}
    assert {path.partition(".")[0] for path in compat.NOT_GATED_IN_ENGINE} <= known


def test_flags_of_vllms_log_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.logger

    seen: list[Namespace] = []
    monkeypatch.setattr(vllm.logger, "configure_logging_from_args", seen.append)
    args = vllm_flags.parse(["--log-level", "ERROR"])
    assert any(hasattr(args, name) for name in vllm_flags.LOGGING)
    vllm_flags.configure_logging(args)
    assert seen == [args]
    assert not any(hasattr(vllm_flags.parse([]), name) for name in vllm_flags.LOGGING)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--store", "do you mean --adapters?"),
        ("--defaultgate-rate", "do you mean --default-gate-rate?"),
        ("--tensor-paralel-size", "do you mean --tensor-parallel-size?"),
        ("--frobnicate", "`--help` lists ours"),
    ],
)
def test_an_unknown_flag_is_named_with_the_one_that_is_meant(flag: str, meant: str) -> None:
    with pytest.raises(SettingsError) as refused:
        vllm_flags.parse(["--model", "m", flag, "3"])
    said = f"{flag}: neither a setting of this server nor a flag of vLLM; {meant}"
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("--dtype float32 --hf-token swordfish", "--dtype float32 --hf-token ***"),
        ("--hf-token=swordfish -tp 2", "--hf-token=*** -tp 2"),
        ("--hf_token swordfish --dtype float32", "--hf_token *** --dtype float32"),
        ("--hf-tok swordfish", "--hf-tok ***"),
        ("--hf-token --dtype float32", "--hf-token --dtype float32"),  # that of the hub's login
        ("--otlp-traces-endpoint http://me:swordfish@host", "--otlp-traces-endpoint http://..."),
    ],
)
def test_the_log_shows_no_secret(flags: str, shown: str) -> None:
    assert " ".join(vllm_flags.without_secrets(flags.split())) == shown
