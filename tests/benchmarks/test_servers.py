"""Servers of our own: what is said of one that ends, or does not answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo.server import free_port, stop, wait_for_answer
from loadtests.routers import Kind, running


def test_one_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"loading\nno \xff memory\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RuntimeError, match=r"exit code 3\nloading\nno . memory"):
        wait_for_answer(process, url, time.monotonic() + 60, log)


def test_one_that_does_not_answer_in_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(RuntimeError, match="not healthy in time"):
            wait_for_answer(process, f"http://127.0.0.1:{free_port()}", time.monotonic() - 1)
    finally:
        stop(process)


def test_a_router_that_does_not_start_is_told(tmp_path: Path) -> None:
    kind = Kind("broken", "false", lambda executable, *_: [executable], "/health")
    with (
        pytest.raises(RuntimeError, match="exit code 1"),
        running(kind, [], tmp_path / "router", "key"),
    ):
        pass
