"""The Helm chart: linted, rendered, and checked against Kubernetes' schemas."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from deploy_tools import DEPLOY, PYTHON, needs_tools
from support import ROOT, run_command

from dashboards import queries
from serving.settings import Settings, from_command_line

CHART = DEPLOY / "helm" / "reasonmaxxer"
EXAMPLES = {path.stem: path for path in sorted((DEPLOY / "helm" / "examples").glob("*.yaml"))}
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())

each_example = pytest.mark.parametrize("example", EXAMPLES)


@cache
def _render(text: str) -> dict[str, Any]:
    script = Path(__file__).with_name("helm_render.py")
    done = run_command(PYTHON, script, CHART, input=text, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def render(values: dict[str, Any]) -> dict[str, Any]:
    return _render(json.dumps(values))


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(EXAMPLES[name].read_text())
    return values


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values over defaults, as Helm lays them."""
    result = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        result[name] = merged(below[name], value) if both else value
    return result


def of(name: str, kind: str, suffix: str = "") -> dict[str, Any]:
    """The manifest of a kind that an example makes."""
    wanted = f"fleet-reasonmaxxer{suffix}"
    (found,) = [
        one
        for one in render(values_of(name))["manifests"]
        if one["kind"] == kind and one["metadata"]["name"] == wanted
    ]
    return dict(found)


# ----------------------------------------------------------------------- without Helm


def test_defaults_and_examples_fit_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    for values in ({}, *map(values_of, EXAMPLES)):
        jsonschema.validate(merged(DEFAULTS, values), SCHEMA)
        environment = {one["name"]: one["value"] for one in values.get("env", [])}
        if "OMP_NUM_THREADS" in environment:  # without it vLLM sets its own number of threads
            assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_every_value_has_a_default_and_a_place_in_the_schema() -> None:
    assert set(SCHEMA["properties"]) - {"global"} == set(DEFAULTS)
    for name, value in DEFAULTS.items():
        known = SCHEMA["properties"][name].get("properties")
        if isinstance(value, dict) and known is not None and name != "resources":
            assert set(value) == set(known), name


@pytest.mark.parametrize(
    "values",
    [
        *({"replica": 2}, {"replicas": 0}, {"replicas": "2"}, {"model": {"id": ""}}),
        *({"adapters": {"url": "http://x/y"}}, {"adapters": {"url": "/mnt"}}),
        *({"autoscaling": {"kind": "vpa"}}, {"settings": {"max-loras": 4}}),
        *({"service": {"port": 0}}, {"drain": {"shutdownTimeout": -1}}, {"engine": {"--x": 1}}),
    ],
)
def test_bad_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": {"id": "x"}} | values, SCHEMA)


def test_what_the_chart_copies_is_the_dashboards_own() -> None:
    for link in (CHART / "files").iterdir():
        assert link.is_symlink()
        assert link.resolve().is_relative_to(ROOT / "dashboards")
        assert link.stat().st_size < 900_000  # a ConfigMap has a mebibyte


# -------------------------------------------------------------------------- with Helm


@needs_tools
@each_example
def test_helm_and_kubernetes_accept_it(example: str) -> None:
    result = render(values_of(example))
    assert result["error"] is None
    assert result["lint"] == []
    assert result["invalid"] == []
    kinds = [one["kind"] for one in result["manifests"]]
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget"} <= set(kinds)
    names = [(one["kind"], one["metadata"]["name"]) for one in result["manifests"]]
    assert len(set(names)) == len(names)


@needs_tools
def test_defaults_need_no_values() -> None:
    result = render({})
    assert (result["error"], result["lint"], result["invalid"]) == (None, [], [])
    assert "No key is set" in result["notes"]
    assert "No store is set" in result["notes"]


@needs_tools
@each_example
def test_pods_are_confined_and_no_request_is_killed(example: str) -> None:
    values = values_of(example)
    for one in render(values)["manifests"]:
        pod = one["spec"] if one["kind"] == "Pod" else one.get("spec", {}).get("template", {})
        pod = pod.get("spec", pod)
        for container in pod.get("containers", []):
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["automountServiceAccountToken"] is False
    pod = of(example, "Deployment")["spec"]["template"]["spec"]
    drain = DEFAULTS["drain"] | values.get("drain", {})
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > drain["preStop"] + drain["shutdownTimeout"] + 5
    (server,) = pod["containers"]
    start = server["startupProbe"]
    wanted = (DEFAULTS["probes"] | values.get("probes", {}))["startSeconds"]
    assert start["periodSeconds"] * start["failureThreshold"] >= wanted
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert volumes == {mount["name"] for mount in server["volumeMounts"]}
    # Everything it writes lies on a volume, as the root file system is read-only.
    places = tuple(mount["mountPath"] for mount in server["volumeMounts"])
    written = [
        entry["value"]
        for entry in server["env"]
        if entry["name"] in ("HOME", "XDG_CACHE_HOME", "HF_HOME") or entry["name"].endswith("_DIR")
    ]
    assert all(path.startswith(places) for path in written)


@needs_tools
@each_example
def test_the_server_understands_its_file(example: str, tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(of(example, "ConfigMap")["data"]["server.yaml"])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REASONMAXXER_ADMIN_KEY", "of the Secret")
        settings, flags = from_command_line(["--config", str(file)])
    values = values_of(example)
    assert settings.host == "0.0.0.0"
    given = values["settings"]
    assert {name: getattr(settings, name) for name in given} == given
    assert len(flags) >= len(values["engine"])
    deployment = of(example, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in deployment["ports"]}
    assert ports == {"http": settings.port}
    named = {entry["name"].removeprefix("REASONMAXXER_").lower() for entry in deployment["env"]}
    assert {"api_key", "admin_key"} <= named & set(Settings.model_fields)


@needs_tools
def test_selectors_find_the_pods_and_nothing_else() -> None:
    manifests = render(values_of("gpu-router-keda"))["manifests"]
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in manifests
        if one["kind"] == "Deployment"
    }

    def found(selector: dict[str, str]) -> list[str]:
        return [name for name, labels in pods.items() if selector.items() <= labels.items()]

    server, router = "fleet-reasonmaxxer", "fleet-reasonmaxxer-router"
    for one in manifests:
        name, spec = one["metadata"]["name"], one.get("spec", {})
        if one["kind"] == "Service":
            assert found(spec["selector"]) == [router if name == router else server], name
        elif one["kind"] in ("Deployment", "PodDisruptionBudget"):
            assert found(spec["selector"]["matchLabels"]) == [name]
    monitor = of("gpu-router-keda", "ServiceMonitor")["spec"]
    services = [
        one["metadata"]["name"]
        for one in manifests
        if one["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
    ]
    assert services == [server]  # the replicas behind the headless one would be scraped twice
    label = of("gpu-router-keda", "Service")["metadata"]["labels"][monitor["jobLabel"]]
    assert f'job="{label}"' in (ROOT / "dashboards/rules/alerts.yml").read_text()
    config = of("gpu-router-keda", "ConfigMap", "-router")["data"]["nginx.conf"]
    # Each replica has a name of its own, so that `hash` can tell them apart.
    assert "server fleet-reasonmaxxer-replicas.models.svc.cluster.local service=http res" in config
    (port,) = of("gpu-router-keda", "Service", "-replicas")["spec"]["ports"]
    assert port["name"] == "http"


@needs_tools
def test_a_private_registry_a_load_balancer_and_keys_of_the_chart() -> None:
    own: dict[str, Any] = {"imagePullSecrets": [{"name": "registry"}], "router": {"enabled": True}}
    own["service"] = {"type": "LoadBalancer", "annotations": {"of": "the cloud"}}
    first, second = (render(own | {"keys": {"apiKey": key}}) for key in ("one", "two"))
    checksums = set()
    for one in (*first["manifests"], *second["manifests"]):
        if one["kind"] in ("Pod", "Deployment"):
            pod = one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]
            assert pod["imagePullSecrets"] == own["imagePullSecrets"], one["metadata"]["name"]
        if one["metadata"]["name"] == "fleet-reasonmaxxer" and one["kind"] == "Deployment":
            checksums.add(one["spec"]["template"]["metadata"]["annotations"]["checksum/config"])
    services = [one for one in first["manifests"] if one["kind"] == "Service"]
    (open_,) = [one for one in services if one["spec"].get("type") == "LoadBalancer"]
    assert open_["metadata"]["name"] == "fleet-reasonmaxxer-router"
    assert [one for one in services if one["metadata"].get("annotations")] == [open_]
    assert len(checksums) == 2  # a pod reads its keys when it starts
    assert 'curl -H "Authorization: Bearer $KEY" http' in first["notes"]
    assert "No key is set" not in first["notes"]
    assert "No key is set" in render({"keys": {"hfToken": "of the hub"}})["notes"]


@needs_tools
def test_autoscaling_asks_for_series_that_there_are() -> None:
    scaled = of("gpu-router-keda", "ScaledObject")["spec"]
    asked = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    assert all(query.startswith("sum(") for query in asked)
    page = (ROOT / "docs" / "operations.md").read_text()
    panels = "\n".join(str(one) for one in queries.panels())
    for metric in DEFAULTS["autoscaling"]["metrics"]:
        assert any(metric["series"] in query for query in asked)
        assert f"`{metric['series']}`" in page or metric["series"] in panels
    pods = of("gpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [one["pods"]["metric"]["name"] for one in pods] == [
        "reasonmaxxer_queue_requests",
        "vllm_num_requests_waiting",
    ]
    for name in ("gpu", "gpu-router-keda"):
        assert "replicas" not in of(name, "Deployment")["spec"]  # the autoscaler's to say


@needs_tools
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drain": {"gracePeriod": 65}}, "at least 76"),
        ({"settings": {"port": 9000}}, "settings.port"),
        ({"adapters": {"url": "s3://a/b", "claim": "c"}}, "not both"),
        ({"replicas": 0}, "replicas"),
    ],
)
def test_helm_refuses(values: dict[str, Any], message: str) -> None:
    assert message in render(values)["error"]
