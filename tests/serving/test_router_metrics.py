"""What a LoRA-aware router finds in /metrics, read as llm-d's scraper reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fleet import answered, make_admission, settled
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adapters.store import Store
from serving.admission import Admission
from serving.router_metrics import REPLACED, RouterSeries


class Scraped(NamedTuple):
    """What the extension keeps of a page: names by state, and how many may be active."""

    running: set[str]
    waiting: set[str]
    most: int
    loaded: dict[str, tuple[str, str]]  # name -> level, pinned
    counts: dict[str, float]


def names_in(label: str) -> set[str]:
    return set(filter(None, label.split(",")))


def scrape(series: RouterSeries) -> Scraped:
    registry = CollectorRegistry()
    registry.register(series)  # type: ignore[arg-type]
    page = generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert set(families) == REPLACED
    (info,) = families["vllm:lora_requests_info"].samples
    return Scraped(
        names_in(info.labels["running_lora_adapters"]),
        names_in(info.labels["waiting_lora_adapters"]),
        int(info.labels["max_lora"]),
        {
            one.labels["adapter_name"]: (one.labels["level"], one.labels["pinned"])
            for one in families["vllm:lora_adapter_loaded"].samples
        },
        {
            level: families[f"vllm:num_{level}_loaded_lora_adapters"].samples[0].value
            for level in ("gpu", "cpu")
        },
    )


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`math` and `other`; `prod` is an alias of math's version."""
    store = Store(tmp_path / "store")
    version = store.publish(folders[0], "math")
    store.alias("prod", version.id)
    store.publish(folders[1], "other")
    return make_admission(tmp_path, base_folder, slots=1)


async def test_names_are_those_of_clients_and_follow_the_requests(admission: Admission) -> None:
    series = RouterSeries(admission.aliases, gated=True)
    assert scrape(series) == (set(), set(), 2, {}, {"gpu": 0, "cpu": 0})

    async def during(_: Any) -> None:
        tasks.append(asyncio.ensure_future(answered(admission, "other")))
        while not admission.aliases.slots.waiting:
            await asyncio.sleep(0)
        await series.look()
        seen = scrape(series)
        assert seen.running == {"math", "math:gated"}
        assert seen.waiting == {"other", "other:gated"}
        assert set(seen.loaded) >= {"math", "math:gated"}
        assert seen.loaded["math:gated"] == ("gpu", "false")
        assert seen.counts["cpu"] == seen.counts["gpu"]

    tasks: list[asyncio.Future[str]] = []
    version = await answered(admission, "math", during)
    await asyncio.gather(*tasks)
    await settled(admission)
    # Idle: nothing runs, and what is loaded is still told.
    idle = scrape(series)
    assert (idle.running, idle.waiting) == (set(), set())
    assert {"math", "other"} <= set(idle.loaded)
    # A second alias of one version is a name of its own, and shares its weights.
    assert await answered(admission, "prod") == version
    assert {"prod", "prod:gated", "math"} <= set(scrape(series).loaded)
    # NAME@HASH is no name that a router would be asked for by others.
    assert await answered(admission, version) == version
    assert not any("@" in name for name in scrape(series).loaded)


async def test_pins_and_moves_show(admission: Admission, folders: list[Path]) -> None:
    aliases = admission.aliases
    aliases.slots.count = 2
    series = RouterSeries(aliases, gated=False)
    await aliases.pin("math", True)
    assert scrape(series).loaded == {"math": ("cpu", "true")}  # before the engine was asked
    await series.look()
    assert scrape(series).loaded == {"math": ("gpu", "true")}
    before = aliases.serving("math")
    aliases.store.publish(folders[1], "math")
    await aliases.switch("math")
    assert aliases.serving("math") != before
    await settled(admission)
    # The pin goes with the name, and the version before leaves the engine.
    assert {name: pinned for name, (_, pinned) in scrape(series).loaded.items()} == {"math": "true"}
    assert scrape(series).counts["cpu"] == 1


async def test_an_engine_that_does_not_answer_holds_no_scrape_up(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases = admission.aliases
    await aliases.preload("math")
    asked = 0

    async def never() -> Any:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    monkeypatch.setattr(aliases.cache, "locations", never)
    monkeypatch.setattr("serving.router_metrics.PATIENCE_SECONDS", 0)
    series = RouterSeries(aliases, gated=True)
    for _ in range(5):
        await series.look()
        assert set(scrape(series).loaded) == {"math", "math:gated"}
    assert asked == 1
    assert series._asking is not None
    series._asking.cancel()
