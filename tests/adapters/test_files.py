"""Atomic writes: an error or a kill leaves the old content and no litter."""

import errno
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


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    with atomic_directory(path) as folder:
        (folder / "file").write_text("old")
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(errno.EIO, "gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="gone"), atomic_directory(path) as folder:
        (folder / "file").write_text("new")
    assert (path / "file").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_a_file_has_the_mode_of_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    umask = os.umask
    monkeypatch.setattr(os, "umask", asked.append)  # it is the whole process's, threads included
    before = umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640
    assert not asked


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
