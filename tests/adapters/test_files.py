"""Atomic writes: an error or a kill leaves the old content and no litter."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from adapters.files import atomic_directory, atomic_write, write_json


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert "old" in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for content in ("one", "two"):
        with atomic_directory(path) as folder:
            (folder / "file").write_text(content)
    assert (path / "file").read_text() == "two"
    with pytest.raises(RuntimeError), atomic_directory(path) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert (path / "file").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def _killed_while_writing(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    child = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert "old" in path.read_text()
