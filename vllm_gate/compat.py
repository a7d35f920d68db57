"""Where the gate goes into vLLM, and what it cannot go together with.

With `--gate off` vLLM is what it was, but for corrections of its CPU build.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_gate.engine_arguments import ARGUMENTS, CORRECTED, SCHEDULER, WORKERS, engine_args
from vllm_gate.errors import GateError
from vllm_gate.patches import WRITTEN_FOR

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger(__name__)

# KV connectors that find blocks by tokens alone, without LoRA (vllm#44250, LMCache#2961).
BY_TOKENS = ("LMCacheConnectorV1", "LMCacheMPConnector", "HF3FSKVConnector")


class NotGated(NamedTuple):
    """Why a flag cannot be combined with the gate."""

    why: str
    but: tuple[Any, ...] = ()  # values that are harmless, beside None


_PARTS = "a step would have to decide parts of a position"
_SAMPLER = "the gate's sampler does not do it"
_UNTRIED = "it was never tried with a replay"
_OURS = "the gate's own stands there"

# Flags of vLLM's server that cannot be combined with the gate.
NOT_GATED: dict[str, NotGated] = {
    "diffusion_config": NotGated("a step would have to decide all positions at once"),
    "pipeline_parallel_size": NotGated(_PARTS, (1,)),
    "prefill_context_parallel_size": NotGated(_PARTS, (1,)),
    "decode_context_parallel_size": NotGated(_PARTS, (1,)),
    "enable_dbo": NotGated(_PARTS, (False,)),
    "ubatch_size": NotGated(_PARTS, (0,)),
    "enable_return_routed_experts": NotGated(
        "replayed positions would be reported twice", (False,)
    ),
    "enable_trace_replay": NotGated(_SAMPLER, (False,)),
    "return_sampling_mask": NotGated(_SAMPLER, (False,)),
    "enable_batch_sharded_sampling": NotGated(_SAMPLER, (False,)),
    "watermark_config": NotGated(_SAMPLER),
    # A replayed position without its token, or without the layers that share caches.
    "enable_prompt_embeds": NotGated(_UNTRIED, (False,)),
    "kv_sharing_fast_prefill": NotGated(_UNTRIED, (False,)),
    "scheduler_cls": NotGated(_OURS),
    "worker_cls": NotGated(_OURS, ("auto",)),
}

# The same in the configuration of an engine that `vllm serve` or `vllm.LLM` has made.
NOT_GATED_IN_ENGINE = {
    "model_config.enable_prompt_embeds": "prompt embeddings",
    "model_config.enable_trace_replay": "trace replay",
    "model_config.return_sampling_mask": "sampling masks",
    "model_config.enable_return_routed_experts": "reports of routed experts",
    "aux_output_config.enabled": "reports of routed experts",
    "parallel_config.enable_dbo": "dual batch overlap",
    "cache_config.kv_sharing_fast_prefill": "fast prefill of layers that share caches",
    "lora_config.specialize_active_lora": "kernels specialized to the number of adapters",
    "watermark_config": "watermarks",
    "diffusion_config": "diffusion",
}


def put_in(args: Namespace) -> None:
    """Have the engine that `args` describes use our scheduler, worker and arguments.

    Raises:
        GateError: another vLLM, another device, or a feature that cannot be gated.
    """
    from vllm.platforms import current_platform

    ours = engine_args(current_platform.device_type)
    for dest, refusal in NOT_GATED.items():
        if getattr(args, dest, None) not in (None, *refusal.but):
            raise GateError(
                f"--{dest.replace('_', '-')}: not together with the gate, as {refusal.why}; leave "
                "it out, or use --gate off"
            )
    told = {key.replace("-", "_"): value for key, value in (args.speculative_config or {}).items()}
    problem = draft_problem(Namespace(**{"method": args.spec_method} | told))
    if problem:
        raise GateError(f"--speculative-config: {problem}; choose another, or use --gate off")
    args.scheduler_cls, args.worker_cls = ours["scheduler_cls"], ours["worker_cls"]
    args.logits_processors = [*ours["logits_processors"], *(args.logits_processors or [])]


def leave_out(args: Namespace) -> None:
    """Have the engine that `args` describes do without the gate.

    On the CPU the faults of vLLM's build are corrected, unless the worker is somebody else's.
    """
    from vllm.platforms import current_platform

    if args.worker_cls == "auto":
        args.worker_cls = engine_args(current_platform.device_type, gate=False).get(
            "worker_cls", "auto"
        )
    if current_platform.is_cpu() and args.worker_cls != CORRECTED:
        logger.warning(
            "vLLM's CPU build left as it is: base requests beside an adapter's may get its output, "
            "a seeded one may end the engine (vLLM %s corrects neither, another one may)",
            WRITTEN_FOR,
        )


def check_parts(vllm_config: VllmConfig) -> None:
    """That scheduler, worker and request arguments are all the gate's.

    Raises:
        GateError: one of them is not; alone, the others would not gate, and would not say so.
    """
    parallel = vllm_config.parallel_config
    processors = vllm_config.model_config.logits_processors or []
    named = [
        one if isinstance(one, str) else f"{one.__module__}:{one.__name__}" for one in processors
    ]
    for flag, ours, there in (
        ("--scheduler-cls", SCHEDULER, vllm_config.scheduler_config.scheduler_cls == SCHEDULER),
        ("--worker-cls", " or ".join(WORKERS.values()), parallel.worker_cls in WORKERS.values()),
        ("--logits-processors", ARGUMENTS, ARGUMENTS in named),
    ):
        if not there:
            raise GateError(f"{flag}: the gate needs {ours} there; see docs/vllm-plugin.md")


def shares_slots(vllm_config: VllmConfig) -> bool:
    """Whether a gated request needs a LoRA slot only in the steps that correct a token.

    The V2 runner finds and corrects decision points on the device, before the scheduler hears of
    them: there it needs one throughout.
    """
    return not vllm_config.use_v2_model_runner and not vllm_config.scheduler_config.async_scheduling


def check(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
    """What only the engine knows, when it starts.

    Raises:
        GateError: a model or a setting that cannot be gated.
    """
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        SlidingWindowSpec,
    )

    readable = FullAttentionSpec | SlidingWindowSpec | ChunkedLocalAttentionSpec
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    # Layers that differ in size only have their specs in a common one.
    specs = [getattr(spec, "first_spec", spec) for spec in specs]
    odd = next((spec for spec in specs if not isinstance(spec, readable | MambaSpec)), None)
    connector = next(filter(BY_TOKENS.__contains__, _connectors(vllm_config)), None)
    drafts = draft_problem(vllm_config.speculative_config)
    reasons = {
        "a model whose layers keep a recurrent state: the state after a position has that position "
        "folded in, and its replay would need the state before it": (
            any(isinstance(spec, MambaSpec) for spec in specs)
        ),
        f"a model whose layers keep a {type(odd).__name__}": odd is not None,
        f"{connector}, which finds blocks by their tokens alone: always-on adapters and the base "
        "would read one another's keys and values": connector is not None,
        f"speculative decoding, {drafts}": drafts is not None,
        "pipeline parallelism": vllm_config.parallel_config.pipeline_parallel_size > 1,
        "asynchronous scheduling with the V1 model runner (add --no-async-scheduling)": (
            vllm_config.scheduler_config.async_scheduling and not vllm_config.use_v2_model_runner
        ),
    }
    for path, feature in NOT_GATED_IN_ENGINE.items():
        value: Any = vllm_config
        for name in path.split("."):
            value = getattr(value, name, None)
        reasons[feature] = reasons.get(feature, False) or bool(value)
    for reason, there in reasons.items():
        if there:
            raise GateError(f"the gate does not work with {reason}; serve with --gate off")


def draft_problem(speculative: Namespace | SpeculativeConfig | None) -> str | None:
    """Why the gate does not work with a SpeculativeConfig or its settings; None where it does.

    A step may end at any draft, so each has to be verified against the base's distribution.
    """
    if getattr(speculative, "method", None) == "extract_hidden_states":
        return "method extract_hidden_states: its drafts are never verified"
    if getattr(speculative, "rejection_sample_method", None) == "synthetic":
        return (
            "rejection_sample_method synthetic: drafts are accepted at a given rate, whatever the "
            "base thinks of them"
        )
    if getattr(speculative, "enable_adaptive_verification", False):
        return "enable_adaptive_verification: it leaves drafts out after the step is planned"
    return None


def _connectors(vllm_config: VllmConfig) -> list[str]:
    """The KV connectors in use, those inside a MultiConnector included."""
    config = vllm_config.kv_transfer_config
    if config is None:
        return []
    parts = config.kv_connector_extra_config.get("connectors", [])
    return [config.kv_connector, *(part["kv_connector"] for part in parts)]
