"""Files that are never half-written: build under a temporary name, fsync, rename.

A reader sees the old content or the new, never a mixture, whatever kills the writer.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BLOCK = 2**20


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: writers such as pyarrow and safetensors look at it.
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{path.suffix}")
    # Not by mkstemp, which makes 0600: results are ordinary files, with the mode that the process
    # gives its files. To ask for that mode would change it for all threads.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.close(fd)
    try:
        yield temporary
        temporary.chmod(mode)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`.

    A folder cannot replace a non-empty one in a single rename, so an older `path` is moved aside
    first: a reader in that instant finds nothing there, never half of each.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tmp-"))
    try:
        build = temporary / "new"
        build.mkdir()
        yield build
        for folder, _, files in os.walk(build):
            for file in files:
                fsync(Path(folder, file))
            fsync(Path(folder))
        older = temporary / "old"
        try:
            if path.exists():
                os.rename(path, older)
            os.rename(build, path)
        except BaseException:
            with suppress(OSError):  # there is none, or another writer was faster
                os.rename(older, path)
            raise
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> tuple[int, ...]:
    """What differs whenever a file was written or replaced; empty if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def copy_file(source: Path, target: Path, limit: int, mode: int = 0o444) -> None:
    """Copy one file to a new one of that mode, and wait until it is on the disk.

    Raises:
        ValueError: it is larger than `limit` bytes (or grows beyond them meanwhile).
    """
    write_blocks(target, _blocks(source, limit), mode)


def _blocks(source: Path, limit: int) -> Iterator[bytes]:
    left = limit
    with open(source, "rb") as file:
        while block := file.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ValueError(f"{source.name} is larger than {limit} bytes")
            yield block


def write_blocks(target: Path, blocks: Iterable[bytes], mode: int = 0o444) -> None:
    """Write `blocks` to a new file of that mode, and wait until it is on the disk."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for block in blocks:
            rest = block
            while rest:
                rest = rest[os.write(fd, rest) :]
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it, or a link; what another process has deleted is no error."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            Path(folder, name).unlink(missing_ok=True)
        for entry in (Path(folder, name) for name in folders):
            with suppress(FileNotFoundError):
                entry.unlink() if entry.is_symlink() else entry.rmdir()
    with suppress(FileNotFoundError):
        path.rmdir()
