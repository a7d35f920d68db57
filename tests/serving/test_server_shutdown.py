"""SIGTERM: requests in flight finish, the exit code is 0, no process is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import openai
import pytest
from support import make_adapter, running_server

pytestmark = pytest.mark.engine


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_requests_in_flight_finish(tmp_path: Path, base_folder: Path) -> None:
    make_adapter(tmp_path / "store", "alpha", base_folder, seed=1)
    with running_server(base_folder, tmp_path / "store", tmp_path) as server:
        processes = family(server.process.pid)
        assert len(processes) >= 3  # front end, engine core, worker
        stream = server.client().completions.create(
            model="alpha",
            prompt="1 +",
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        first = next(stream)
        os.kill(server.process.pid, signal.SIGTERM)
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.process.wait(30) == 0, server.log
        assert "Traceback" not in server.log
        assert not [pid for pid in processes if alive(pid)]
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()
