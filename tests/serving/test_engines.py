"""What the server asks of several engines, without starting one."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from fleet import Engine, completion, make_admission, nothing
from prometheus_client import CollectorRegistry, Gauge
from vllm.exceptions import GracefulHTTPError
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import SchedulerStats

from adapters.adapter import AdapterError
from adapters.store import Store
from serving import engines
from serving.middleware import Drain
from serving.request import RequestContext, RequestMiddleware


class Client:
    """vLLM's client of two engines."""

    core_engines = (b"\0", b"\1")

    def __init__(self) -> None:
        self.engine_inflight = Counter({b"\1": 3})

    async def call_utility_all_async(self, *asked: Any) -> list[Any]:
        assert asked == ("collective_rpc", "adapters_on_device", None, (), None)
        return [[[1], [1]], [[1, 2], [1, 2]]]  # of two workers each


def test_each_engine_says_what_it_holds() -> None:
    both: Any = SimpleNamespace(engine_core=Client())
    assert asyncio.run(engines.on_each(both, "adapters_on_device")) == [[1], [1, 2]]
    assert [engines.in_flight(both, rank) for rank in (0, 1)] == [0, 3]
    alone: Any = Engine()
    assert asyncio.run(engines.on_each(alone, "adapters_on_device")) == [[]]
    assert engines.in_flight(alone, 0) == 0


def test_sets_of_adapters_in_flight_leave_no_series() -> None:
    registry, labels = CollectorRegistry(), ("max_lora", "waiting", "running")
    gauge = Gauge("lora_requests_info", "", labels, registry=registry)
    counts = MagicMock(
        gauge_lora_info=gauge,
        max_lora=4,
        labelname_max_lora="max_lora",
        labelname_waiting_lora_adapters="waiting",
        labelname_running_lora_adapters="running",
    )
    client: Any = SimpleNamespace(logger_manager=SimpleNamespace(stat_loggers=[object(), counts]))

    def series_after(*adapters: str) -> int:
        in_flight = dict.fromkeys(adapters, 1)
        stats = SchedulerStats(running_lora_adapters=in_flight, waiting_lora_adapters=in_flight)
        PrometheusStatLogger.record(counts, stats, None)
        (family,) = registry.collect()
        return len(family.samples)

    assert [series_after("a", "b"), series_after("b", "a")] == [1, 2]
    engines.count_no_adapters(client)
    assert {series_after(*order) for order in permutations("abcd")} == {2}
    engines.count_no_adapters(Engine())  # type: ignore[arg-type]


def failing(name: str | None = None, code: int = 0, errored: bool = True) -> Any:
    """An engine client; its process `name` has ended with `code`."""
    codes = {} if name is None else {name: code}
    manager = SimpleNamespace(failed_proc_name=name, finished_procs=lambda: codes)
    core = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager))
    return SimpleNamespace(engine_core=core, errored=errored)


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (failing(errored=False), None),
        (failing(), "an engine has ended"),
        (failing("EngineCore_DP1", -9), "EngineCore_DP1 has ended with signal 9"),
        (failing("EngineCore_DP0", 1), "EngineCore_DP0 has ended with 1"),
    ],
)
def test_an_engine_that_ends_by_itself_is_named(
    client: Any, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    client.shutdown = lambda: None
    admitted: list[int] = []
    client.check_admission = admitted.append

    async def end() -> Drain:
        drain = Drain()
        drain.watch(client)
        client.check_admission(1)
        await asyncio.to_thread(client.shutdown)
        with pytest.raises(GracefulHTTPError, match="shutting down"):
            client.check_admission(2)
        return drain

    drain = asyncio.run(end())
    assert drain.begun
    assert admitted == [1]
    if said is None:
        assert drain.failure is None
        assert "requests in flight finish" in caplog.text
    else:
        assert drain.failure is not None and said in drain.failure
        assert "requests in flight finish" not in caplog.text


def test_an_adapter_that_one_engine_refuses_stays_in_none(
    tmp_path: Path, base_folder: Path, folders: list[Path]
) -> None:
    Store(tmp_path / "store").publish(folders[0], "alpha")
    admission = make_admission(tmp_path, base_folder)
    engine: Any = admission.aliases.cache.engine
    stock = engine.add_lora

    async def add(request: Any) -> None:
        await stock(request)
        raise RuntimeError("the second engine has no room")

    engine.add_lora = add
    with pytest.raises(AdapterError, match="the second engine has no room"):
        asyncio.run(admission.aliases.preload("alpha"))
    assert engine.loaded == {}


@pytest.mark.parametrize(("shares", "rank"), [(False, 1), (True, None)])
def test_the_engine_with_the_slot_gets_the_request(
    tmp_path: Path, base_folder: Path, folders: list[Path], shares: bool, rank: int | None
) -> None:
    """A gated request without a slot stays where vLLM sends it."""
    Store(tmp_path / "store").publish(folders[0], "alpha")
    admission = make_admission(tmp_path, base_folder, engines=2)
    admission.aliases.shares_slots = shares
    sent: Any = SimpleNamespace(
        data_parallel_rank=None, external_req_id="x", sampling_params=None, lora_request=None
    )

    async def app(*_: Any) -> None:
        await admission.admit(completion("alpha:gated", gate_tau=1.0))
        mine = RequestContext.current()
        assert mine is not None
        mine.begin(sent)
        assert bool(admission.aliases.slots.in_use) != shares

    headers = [(b"x-data-parallel-rank", b"1")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    asyncio.run(RequestMiddleware(app)(scope, nothing, nothing))
    assert sent.data_parallel_rank == rank
    assert admission.aliases.slots.in_use == 0
