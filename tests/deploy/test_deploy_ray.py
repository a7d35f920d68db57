"""The Ray Serve application with two replicas on this machine's CPU (`make test-ray`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from stand_in import moving_store
from support import ADMIN, ADMIN_KEY, ENGINE_ENVIRONMENT, ROOT, end, run_command

from adapters.store import Store
from demo.server import free_port

PYTHON = Path(os.environ.get("REASONMAXXER_RAY_PYTHON", ROOT / ".venv-ray/bin/python"))
SCRIPT = ROOT / "deploy" / "ray" / "serve_app.py"
START_SECONDS = 400
QUESTION = [{"role": "user", "content": "What is 9-11*7+12+9?"}]

needs_ray = pytest.mark.skipif(
    not PYTHON.exists(), reason="Ray is not installed; `make test-ray` gets it"
)


def test_the_file_for_a_cluster_names_what_there_is() -> None:
    config = yaml.safe_load((SCRIPT.parent / "serve.yaml").read_text())
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (SCRIPT.parent / f"{module}.py").read_text()
    assert f"def {name}(" in source
    for option in application["args"]:
        assert f'options.get("{option}"' in source


# Run by the Python that has Ray: what a cluster would make of the file.
CHECK = """
import json, sys, yaml
from ray.serve.schema import ServeDeploySchema
import serve_app
config = ServeDeploySchema.model_validate(yaml.safe_load(open(sys.argv[1])))
deployment = serve_app.build(config.applications[0].args)._bound_deployment
print(json.dumps({
    "scaling": deployment._deployment_config.autoscaling_config.model_dump(mode="json"),
    "actor": deployment.ray_actor_options,
    "flags": deployment.init_args[0],
}))
"""


@needs_ray
def test_ray_takes_the_file_for_a_cluster() -> None:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = run_command(PYTHON, "-c", CHECK, SCRIPT.parent / "serve.yaml", env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["flags"][:2] == ["--model", "Qwen/Qwen2.5-7B"]
    assert made["actor"] == {"num_cpus": 1.0, "num_gpus": 1.0}
    wanted = {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 6}
    wanted["target_ongoing_requests"] = 32
    assert made["scaling"] | wanted == made["scaling"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the log."""
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def application(base_folder: Path, work: Path) -> Iterator[str]:
    """Its address."""
    store = moving_store(work, base_folder)
    port = free_port()
    command = [str(PYTHON), str(SCRIPT), "--port", str(port), "--replicas", "2", "--"]
    command += ["--model", str(base_folder), "--adapters", str(store)]
    command += ["--max-model-len", "512", "--max-num-seqs", "16", "--dtype", "float32"]
    command += ["--kv-cache-memory-bytes", str(2**27)]
    environment = os.environ | ENGINE_ENVIRONMENT | {"REASONMAXXER_ADMIN_KEY": ADMIN_KEY}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "ready: http" not in (work / "log").read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((work / "log").read_text(errors="replace")[-4000:])
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def chat(url: str, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0} | more
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    answer.raise_for_status()
    return answer


@needs_ray
@pytest.mark.server
def test_two_replicas_answer_as_one_server(application: str) -> None:
    assert httpx.get(f"{application}/health", timeout=60).status_code == 200
    started = set()
    for _ in range(60):  # by either replica
        page = httpx.get(f"{application}/metrics", timeout=60).text
        started |= set(re.findall(r"^process_start_time_seconds (\S+)", page, re.M))
    assert len(started) == 2
    listed = {one["id"] for one in httpx.get(f"{application}/v1/models").json()["data"]}
    assert {"tiny-math", "tiny-math:gated", "moving"} <= listed
    texts = {name: set() for name in ("tiny-qwen2", "tiny-math", "tiny-math:gated")}
    for name, seen in texts.items():
        for _ in range(4):  # by either replica
            seen.add(chat(application, name).json()["choices"][0]["message"]["content"])
        assert len(seen) == 1
    traced = chat(
        application, "tiny-math:gated", vllm_xargs={"gate_tau": 0.05, "gate_trace": 1}
    ).json()
    details = traced["usage"]["completion_tokens_details"]
    assert len(traced["choices"][0]["gate_trace"]) == details["gated_tokens"] > 0
    body = {"model": "tiny-math", "messages": QUESTION, "max_tokens": 8, "stream": True}
    with httpx.stream("POST", f"{application}/v1/chat/completions", json=body, timeout=60) as got:
        lines = [line for line in got.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 4


@needs_ray
@pytest.mark.server
def test_an_alias_moves_for_both_replicas(application: str, work: Path) -> None:
    """By the admin API of the replica that happens to answer; by somebody else, in the store."""
    shown = httpx.get(f"{application}/admin/adapters/moving", headers=ADMIN, timeout=60).json()
    before = shown["alias"]
    (to,) = set(shown["versions"]) - {before}
    url = f"{application}/admin/adapters/moving/alias"
    moved = httpx.post(url, json={"version": to}, headers=ADMIN, timeout=60)
    assert moved.status_code == 200, moved.text
    all_serve(application, to)
    Store(work / "store").alias("moving", before)
    all_serve(application, before)


def all_serve(application: str, version: str) -> None:
    """A replica serves the old version until it has the new one."""
    deadline = time.monotonic() + 60
    alike = 0
    while alike < 20:  # by either replica
        answer = chat(application, "moving", max_tokens=1)
        alike = alike + 1 if answer.headers["X-ReasonMaxxer-Version"] == version else 0
        assert time.monotonic() < deadline


@needs_ray
@pytest.mark.server
def test_refusals_and_the_sticky_header_pass(application: str) -> None:
    refused = httpx.post(
        f"{application}/v1/chat/completions", json={"model": "no-such", "messages": QUESTION}
    )
    assert refused.status_code == 404
    assert refused.json()["error"]["param"] == "model"
    for _ in range(3):
        answer = httpx.post(
            f"{application}/v1/completions",
            json={"model": "tiny-math", "prompt": "1+1=", "max_tokens": 1},
            headers={"serve_multiplexed_model_id": "tiny-math"},
            timeout=60,
        )
        assert answer.status_code == 200
