"""More adapters than LoRA slots: in each step some of the requests that run wait for the next.

vLLM admits requests so that their adapters fit into the slots. A gated request counts there only in
the step that corrects a token, so the running ones may want more adapters than fit.

Written for vLLM 0.32 (v1/core/sched/scheduler.py: a request runs in a step whose number is at least
its `next_decode_eligible_step`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from vllm_gate import pins

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Turns:
    """Who may run in a step, among requests with adapters.

    Those come first that have waited longest. Without shared slots there are turns too: a request
    at what seems to be its last token is not counted by vLLM, which gives its slot away; and then a
    replay brings it back.

    Args:
        slots: adapters that a step can run (--max-loras).
        shared: a gated request needs a slot only in the steps that correct a token.
    """

    def __init__(self, slots: int, shared: bool) -> None:
        self.slots, self.shared = slots, shared
        self.turned_away: dict[int, int] = {}  # LoRA id -> step since which it has had no slot

    def take(self, running: Iterable[Request], waiting: Iterable[Request], step: int) -> int:
        """Make requests wait for the step after the next one, where there are too many adapters.

        Args:
            running: requests of vLLM; those that wait get their `next_decode_eligible_step`.
            waiting: requests that have not begun.
            step: the number of the step before the one to be scheduled.

        Returns:
            How many adapters vLLM may count in this step, pinned ones that rest left out.
        """
        wanted: dict[int, list[Request]] = {}  # LoRA id -> those that run with it in this step
        for request in running:
            if request.lora_request is not None:
                wanted.setdefault(request.lora_request.lora_int_id, []).append(request)
        free = self.slots - len(pins.PINNED)
        crowded = self.shared and len(wanted) >= free
        if crowded and step % 2 and _is_kept_waiting(waiting, wanted):
            free -= 1
        now = step + 1
        others = wanted.keys() - pins.PINNED
        turned_away = {one: self.turned_away.get(one, now) for one in others}
        for lora in sorted(others, key=turned_away.__getitem__)[:free]:
            del turned_away[lora]
        for lora in turned_away:
            for request in wanted[lora]:
                request.next_decode_eligible_step = now + 1
        self.turned_away = turned_away
        return self.slots - len(pins.PINNED - wanted.keys())


def _is_kept_waiting(waiting: Iterable[Request], wanted: Container[int]) -> bool:
    """Whether a request that has not begun needs an adapter beside those `wanted`."""
    loras = (request.lora_request for request in waiting)
    return any(lora is not None and lora.lora_int_id not in wanted for lora in loras)
