"""Each client of docs/clients.md, with its real package, against the real server.

A script of tests/clients/ runs the lines of the page and checks more than a page shows. Clients
that are not in this project's environment run in one of their own, which uv makes of the script's
first lines. Those that take long to install run with `make test-clients` alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Server

SCRIPTS = ROOT / "tests" / "clients"
OWN = ("openai", "vllm_bench")  # in this environment
LIGHT = ("litellm", "langchain", "inspect")
HEAVY = ("lm_eval", "guidellm")
ALL = os.environ.get("REASONMAXXER_CLIENTS") == "all"
UV = Path(sys.executable).with_name("uv")


def interpreter(script: Path) -> str:
    """The Python of the script's own environment, made if need be; skips where it cannot be had."""
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    environment = os.environ | {"UV_FIND_LINKS": links, "UV_PYTHON_DOWNLOADS": "never"}
    if not UV.is_file():
        pytest.skip("uv is not installed")
    flags = ["--quiet", "--python", sys.executable, "--script", str(script)]
    made = subprocess.run(
        [UV, "sync", *flags], env=environment, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"{script.name}: its packages cannot be had: {made.stderr.strip()[-300:]}")
    found = subprocess.run(
        [UV, "python", "find", "--script", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def check(python: str, script: Path, server: Server) -> None:
    """Run a script; what it prints is shown where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OPENAI_API_KEY": server.key,
        "CLIENT_BASE": str(server.base),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [python, str(script), server.url],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    assert "all checks passed" in ended.stdout


@pytest.mark.parametrize("client", OWN)
def test_clients_of_this_environment(gated: Server, client: str) -> None:
    check(sys.executable, SCRIPTS / f"check_{client}.py", gated)


@pytest.mark.parametrize("client", LIGHT)
def test_clients_that_are_quick_to_install(gated: Server, client: str) -> None:
    script = SCRIPTS / f"check_{client}.py"
    check(interpreter(script), script, gated)


@pytest.mark.skipif(not ALL, reason="slow to install: `make test-clients`")
@pytest.mark.parametrize("client", HEAVY)
def test_clients_that_are_slow_to_install(gated: Server, client: str) -> None:
    script = SCRIPTS / f"check_{client}.py"
    check(interpreter(script), script, gated)
