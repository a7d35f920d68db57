"""SIGTERM: requests in flight finish, the exit code is 0, no process is left behind.

The signal goes to the server's process alone, as from `kill`, `docker stop` or `KillMode=mixed`.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support import Server, StartServer, make_adapter

LONG = ("--max-model-len", "2048")  # seconds of decoding: signals arrive well within


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def command_line(pid: int) -> str:
    """How a process was started; a fork has its parent's."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left(pids: list[int]) -> list[int]:
    """Those that still run ten seconds later: Python's own helpers go a moment after the server."""
    deadline = time.monotonic() + 10
    while (running := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def long_streams(server: Server, model: str, tokens: int) -> list[Any]:
    """Four streams under way."""
    streams = [
        server.client().completions.create(
            model=model,
            prompt="1 +",
            max_tokens=tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in range(4)
    ]
    for stream in streams:
        next(stream)
    return streams


def status_of_a_new_request(server: Server) -> int:
    """HTTP status."""
    answer = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {server.key}"})
    return answer.status_code


def assert_drains(server: Server, streams: list[Any], processes: list[int]) -> None:
    """After SIGTERM streams go on to their end, new requests are sent away, and nothing is left."""
    os.kill(server.process.pid, signal.SIGTERM)
    # Each round trip gives the signal handler a turn; it needs one or two.
    assert 503 in (status_of_a_new_request(server) for _ in range(100))
    for stream in streams:
        assert list(stream)[-1].choices[0].finish_reason == "length"
    assert server.process.wait(120) == 0, server.log
    assert "Traceback" not in server.log
    assert not left(processes)


def test_requests_in_flight_finish_and_new_ones_are_sent_away(
    start_server: StartServer, tmp_path: Path, base_folder: Path
) -> None:
    for seed, name in enumerate(("alpha", "beta"), 1):
        make_adapter(tmp_path / "store", name, base_folder, seed=seed)
    flags = (*LONG, "--max-loras", "1")
    with start_server(base_folder, tmp_path / "store", tmp_path, *flags) as server:
        processes = family(server.process.pid)
        assert len(processes) >= 4  # front end, fork server, engine core, worker
        lines = [command_line(process) for process in processes]
        assert any("VLLM::EngineCore" in line for line in lines)
        assert not any("multiprocessing.spawn" in line for line in lines)
        streams = long_streams(server, "alpha", 600)
        with ThreadPoolExecutor(1) as pool:
            create = server.client().completions.create
            waits = pool.submit(create, model="beta", prompt="1 +", max_tokens=1)  # for the slot
            while "reasonmaxxer_queue_requests 1\n" not in server.page():
                time.sleep(0.01)
            assert_drains(server, streams, processes)
            with pytest.raises(openai.APIStatusError) as refusal:
                waits.result()
        assert refusal.value.status_code == 503
        assert refusal.value.response.headers["Retry-After"]
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()


def test_a_second_signal_ends_it(
    start_server: StartServer, tmp_path: Path, base_folder: Path
) -> None:
    (tmp_path / "store").mkdir()
    # A base of more positions than it was trained for: these streams would run for half a minute
    # and more. (--max-model-len alone would let them read behind the table of rotary angles.)
    flags = ("--hf-overrides", '{"max_position_embeddings": 20000}', "--max-model-len", "20000")
    with start_server(base_folder, tmp_path / "store", tmp_path, *flags) as server:
        processes = family(server.process.pid)
        streams = long_streams(server, base_folder.name, 19000)
        os.kill(server.process.pid, signal.SIGTERM)
        assert 503 in (status_of_a_new_request(server) for _ in range(100))
        os.kill(server.process.pid, signal.SIGTERM)
        with pytest.raises((openai.APIError, httpx.HTTPError)):
            for stream in streams:
                list(stream)
        assert server.process.wait(120) == 0
        assert "second signal" in server.log
        assert not left(processes)
