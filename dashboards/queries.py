"""Every question that the dashboard and the rules ask Prometheus, as Prometheus takes it.

python -m dashboards.queries        # lists them
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

HERE = Path(__file__).parent
# What Grafana puts in place of its variables when everything is selected.
VARIABLES = {"$adapter": ".*", "$mode": ".*", "$__rate_interval": "1m"}


class Question(NamedTuple):
    """An expression and where it stands."""

    where: str
    expr: str


def panels() -> Iterator[Question]:
    """Those of the dashboard, its variables filled in."""
    dashboard = json.loads((HERE / "grafana" / "reasonmaxxer.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for variable, value in VARIABLES.items():
                expr = expr.replace(variable, value)
            yield Question(f"panel {panel['title']} {target['refId']}", expr)


def recordings() -> Iterator[Question]:
    """Those of the recording rules, and the names that they record."""
    for rule in _rules("recording.yml"):
        yield Question(f"rule of {rule['record']}", rule["expr"])
        yield Question(f"record {rule['record']}", rule["record"])


def alerts() -> Iterator[Question]:
    """Those of the alerts."""
    for rule in _rules("alerts.yml"):
        yield Question(f"alert {rule['alert']}", rule["expr"])


def metrics(expr: str) -> set[str]:
    """The names of metrics in an expression: what is left without labels, ranges and functions."""
    for noise in (
        r'"[^"]*"',
        r"\{[^}]*\}",
        r"\[[^]]*\]",
        r"\b(by|on|without|ignoring)\s*\([^)]*\)",
    ):
        expr = re.sub(noise, " ", expr)
    names = re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])", expr)
    return set(names) - {"and", "or", "unless", "by", "bool", "sum", "max", "count"}


def _rules(file: str) -> Iterator[dict[str, str]]:
    for group in yaml.safe_load((HERE / "rules" / file).read_text())["groups"]:
        yield from group["rules"]


if __name__ == "__main__":
    for question in (*panels(), *recordings(), *alerts()):
        print(f"{question.where}\n    {' '.join(question.expr.split())}")
