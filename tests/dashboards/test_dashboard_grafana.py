"""The Grafana dashboard against the schema of its version, and what a reader of it needs.

grafana-12.3.0.schema.json is made from the types of npm's @grafana/schema 12.3.0, whose classic
dashboard has schemaVersion 42: the dashboard, and options and fields of the panel plugins used.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from support import ROOT

from dashboards.grafana.build import (
    COLUMNS,
    PLUGIN_VERSION,
    SCHEMA_VERSION,
    TARGET,
    as_json,
    dashboard,
)

Json = dict[str, Any]
SCHEMA = json.loads((Path(__file__).parent / "grafana-12.3.0.schema.json").read_text())
DASHBOARD: Json = json.loads(TARGET.read_text())
PANELS: list[Json] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]
each_panel = pytest.mark.parametrize("panel", SHOWN, ids=lambda panel: panel["title"])


def test_json_is_what_the_panels_say() -> None:
    assert as_json() == TARGET.read_text(), "run python -m dashboards.grafana.build"
    assert dashboard() == DASHBOARD


def test_schema() -> None:
    Draft7Validator(SCHEMA).validate(DASHBOARD)


def _panel(made: Json, kind: str) -> Json:
    return next(panel for panel in made["panels"] if panel["type"] == kind)


WRONG: dict[str, Callable[[Json], object]] = {
    "unknown field": lambda made: made.update(schema=1),
    "no schemaVersion": lambda made: made.pop("schemaVersion"),
    "variable type": lambda made: made["templating"]["list"][1].update(type="quiery"),
    "legend placement": lambda made: _panel(made, "timeseries")["options"]["legend"].update(
        placement="top"
    ),
    "line style": lambda made: _panel(made, "timeseries")["fieldConfig"]["defaults"][
        "custom"
    ].update(drawStyle="curve"),
    "heat map option": lambda made: _panel(made, "heatmap")["options"].pop("yAxis"),
    "stat option": lambda made: _panel(made, "stat")["options"].update(colourMode="value"),
    "position": lambda made: _panel(made, "stat")["gridPos"].update(w="4"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_schema_finds(wrong: Callable[[Json], object]) -> None:
    made = copy.deepcopy(DASHBOARD)
    wrong(made)
    assert not Draft7Validator(SCHEMA).is_valid(made)


def test_versions_agree() -> None:
    assert DASHBOARD["schemaVersion"] == SCHEMA_VERSION == 42
    assert f"schemaVersion {SCHEMA_VERSION}" in SCHEMA["$comment"]
    assert f"@grafana/schema {PLUGIN_VERSION}" in SCHEMA["$comment"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert services["grafana"]["image"] == f"grafana/grafana:{PLUGIN_VERSION}"
    assert {panel["pluginVersion"] for panel in SHOWN} == {PLUGIN_VERSION}


def test_layout() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["w"] > 0
        assert at["h"] > 0
        assert 0 <= at["x"] <= COLUMNS - at["w"]
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_rows() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        *("Overview", "Latency", "Throughput", "The gate", "Swaps", "Store"),
        *("Slots, queue and adapters", "Errors", "vLLM"),
    ]
    page = (ROOT / "docs" / "operations.md").read_text()
    for panel in PANELS:
        if panel["type"] == "row":
            assert f"| {panel['title']} |" in page


@each_panel
def test_panels_explain_themselves(panel: Json) -> None:
    assert panel["type"] in {"stat", "timeseries", "heatmap", "table"}
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references) > 0
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    for target in panel["targets"]:
        assert target["instant"] != target["range"]
        assert target["legendFormat"]
        # Every label that tells series apart is in their names, and none that they lack.
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"by \([^)]*\b{label}\b|adapter_version:", target["expr"])


@each_panel
def test_panels_ask_the_chosen_source(panel: Json) -> None:
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in sources)
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for target in panel["targets"]:
        used = set(re.findall(r"\$(\w+)", target["expr"]))
        assert used <= names | {"__rate_interval"}
        for variable in used & {"adapter", "mode"}:  # may be several, or all
            assert f'{variable}=~"${variable}"' in target["expr"]


def test_variables() -> None:
    source, *labels = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        *("datasource", "datasource", "prometheus"),
    )
    assert [variable["name"] for variable in labels] == ["adapter", "mode"]
    for variable in labels:
        assert variable["multi"] and variable["includeAll"]
        assert variable["allValue"] == ".*"
        assert variable["query"]["query"].endswith(f", {variable['name']})")


def test_heat_maps_take_buckets_as_they_are() -> None:
    heat_maps = [panel for panel in SHOWN if panel["type"] == "heatmap"]
    assert len(heat_maps) == 2
    for panel in heat_maps:
        assert panel["options"]["calculate"] is False
        (target,) = panel["targets"]
        assert target["format"] == "heatmap"
        assert target["legendFormat"] == "{{le}}"
        assert target["expr"].startswith("sum by (le) (rate(")
