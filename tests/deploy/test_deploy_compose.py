"""deploy/compose, as far as it can be checked without a container engine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import DEPLOY, PYTHON, needs_tools
from support import ROOT, run_command

from adapters.commands import COMMANDS
from serving.settings import Settings

FOLDER = DEPLOY / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
REPLICAS = ("replica-1", "replica-2")
NGINX = (FOLDER / "nginx.conf").read_text()


@needs_tools
@pytest.mark.parametrize("path", ["compose.yaml", "deploy/compose/compose.yaml"])
def test_it_is_a_compose_file(path: str) -> None:
    command = [PYTHON, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    done = run_command(*command)
    assert done.returncode == 0, done.stdout


each_file = pytest.mark.parametrize("folder", [FOLDER, ROOT], ids=["replicas", "one server"])


@each_file
def test_what_is_mounted_is_there_and_read_only(folder: Path) -> None:
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, _, mode = volume.partition(":")
            if source.startswith("."):
                assert (folder / source).exists(), f"{name}: {source}"
                assert mode.endswith(":ro")
            else:
                assert source in compose["volumes"]


@each_file
def test_images_are_pinned_and_ports_stay_on_loopback(folder: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "KVCACHE_SPACE" not in dockerfile  # it would win over --kv-cache-memory-bytes
    for name, service in yaml.safe_load((folder / "compose.yaml").read_text())["services"].items():
        if "build" not in service:
            pinned = r"[a-z/-]+:(v?\d+\.\d+\.\d+(-alpine)?|RELEASE\.\d{4}-\d\d-\d\dT[\d-]+Z)"
            assert re.fullmatch(pinned, service["image"]), name
        else:
            assert (folder / service["build"]["context"]).resolve() == ROOT
            assert f" AS {service['build']['target']}\n" in dockerfile
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)


def test_services_wait_for_those_that_there_are() -> None:
    for service in SERVICES.values():
        needed = service.get("depends_on", {})
        assert set(needed) <= set(SERVICES)
        for name, how in needed.items() if isinstance(needed, dict) else ():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


def test_passwords_come_from_the_environment() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    for name in ("MINIO_ROOT_PASSWORD", "GRAFANA_ADMIN_PASSWORD", "REASONMAXXER_ADMIN_KEY"):
        assert f"${{{name}:?" in text  # no start without


def test_replicas_are_alike_confined_and_given_time() -> None:
    first, second = (SERVICES[name] for name in REPLICAS)
    assert first == second
    flags = dict(zip(first["command"][::2], first["command"][1::2], strict=True))
    known = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert set(flags) <= known
    grace = int(first["stop_grace_period"].removesuffix("s"))
    assert grace > int(flags["--shutdown-timeout"]) + 5
    assert first["read_only"] is True
    assert first["cap_drop"] == ["ALL"]
    compile(first["healthcheck"]["test"][-1], "healthcheck", "exec")
    # The router outlives what passes through it.
    assert int(SERVICES["router"]["stop_grace_period"].removesuffix("s")) >= grace
    assert SERVICES["router"]["stop_signal"] == "SIGQUIT"


def test_all_mean_the_same_bucket() -> None:
    assert "mc mb --ignore-existing local/adapters" in SERVICES["bucket"]["command"][0]
    seed = SERVICES["seed"]["command"][0]
    urls = {*re.findall(r"s3://\S+", seed), *SERVICES["replica-1"]["command"]} & {
        "s3://adapters/store"
    }
    assert urls == set(re.findall(r"s3://[^\s\"]+", (FOLDER / "compose.yaml").read_text()))
    storage = SERVICES["replica-1"]["environment"]
    assert storage["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert storage["AWS_ACCESS_KEY_ID"] == SERVICES["minio"]["environment"]["MINIO_ROOT_USER"]


def test_the_seed_uses_commands_that_there_are() -> None:
    script = SERVICES["seed"]["command"][0].replace(">/dev/null 2>&1 && exit 0", "")
    for program, group, *words in map(shlex.split, script.split(";")):
        assert (program, group) == ("reasonmaxxer", "store")
        COMMANDS[words[0]].load(words[1:])
        for path in (word for word in words if word.startswith("/app/")):
            assert (ROOT / path.removeprefix("/app/")).exists()


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
def test_the_seed_moves_no_alias_that_there_is(there: bool) -> None:
    """`docker compose up` starts it again, in the container that it had."""
    seed = SERVICES["seed"]
    shell, option = seed["entrypoint"]
    stub = f'reasonmaxxer() {{ echo "$2"; [ "$2" != show ] || {str(there).lower()}; }}'
    done = run_command(shell, option, f"{stub}; {seed['command'][0]}", check=True)
    assert done.stdout.split() == ([] if there else ["export", "publish"])
    assert seed["tmpfs"] == ["/tmp"]  # `store export` writes no folder that is there


def test_nginx_knows_the_replicas_and_passes_their_streams() -> None:
    servers = re.findall(r"server (replica-\d):(\d+) max_fails=0;", NGINX)
    assert servers == [(name, "8000") for name in REPLICAS] * 2
    (listens,) = re.findall(r"listen (\d+);", NGINX)
    assert SERVICES["router"]["ports"] == [f"127.0.0.1:{listens}:{listens}"]
    assert "proxy_buffering off;" in NGINX
    assert "http_503" in NGINX
    # An idle connection ends here before the server ends it.
    for seconds in re.findall(r"keepalive_timeout (\d+)s;", NGINX):
        assert int(seconds) < 75


def test_prometheus_scrapes_each_replica() -> None:
    mounts = dict(v.split(":")[1::-1] for v in SERVICES["prometheus"]["volumes"])
    config = yaml.safe_load((FOLDER / mounts["/etc/prometheus/prometheus.yml"]).read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["file_sd_configs"][0]["files"] == ["targets.yml"]
    (targets,) = yaml.safe_load((FOLDER / mounts["/etc/prometheus/targets.yml"]).read_text())
    assert targets["targets"] == [f"{name}:8000" for name in REPLICAS]
