"""Base and adapter as two rows of one step, so that a gated token costs no step of its own.

    row 0     position 41, base      writes its keys and values; its logits give the entropy
    row 1     position 41, adapter   slot -1: reads the base's cache, writes nothing

In every layer vLLM writes the keys and values of all rows before any row attends. So row 1 reads
what row 0 has written in the same step, and is the replay that would have come one step later. The
device takes the token from row 1 where the gate is open at row 0, and from row 0 elsewhere.

A second row costs the work of a row in every step, also where the gate stays shut. It pays where
rows are nearly free, in small batches, and for requests whose gate opens often. So it is off unless
the engine is told otherwise, in vLLM's own way:

    --additional-config '{"gate_two_rows": {"rows": 32, "rate": 0.05}}'

`rows` is the largest step, second rows included, and `rate` the past gate rate from which on a
request gets one. Works with the V2 model runner, in steps that decode one token for every request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_gate.errors import GateError

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch

SETTING = "gate_two_rows"  # in vLLM's additional_config
RATE = 0.05
SECOND = "\0second row"  # behind a request's id
SLOW_START = 16  # tokens without a decision point that a request's past rate begins with


@dataclass(frozen=True)
class TwoRows:
    """When a request gets a second row."""

    rows: int = 0  # of a step at most, second rows included; 0: never
    rate: float = RATE

    @classmethod
    def of(cls, vllm_config: VllmConfig) -> TwoRows:
        """What an engine is told.

        Raises:
            GateError: a setting that does not fit, or an engine that cannot do it.
        """
        found = getattr(vllm_config, "additional_config", None)
        told = found.get(SETTING) if isinstance(found, dict) else None
        if told is None:
            return cls()
        if not isinstance(told, dict) or not set(told) <= {"rows", "rate"}:
            raise GateError(f"{SETTING}: takes rows and rate, as in {{'rows': 32, 'rate': {RATE}}}")
        rows, rate = told.get("rows", 0), told.get("rate", RATE)
        if type(rows) is not int or rows < 0:
            raise GateError(f"{SETTING}.rows: must be a whole number of rows, 0 or more: {rows!r}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise GateError(f"{SETTING}.rate: must be a gate rate between 0 and 1, not {rate!r}")
        return cls(_possible(rows, vllm_config), float(rate))

    def choose(self, past: Iterable[tuple[str, float]], rows: int) -> set[str]:
        """The requests that get a second row, those first whose gate opens most often.

        Args:
            past: requests that could have one, with their past gate rates.
            rows: of the step, without second ones.
        """
        wanted = [(rate, name) for name, rate in past if rate >= self.rate]
        return {name for _, name in sorted(wanted, reverse=True)[: max(0, self.rows - rows)]}


def _possible(rows: int, vllm_config: VllmConfig) -> int:
    """Of `rows`, as many as the engine has buffers for."""
    reason = {
        "the V2 model runner alone": not vllm_config.use_v2_model_runner,
        "no speculative decoding": vllm_config.speculative_config is not None,
        "no KV connector": vllm_config.kv_transfer_config is not None,
    }
    for wanted, missing in reason.items():
        if rows and missing:
            raise GateError(f"{SETTING}: works with {wanted}; leave it out")
    scheduler = vllm_config.scheduler_config
    return min(rows, scheduler.max_num_seqs, scheduler.max_num_batched_tokens)


def past_rate(gated: int, tokens: int) -> float:
    """A request's gate rate so far, which begins at 0."""
    return gated / (tokens + SLOW_START)


def with_second_rows(output: SchedulerOutput, names: Sequence[str]) -> SchedulerOutput:
    """A step with a further row for each of `names`, behind all others."""
    more = {name + SECOND: 1 for name in names}
    wider = copy(output)
    wider.num_scheduled_tokens = output.num_scheduled_tokens | more
    wider.total_num_scheduled_tokens = output.total_num_scheduled_tokens + len(more)
    return wider


def without_second_rows(batch: InputBatch, count: int) -> InputBatch:
    """The first `count` rows of a batch whose rows have one token each.

    It still has the places of all logits, which are to be computed for all rows.
    """
    kept: dict[str, Any] = {name: getattr(batch, name)[:count] for name in _BY_ROW}
    ends: dict[str, Any] = {name: getattr(batch, name)[: count + 1] for name in _BY_ROW_ENDS}
    return replace(
        batch, num_reqs=count, num_reqs_after_padding=count, num_tokens=count, **kept, **ends
    )


_BY_ROW = (
    "req_ids",
    "idx_mapping",
    "idx_mapping_np",
    "expanded_idx_mapping",
    "expanded_local_pos",
    "num_scheduled_tokens",
    "seq_lens",
    "seq_lens_cpu_upper_bound",
    "num_computed_tokens_np",
    "prefill_len_np",
    "num_computed_prefill_tokens_np",
    "is_prefilling_np",
)
_BY_ROW_ENDS = ("query_start_loc", "query_start_loc_np", "cu_num_logits", "cu_num_logits_np")
