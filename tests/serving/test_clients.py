"""Each client of docs/clients.md, with its real package, against the real server.

A script of tests/clients/ runs the lines of the page and checks more than a page shows. Clients
that are not in this project's environment run in one of their own, which uv makes of the script's
first lines. Those that take long to install run with `make test-clients` alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import ROOT, Server, run_command

SCRIPTS = ROOT / "tests" / "clients"
OWN = ("openai", "vllm_bench")  # in this environment
LIGHT = ("litellm", "langchain", "inspect")
slow = pytest.mark.skipif(
    os.environ.get("REASONMAXXER_CLIENTS") != "all", reason="slow to install: `make test-clients`"
)
HEAVY = [pytest.param(client, marks=slow) for client in ("lm_eval", "guidellm")]
UV = Path(sys.executable).with_name("uv")


def interpreter(script: Path) -> str:
    """The Python of the script's own environment, made if need be; skips where it cannot be had."""
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
    environment = os.environ | {"UV_FIND_LINKS": links, "UV_PYTHON_DOWNLOADS": "never"}
    if not UV.is_file():
        pytest.skip("uv is not installed")
    flags = ["--quiet", "--python", sys.executable, "--script", str(script)]
    made = run_command(UV, "sync", *flags, env=environment)
    if made.returncode:
        pytest.skip(f"{script.name}: its packages cannot be had: {made.stderr.strip()[-300:]}")
    found = run_command(UV, "python", "find", "--script", script, env=environment, check=True)
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
    ended = run_command(python, script, server.url, env=environment)
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}"
    assert "all checks passed" in ended.stdout


@pytest.mark.parametrize("client", [*OWN, *LIGHT, *HEAVY])
def test_a_client(gated: Server, client: str) -> None:
    script = SCRIPTS / f"check_{client}.py"
    check(sys.executable if client in OWN else interpreter(script), script, gated)
