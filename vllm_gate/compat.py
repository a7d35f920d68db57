"""Where the gate goes into vLLM, and what it cannot go together with.

With `--gate off` vLLM is what it was, but for corrections of its CPU build.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

from vllm_gate.engine_arguments import ARGUMENTS, CORRECTED, SCHEDULER, WORKERS, engine_args
from vllm_gate.errors import GateError
from vllm_gate.patches import WRITTEN_FOR

logger = logging.getLogger(__name__)

# KV connectors that find blocks by tokens alone, without LoRA (vllm#44250, LMCache#2961).
BY_TOKENS = ("LMCacheConnectorV1", "LMCacheMPConnector", "HF3FSKVConnector")


def put_in(args: Namespace) -> None:
    """Have the engine that `args` describes use our scheduler, worker and arguments.

    Raises:
        GateError: another vLLM, another device, or a feature that cannot be gated.
    """
    from vllm.platforms import current_platform

    ours = engine_args(current_platform.device_type)
    refused = {
        "--pipeline-parallel-size": args.pipeline_parallel_size > 1,
        "--prefill-context-parallel-size": args.prefill_context_parallel_size > 1,
        "--decode-context-parallel-size": args.decode_context_parallel_size > 1,
        "--runner pooling": args.runner == "pooling",
        "--scheduler-cls": args.scheduler_cls,
        "--worker-cls": args.worker_cls != "auto",
    }
    for flag, there in refused.items():
        if there:
            raise GateError(f"{flag}: not together with the gate; leave it out, or use --gate off")
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


def check_parts(vllm_config: Any) -> None:
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


def shares_slots(vllm_config: Any) -> bool:
    """Whether a gated request needs a LoRA slot only in the steps that correct a token.

    The V2 runner finds and corrects decision points on the device, before the scheduler hears of
    them: there it needs one throughout.
    """
    return not vllm_config.use_v2_model_runner and not vllm_config.scheduler_config.async_scheduling


def check(vllm_config: Any, kv_cache_config: Any) -> None:
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
    for reason, there in reasons.items():
        if there:
            raise GateError(f"the gate does not work with {reason}; serve with --gate off")


def draft_problem(speculative: Any) -> str | None:
    """Why the gate does not work with vLLM's SpeculativeConfig; None where it does.

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


def _connectors(vllm_config: Any) -> list[str]:
    """The KV connectors in use, those inside a MultiConnector included."""
    config = vllm_config.kv_transfer_config
    if config is None:
        return []
    parts = config.kv_connector_extra_config.get("connectors", [])
    return [config.kv_connector, *(part["kv_connector"] for part in parts)]
