"""What routers that know LoRA read of /metrics: vLLM's series, with the names that clients use.

    vllm:lora_requests_info{max_lora="8",running_lora_adapters="math,math:gated",...} 1.76e9
    vllm:lora_adapter_loaded{engine="0",adapter_name="math:gated",level="gpu",pinned="false"} 1

llm-d and the Gateway API Inference Extension compare these names with a request's model by
equality. vLLM would write NAME@HASH there, which hardly a request names, so affinity would never
hit. NAME and NAME:gated share their weights: where one of them is, the other is too.

`lora_adapter_loaded` and the two counts are those of vLLM's pull request 54830. Such routers scrape
many times a second, so the engine is asked for its slots once a second at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from serving.aliases import Aliases
from serving.engine_cache import GATED

logger = logging.getLogger(__name__)

# Families that vLLM writes, or will, under the engine's own names.
REPLACED = frozenset(
    {
        "vllm:lora_requests_info",
        "vllm:lora_adapter_loaded",
        "vllm:num_gpu_loaded_lora_adapters",
        "vllm:num_cpu_loaded_lora_adapters",
    }
)
FRESH_SECONDS = 1.0  # the engine's slots are not asked for more often
PATIENCE_SECONDS = 0.2  # a scrape waits no longer for an engine that is busy


class RouterSeries:
    """The series of adapters, for routers.

    Args:
        gated: whether each adapter also has the name NAME:gated.
    """

    def __init__(self, aliases: Aliases, gated: bool) -> None:
        self.aliases = aliases
        self.suffixes = ("", GATED) if gated else ("",)
        self._locations: dict[str, list[int]] = {}  # version -> engines that have it in a slot
        self._asked = -FRESH_SECONDS
        self._asking: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------ where the weights are

    async def look(self) -> None:
        """Ask the engine which adapters are in slots, unless it was asked a moment ago."""
        if self._asking is None and time.monotonic() - self._asked >= FRESH_SECONDS:
            self._asked = time.monotonic()
            self._asking = asyncio.ensure_future(self._ask())
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=PATIENCE_SECONDS)

    async def _ask(self) -> None:
        try:
            self._locations = await self.aliases.cache.locations()
        except Exception as error:  # an engine that ends: the page goes on with what is known
            logger.warning("the engine does not say which adapters are in its slots: %s", error)
        finally:
            self._asking = None

    # ---------------------------------------------------------------------------------- the series

    def collect(self) -> Iterable[Metric]:
        """The families, as prometheus_client collects them."""
        names = self._names()
        loaded = [one for one in self.aliases.cache if not one.retired]
        running = [name for one in loaded if one.in_flight for name in names.get(one.version, ())]
        waiting = [
            name
            for version, its in names.items()
            if self.aliases.waiting_for(version)
            for name in its
        ]
        info = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Names whose adapters answer or wait; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        # In names, as what it is compared with: each adapter in a slot has so many.
        limit = self.aliases.slots.total * len(self.suffixes)
        info.add_metric((str(limit), ",".join(running), ",".join(waiting)), time.time())
        yield info
        residents = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "1 for each name whose adapter is in a slot (gpu) or in host memory alone (cpu).",
            labels=("engine", "adapter_name", "level", "pinned"),
        )
        in_slots = GaugeMetricFamily(
            "vllm:num_gpu_loaded_lora_adapters", "Adapters in slots.", labels=("engine",)
        )
        in_memory = GaugeMetricFamily(
            "vllm:num_cpu_loaded_lora_adapters", "Adapters in host memory.", labels=("engine",)
        )
        for engine in range(len(self.aliases.slots.engines)):
            there = {v for v, engines in self._locations.items() if engine in engines}
            for one in loaded:
                level = "gpu" if one.version in there else "cpu"
                for name in names.get(one.version, ()):
                    labels = (str(engine), name, level, str(one.pinned).lower())
                    residents.add_metric(labels, 1)
            in_slots.add_metric((str(engine),), sum(one.version in there for one in loaded))
            in_memory.add_metric((str(engine),), len(loaded))
        yield from (residents, in_slots, in_memory)

    def _names(self) -> dict[str, list[str]]:
        """NAME@HASH -> the names of clients that it answers for now."""
        return {
            version: [name + suffix for name in names for suffix in self.suffixes]
            for version, names in self.aliases.names_by_version().items()
        }
