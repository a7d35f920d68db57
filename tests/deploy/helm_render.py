"""Lint and render the chart, and check its manifests: run by the Python of `make tools-deploy`.

    .venv-deploy/bin/python tests/deploy/helm_render.py CHART < values.json > result.json

Helm is a library of 240 MB with a runtime of its own, so it stays out of the tests' process.
"""

from __future__ import annotations

import json
import sys

import helm_python
import kubernetes_validate
import yaml

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # of operators; no schema is bundled
KUBERNETES = "1.34"


def rendered(path: str, values: dict[str, object]) -> dict[str, object]:
    """Findings of the linter, manifests, and what Kubernetes would refuse of them."""
    helm_python.disable_logging()
    report = helm_python.lint(path, values, strict=True)
    found = [one["error"] for one in report["messages"] if one["severity"] >= 2]
    try:
        with helm_python.Chart.load(path) as chart:
            chart.validate_schema(values)
            files = chart.render(values, name="fleet", namespace="models")
    except helm_python.HelmError as error:
        return {"lint": found, "error": str(error), "manifests": [], "invalid": []}
    notes = {name: text for name, text in files.items() if name.endswith(".txt")}
    manifests = [
        one
        for name, text in files.items()
        if name not in notes
        for one in yaml.safe_load_all(text)
        if one
    ]
    invalid = []
    for one in manifests:
        if one["kind"] in CUSTOM:
            continue
        try:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            invalid.append(f"{one['kind']} {one['metadata']['name']}: {error.message}")
    return {
        "lint": found,
        "error": None,
        "manifests": manifests,
        "invalid": invalid,
        "notes": "".join(notes.values()),
    }


if __name__ == "__main__":
    json.dump(rendered(sys.argv[1], json.load(sys.stdin)), sys.stdout)
