"""docs/vllm-plugin.md, run as it stands: the gate in plain vLLM, offline and as a server."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import ENGINE_ENVIRONMENT, ROOT, Reference, Server, StartServer, python, started

from demo.server import free_port

PAGE = (ROOT / "docs" / "vllm-plugin.md").read_text(encoding="utf-8")
BASE = ROOT / "models" / "tiny-qwen2"
STORE = ROOT / "adapters" / "store" / "tiny-math"
VERSION = "f317e0480061"
SMALL = ("--dtype", "float32", "--max-model-len", "256", "--kv-cache-memory-bytes", str(2**26))


def example(language: str, begins: str) -> str:
    """An example of the page."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return next(block for block in blocks if block.startswith(begins))


def environment() -> dict[str, str]:
    """A user's, with all of this checkout to import and none of our settings."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    found = os.environ | ENGINE_ENVIRONMENT | settings
    found.pop("VLLM_PLUGINS", None)
    return found


@pytest.mark.engine
def test_offline(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(example("python", "from vllm import LLM"))
    ended = python(script, check=False, env=environment(), timeout=500)
    assert ended.returncode == 0, ended.stderr[-4000:]
    said = re.search(r"^(\d+) of (\d+) tokens are the adapter's$", ended.stdout, re.MULTILINE)
    assert said is not None, ended.stdout
    gated, tokens = map(int, said.groups())
    assert 0 < gated < tokens
    points = re.findall(r"^(\d+) (\d+\.\d+) (\d+|None)$", ended.stdout, re.MULTILINE)
    assert len(points) == gated
    assert all(float(entropy) > 0.5 for _, entropy, _ in points)


@pytest.fixture(scope="module")
def plain(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page's `vllm serve`, from the Python entry point that the CPU build has."""
    command = shlex.split(example("bash", "vllm serve").replace("\\\n", " "))
    assert command[:3] == ["vllm", "serve", "models/tiny-qwen2"]
    port = free_port()
    flags = ["--model", *command[2:]]
    flags[flags.index("--port") + 1] = str(port)
    log_file = tmp_path_factory.mktemp("plain") / "server.log"
    arguments = ["-m", "vllm.entrypoints.launchers.api_server.entry", *flags, *SMALL]
    arguments += ["--host", "127.0.0.1"]
    with started(arguments, environment(), port, STORE, BASE, log_file) as server:
        yield server


def ask(server: Server, model: str, **more: Any) -> dict[str, Any]:
    """A greedy completion, by the body that the page's curl sends."""
    body = json.loads(re.search(r"-d '(.*)'", example("bash", "curl"), re.DOTALL)[1])  # type: ignore[index]
    del body["vllm_xargs"]
    body |= {"model": model, "temperature": 0, "max_tokens": 24, "return_token_ids": True} | more
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
    return dict(answer.raise_for_status().json())


def test_a_server_by_public_flags_alone(plain: Server) -> None:
    prompt, base = "3 + 4 * 2", "models/tiny-qwen2"
    reference = Reference(BASE, STORE)
    tokens: dict[str, list[int]] = {}
    for name, model, tau in (
        ("base", base, None),
        ("always", "tiny-math", None),
        ("never", "tiny-math", 1e9),
        ("all", "tiny-math", 0.0),
        ("some", "tiny-math", 0.3),
    ):
        xargs = {} if tau is None else {"vllm_xargs": {"gate_tau": tau, "gate_trace": 1}}
        answer = ask(plain, model, **xargs)
        tokens[name] = answer["choices"][0]["token_ids"]
        if tau is None:
            assert not answer["kv_transfer_params"]
            adapter = VERSION if model == "tiny-math" else None
            wanted = reference.greedy(adapter, prompt, 24)
            assert tokens[name][: len(wanted)] == wanted
            continue
        report = answer["kv_transfer_params"]["gate"]["0"]
        assert report["gated_tokens"] == len(report["trace"])
        assert all(entry["entropy"] > tau for entry in report["trace"])
        if name == "all":
            assert report["gated_tokens"] == answer["usage"]["completion_tokens"]
        elif name == "some":
            assert 0 < report["gated_tokens"] < answer["usage"]["completion_tokens"]
            points = [entry["position"] for entry in report["trace"]]
            assert tokens["some"][: points[0]] == tokens["base"][: points[0]]
    assert tokens["never"] == tokens["base"]


def test_arguments_that_do_not_fit_are_refused(plain: Server) -> None:
    for xargs, word in (
        ({"gate_tau": -1}, "gate_tau"),
        ({"gate_rate": 0.1}, "gate_rate: the engine takes"),
        ({"gate_trace": 1}, "goes with a gated model"),
    ):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            ask(plain, "tiny-math", vllm_xargs=xargs)
        assert caught.value.response.status_code == 400
        assert word in caught.value.response.text
