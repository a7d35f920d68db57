"""Who uses a version, and who writes a name: advisory locks (flock) that vanish with their process.

They lie on files rather than folders, so that they also hold between machines that share a store
over NFS.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from adapters.files import fsync

LEASE = ".lease"  # inside a version's folder, and going with it when it is renamed
LOCK = ".lock"  # inside a name's folder
# What opening a file for writing says where nobody may write.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class Lease:
    """A version's folder held against garbage collection until `close`, or until the process ends.

    Shared between any number of users. Where nothing can be written (a read-only store) and no
    lease file is there, it holds nothing: nor can anybody collect there.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """Hold the version in `path`; None: it has been collected, or is just being so."""
        return cls._take(path, fcntl.LOCK_SH)

    @classmethod
    def take_alone(cls, path: Path) -> Lease | None:
        """Hold it against everybody; None: it is gone, or somebody uses it."""
        return cls._take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @classmethod
    def _take(cls, path: Path, operation: int) -> Lease | None:
        alone = bool(operation & fcntl.LOCK_EX)
        file = path / LEASE
        try:
            fd = _open(file, alone)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if alone or error.errno not in _READ_ONLY or not path.is_dir():
                raise
            return cls(None)
        try:
            fcntl.flock(fd, operation)
            # While this waited, the folder may have been renamed for deletion.
            if os.path.samestat(os.fstat(fd), os.stat(file)):
                return cls(fd)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def close(self) -> None:
        """Let go; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(file: Path, alone: bool) -> int:
    """Open the lease file, made where it is not there (a store that git checked out, say)."""
    # Over NFS an exclusive lock needs a file that is open for writing, a shared one does not.
    flags = (os.O_RDWR if alone else os.O_RDONLY) | os.O_NOFOLLOW
    try:
        return os.open(file, flags)
    except FileNotFoundError:
        return os.open(file, flags | os.O_CREAT, 0o666)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only writer of a name's folder, which is made if it is not there."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        fsync(folder.parent)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
