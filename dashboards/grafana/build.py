"""Grafana's JSON of the panels in panels.py, rather than three thousand lines of it by hand.

    python -m dashboards.grafana.build      # writes reasonmaxxer.json beside this file

The classic dashboard model, schemaVersion 42, of Grafana 12.3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dashboards.grafana.panels import ROWS, Panel, Query

TARGET = Path(__file__).with_name("reasonmaxxer.json")
SCHEMA_VERSION = 42
PLUGIN_VERSION = "12.3.0"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


def dashboard() -> Json:
    """The whole of it."""
    panels: list[Json] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(_row(title, top, len(panels) + 1))
        left, top, height = 0, top + 1, 0
        for panel in row:
            if left + panel.width > COLUMNS:
                left, top, height = 0, top + height, 0
            position = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, position, len(panels) + 1))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return {
        "uid": "reasonmaxxer",
        "title": "ReasonMaxxer",
        "description": "A ReasonMaxxer server: latency, throughput, the gate, swaps, errors.",
        "tags": ["reasonmaxxer", "vllm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "10s",
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _variables() -> list[Json]:
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "regex": "",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "current": {"text": "default", "value": "default"},
    }
    return [source, *(_label_variable(name) for name in ("adapter", "mode"))]


def _label_variable(name: str) -> Json:
    query = f"label_values(reasonmaxxer_requests_total, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": f"variable-{name}"},
        "regex": "",
        "refresh": 2,  # when the time range changes, so new adapters turn up
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "options": [],
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _row(title: str, top: int, number: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _panel(panel: Panel, position: Json, number: int) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "custom": _custom(panel),
        "mappings": [],
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in panel.steps],
        },
    }
    if panel.max is not None:
        defaults["max"] = panel.max
    targets = [_target(query, "ABCDEF"[i], panel) for i, query in enumerate(panel.queries)]
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "pluginVersion": PLUGIN_VERSION,
        "datasource": SOURCE,
        "gridPos": position,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": _dashes(panel)},
        "options": _options(panel),
    }
    if panel.kind == "table":  # the value is 1 in each row
        organized = {"excludeByName": {"Time": True, "Value": True}}
        made["transformations"] = [{"id": "organize", "options": organized}]
    return made


def _target(query: Query, ref: str, panel: Panel) -> Json:
    instant = query.instant or panel.kind == "table"
    return {
        "refId": ref,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "table"
        if panel.kind == "table"
        else "heatmap"
        if query.heatmap
        else "time_series",
        "instant": instant,
        "range": not instant,
    }


def _dashes(panel: Panel) -> list[Json]:
    """What is compared with is dashed."""
    style = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}
    filled = {"id": "custom.fillOpacity", "value": 0}
    return [
        {"matcher": {"id": "byFrameRefID", "options": "ABCDEF"[i]}, "properties": [style, filled]}
        for i, query in enumerate(panel.queries)
        if query.dashed
    ]


def _line(panel: Panel) -> Json:
    return {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 20 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
    }


def _custom(panel: Panel) -> Json:
    """The field settings of its plugin."""
    return {
        "timeseries": _line(panel),
        "stat": {},
        "heatmap": {"scaleDistribution": {"type": "linear"}},
        "table": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
    }[panel.kind]


def _options(panel: Panel) -> Json:
    """The options of its plugin."""
    return {"timeseries": _LINES, "stat": _stat(panel), "heatmap": _heat(panel), "table": _TABLE}[
        panel.kind
    ]


_LINES: Json = {
    "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
_TABLE: Json = {
    "showHeader": True,
    "cellHeight": "sm",
    "frameIndex": 0,
    "sortBy": [{"displayName": "adapter", "desc": False}],
}


def _stat(panel: Panel) -> Json:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "auto",
        "colorMode": "value",
        "graphMode": "none" if panel.queries[0].instant else "area",
        "justifyMode": "auto",
        "textMode": "value",
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        "wideLayout": True,
    }


def _heat(panel: Panel) -> Json:
    return {
        "calculate": False,  # Prometheus has counted already
        "cellGap": 1,
        "cellValues": {"unit": "cps"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit},
    }


def as_json() -> str:
    """The dashboard, a panel to a line: so a change shows which panels it touches."""
    panels = ",\n".join(f"  {json.dumps(one, ensure_ascii=False)}" for one in dashboard()["panels"])
    rest = json.dumps(dashboard() | {"panels": []}, indent=1, ensure_ascii=False)
    return rest.replace('"panels": []', f'"panels": [\n{panels}\n ]') + "\n"


if __name__ == "__main__":
    TARGET.write_text(as_json())
