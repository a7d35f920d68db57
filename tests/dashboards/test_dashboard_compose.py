"""compose.yaml and what Grafana and Prometheus find where it mounts it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml
from support import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def mounts(service: str) -> dict[str, str]:
    """Places in the container and what is mounted there."""
    return {
        place: source
        for source, place, *_ in (v.split(":") for v in SERVICES[service].get("volumes", []))
    }


def mounted(service: str, path: str) -> Any:
    """The YAML that the container finds at `path`."""
    for place, source in mounts(service).items():
        if PurePosixPath(path).is_relative_to(place) and source.startswith("./"):
            rest = PurePosixPath(path).relative_to(place)
            return yaml.safe_load((ROOT / source / rest).read_text())
    raise AssertionError(f"nothing is mounted at {path}")


def test_server_is_asked_for_its_health() -> None:
    check = SERVICES["server"]["healthcheck"]["test"][-1]
    assert "http://127.0.0.1:8000/health" in check
    compile(check, "healthcheck", "exec")


def test_prometheus_finds_its_files_and_the_server() -> None:
    flags = dict(flag.split("=", 1) for flag in SERVICES["prometheus"]["command"])
    folder = PurePosixPath(flags["--config.file"]).parent
    config = mounted("prometheus", flags["--config.file"])
    for rules in config["rule_files"]:
        assert mounted("prometheus", str(folder / rules))["groups"]
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["file_sd_configs"]
    (targets,) = mounted("prometheus", str(folder / found["files"][0]))
    assert targets["targets"] == ["server:8000"]
    assert "server" in SERVICES
    assert flags["--storage.tsdb.path"] in mounts("prometheus")


def test_grafana_finds_its_source_and_dashboard() -> None:
    provisioning = "/etc/grafana/provisioning"
    (source,) = mounted("grafana", f"{provisioning}/datasources/prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    scraped = mounted("prometheus", "/etc/prometheus/prometheus.yml")["global"]
    assert source["jsonData"]["timeInterval"] == scraped["scrape_interval"]
    (provider,) = mounted("grafana", f"{provisioning}/dashboards/reasonmaxxer.yml")["providers"]
    dashboard = PurePosixPath(provider["options"]["path"]) / "reasonmaxxer.json"
    assert mounted("grafana", str(dashboard))["uid"] == "reasonmaxxer"
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == str(dashboard)
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    # Of the environment, and no start without it.
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_ADMIN_PASSWORD:?")
