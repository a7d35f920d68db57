"""The store: immutable versions, and aliases that point at them and move.

    STORE/NAME/HASH/          the version NAME@HASH: PEFT files, manifest.json, README.md, fit.yaml
    STORE/NAME/moves.jsonl    where the alias NAME points and has pointed (adapters/moves.py)
    STORE/NAME/.lock  HASH/.lease             who writes, who uses (adapters/lease.py)
    STORE/NAME/.tmp-*  .trash-*               half built, half deleted

A version is built aside, put on the disk and renamed into place before any alias points at it; an
alias moves by one line. So whatever kills a writer leaves the old state or the new.

A plain PEFT folder, STORE/NAME/adapter_config.json and so on, is an adapter too. It becomes a
version, and its alias points at it, when it is adopted: a server does that where it finds one, and
whoever publishes under its name. Its files then lie in the version's folder.

A name never becomes a path without passing the strict pattern, and links never lead out.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adapters import moves
from adapters.adapter import (
    ALONGSIDE,
    CONFIG,
    FILES,
    ORIGIN,
    WEIGHTS,
    AdapterError,
    AdapterVersion,
    Origin,
    read_origin,
)
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import fsync, remove_tree, sha256_file, stamp
from adapters.lease import Lease, writing
from adapters.manifest import is_name
from adapters.moves import Action, DamagedHistoryError, Move
from adapters.peft_folder import INDEX, SHARDS
from adapters.reference import Reference, is_hash

# The store that comes with the project.
SHIPPED = Path(__file__).parent / "store"
_TRIES = 100
# Errors that tell of what lies in a store. All others tell of the storage, and may be over soon.
_OF_CONTENT = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.EINVAL),
    }
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})  # until somebody acts
BUILDING, TRASH = ".tmp-", ".trash-"


class StoreError(AdapterError):
    """The store could not be written: a full disk, a read-only folder."""


class StoreAwayError(StoreError):
    """The storage behind the store cannot be reached now; the same may work later."""


class MovedMeanwhileError(Exception):
    """Another writer has moved the alias since it was looked at."""


@dataclass(frozen=True)
class Listing:
    """What a store offers to one base: the adapters that fit, and why the others do not."""

    offered: dict[str, AdapterVersion]
    refused: dict[str, AdapterError]


class Plain(NamedTuple):
    """A plain PEFT folder; another value once something in it has changed."""

    changed: int  # when one of its files last did, nanoseconds since 1970
    files: int


@dataclass(frozen=True)
class Leased:
    """What a reference meant when it was asked for, held until `lease` is closed."""

    reference: Reference  # with a hash, but for a plain folder
    path: Path
    lease: Lease


@dataclass
class Store:
    """A folder of adapters. Holds no state: every question looks afresh, from any process.

    Wherever a `reference` is asked for, NAME and NAME@HASH will do. A store in a bucket differs in
    the methods under "the seam" and in those that read a folder of a name (adapters/bucket/).
    """

    root: Path

    @property
    def place(self) -> str:
        """Where the store is, for people."""
        return str(self.root)

    def __post_init__(self) -> None:
        self._mounted = os.path.ismount(self.root)

    def exists(self) -> bool:
        """Whether there is a store; one that nothing was published into yet may not be."""
        return self.root.is_dir()

    def reachable(self) -> bool:
        """Whether the folder is there, and no empty place where the store was mounted before."""
        return os.path.isdir(self.root) and (not self._mounted or os.path.ismount(self.root))

    @contextmanager
    def reached(self, name: str) -> Iterator[None]:
        """Tell what the storage fails at from what is wrong with `name`, or not there.

        Raises:
            StoreAwayError: in place of any error of a storage that is away.
        """
        try:
            yield
        except StoreAwayError:
            raise
        except (KeyError, OSError, ValueError) as error:
            failure = _failure(error)
            if failure is None and self.reachable():
                raise
            why = (failure.strerror or failure) if failure else "its folder is gone"
            raise StoreAwayError(name, f"{self.place} is out of reach: {why}") from error

    # ---------------------------------------------------------------------------------- the seam

    def refresh(self) -> None:
        """Look at the storage, where not every question does.

        Raises:
            OSError: it cannot be reached.
            DamagedHistoryError: what is there cannot be read.
        """
        if not self.reachable():
            raise FileNotFoundError(f"{self.root} is no folder, or no longer mounted")

    @property
    def calls(self) -> Mapping[str, int]:
        """Requests to the storage so far, by kind; a folder has none."""
        return {}

    def last_move(self, name: str) -> Move | None:
        """The move that says where the alias `name` points; None where there is none yet.

        Raises:
            DamagedHistoryError, OSError: the history cannot be read.
        """
        return moves.read_last(self.root / name)

    def identity(self, reference: Reference) -> int | None:
        """What differs when a version was deleted and put in place again; None: it is gone."""
        try:
            return self.path(reference).stat().st_ino
        except FileNotFoundError:
            return None

    def bring_records(self, names: list[str]) -> None:
        """Have at hand what `get` needs of these names without hashes; a folder has it."""

    def _files(self, reference: Reference, hashes: bool) -> Path:  # noqa: ARG002
        """The folder to read a version from; without `hashes` its weights may be a header alone."""
        return self.path(reference)

    def _turn(self, name: str) -> AbstractContextManager[None]:
        """Keep other writers of `name` waiting, where that is possible."""
        return writing(self.root / name)

    def _append(self, name: str, move: Move, after: Move | None) -> None:  # noqa: ARG002
        """Make `move` the last one, in the caller's turn and with a lease of its version.

        Raises:
            MovedMeanwhileError: `after` is not the last any more. A turn rules that out here.
        """
        moves.append(self.root / name, move)

    # ----------------------------------------------------------------------------------- reading

    def names(self) -> list[str]:
        """Every alias and every plain folder, sound or not, sorted."""
        return [name for name in self.folders() if self._means_something(name)]

    def folders(self) -> list[str]:
        """Every folder that has a name's form, also without anything that could be served."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and is_name(entry.name)
        )

    def versions(self, name: str) -> list[str]:
        """The hashes of the versions of `name` that are there, sorted."""
        if not is_name(name) or not (self.root / name).is_dir():
            return []
        with suppress(OSError):
            return sorted(
                entry.name
                for entry in (self.root / name).iterdir()
                if is_hash(entry.name) and _is_folder(entry)
            )
        return []

    def history(self, name: str) -> list[Move]:
        """Every move of the alias `name`, oldest first.

        Raises:
            KeyError: there is no such folder.
            AdapterError: the history is damaged.
        """
        with self._reading(name):
            return moves.read_all(self._folder(name))

    def previous(self, name: str) -> str:
        """The version that a roll-back of `name` would go back to.

        Raises:
            KeyError: there is no such folder.
            AdapterError: there is none before, or the history is damaged.
        """
        return _before(name, self.history(name))

    def resolve(self, reference: str) -> Reference:
        """The version that `reference` means now; without a hash if it is a plain folder.

        Raises:
            KeyError: there is nothing of that name.
            AdapterError: there is, but it leads out of the store, or its history is damaged.
        """
        try:
            asked = Reference.parse(reference)
        except ValueError:
            raise KeyError(reference) from None
        if not (self.root / asked.name).is_dir():
            raise KeyError(reference)
        folder = self._folder(asked.name)
        if asked.hash is not None:
            if not _is_folder(folder / asked.hash):
                raise KeyError(reference)
            return asked
        with self._reading(asked.name):
            last = self.last_move(asked.name)
        if last is not None:
            return Reference.parse_version(last.version)
        if not self._means_something(asked.name):
            raise KeyError(reference)
        return asked

    def path(self, reference: Reference) -> Path:
        """Where the files of a resolved reference lie."""
        return self.root / reference.name / (reference.hash or "")

    def plain(self, name: str) -> Plain | None:
        """The plain PEFT folder `name` as it is now; None where there is none.

        A folder without an alias is meant to be one, whatever is in it. Beside versions it takes a
        configuration and weights.
        """
        home = self.root / name
        if not is_name(name) or not home.is_dir():
            return None
        try:
            aliased = moves.read_last(home) is not None
        except (DamagedHistoryError, OSError):
            aliased = True
        weights = (home / WEIGHTS).exists() or (home / INDEX).exists()
        if aliased and not ((home / CONFIG).exists() and weights):
            return None
        try:
            changes = [entry.stat(follow_symlinks=False).st_ctime_ns for entry in _own(home)]
        except FileNotFoundError:  # adopted between the two looks
            return None
        except OSError:
            return Plain(0, 0)  # adopting it says what is wrong
        return Plain(max(changes), len(changes)) if changes else None

    def get(
        self,
        reference: str,
        base: BaseCheckpoint | None = None,
        max_rank: int | None = None,
        *,
        hashes: bool = True,
    ) -> AdapterVersion:
        """The adapter that `reference` means, its content hashed and compared with its name.

        Args:
            base: must fit, where given.
            max_rank: what the server was started for, where given.
            hashes: False believes a version's name, and reads no more of its weights than their
                header: enough to list it, not to load it.

        Raises:
            KeyError: there is nothing of that name.
            AdapterError: there is, but it cannot be used.
        """
        while True:
            found = self.resolve(reference)
            try:
                return self._read(found, reference, base, max_rank, hashes)
            except (AdapterError, OSError):
                if self.resolve(reference) == found:
                    raise
                # Collected while it was read, after the alias had moved on.

    def listing(
        self,
        base: BaseCheckpoint | None = None,
        max_rank: int | None = None,
        *,
        hashes: bool = True,
    ) -> Listing:
        """Every adapter, read and checked, as `get` does."""
        listing = Listing({}, {})
        for name in self.names():
            try:
                listing.offered[name] = self.get(name, base, max_rank, hashes=hashes)
            except AdapterError as error:
                listing.refused[name] = error
            except OSError as error:
                listing.refused[name] = AdapterError(name, f"cannot be read: {error}")
            except KeyError:
                continue  # removed between the two looks
        return listing

    def lease(self, reference: str) -> Leased:
        """Hold what `reference` means now, so that it is not collected; close the lease after use.

        Raises:
            KeyError, AdapterError: as `resolve`.
            OSError: the lease file cannot be opened.
        """
        for _ in range(_TRIES):
            found = self.resolve(reference)
            path = self.path(found)
            if found.hash is None:
                return Leased(found, path, Lease(None))
            lease = Lease.take(path) if _is_folder(path) else None
            if lease is not None:
                return Leased(found, path, lease)
            # Collected between the two looks, after the alias had moved on; or gone by other hands.
        raise AdapterError(reference, f"its version {found} is gone; move the alias, or verify")

    # ----------------------------------------------------------------------------------- writing

    def publish(
        self,
        folder: Path,
        name: str,
        *,
        base: BaseCheckpoint | None = None,
        alias: bool = True,
        by: str | None = None,
        origin: Origin | None = None,
    ) -> AdapterVersion:
        """Copy a PEFT folder into the store as a version of `name`, and move the alias to it.

        The same content again is the same version. Nothing is there before all of it was checked.

        Args:
            base: must fit, where given.
            alias: False leaves the alias where it is.
            by: who does it, for the history; default: this user at this machine.
            origin: what the folder was made from, where an import has changed something.

        Raises:
            ValueError: `name` is none.
            AdapterError: the folder's content cannot be used.
            StoreError: the store cannot be written.
        """
        if not is_name(name):
            raise ValueError(f"{name[:100]!r} is not a name; use lower case letters, digits, . _ -")
        with self.writes(name):
            version, lease = self._build(folder, name, base, origin)
            with lease:
                if alias:
                    self._move(name, Reference(name, version.hash), "publish", by)
        return version

    def adopt(self, name: str, *, by: str | None = None) -> AdapterVersion | None:
        """Make a version of the plain PEFT folder `name`, and point the alias at it.

        Its files go from the folder, since the version holds the same.

        Returns:
            The version; None where there is no plain folder (any more).

        Raises:
            AdapterError: the folder cannot be used, and stays as it is.
            StoreError: the store cannot be written.
        """
        if self.plain(name) is None:
            return None
        folder = self._folder(name)  # before it is written: a link may lead out of the store
        with self.writes(folder.name):
            return self._adopt(name, by)

    def alias(
        self, name: str, version: str, *, by: str | None = None, trusted: bool = False
    ) -> Move:
        """Point the alias `name` at `version` (NAME@HASH, of this name or another).

        Where it already points there, nothing happens.

        Args:
            trusted: the caller has read the version and holds a lease of it.

        Returns:
            The move that made it so.

        Raises:
            ValueError: `name` or `version` is none.
            KeyError: there is no such version.
            AdapterError: there is, but it cannot be used; the alias is where it was.
            StoreError: the store cannot be written.
        """
        reference = Reference.parse_version(version)
        if not is_name(name):
            raise ValueError(f"{name[:100]!r} is not a name; use lower case letters, digits, . _ -")
        with self.writes(name), self.lease(version).lease:
            self.get(version, hashes=not trusted)
            return self._move(name, reference, "alias", by)

    def rollback(self, name: str, *, by: str | None = None, trusted: str | None = None) -> Move:
        """Point the alias `name` at the version before the present one; again: further back.

        Args:
            trusted: a version that the caller has read and holds a lease of.

        Raises:
            KeyError: there is no such alias.
            AdapterError: there is none before, or it is gone or damaged; nothing has moved.
            StoreError: the store cannot be written.
        """
        if not is_name(name) or self.resolve(name).hash is None:
            raise KeyError(name)
        with self.writes(name), self._turn(name):
            for _ in range(_TRIES):
                with suppress(MovedMeanwhileError):
                    return self._roll_back(name, by, trusted)
        raise StoreError(name, "others move this alias all the time; try again")

    def _roll_back(self, name: str, by: str | None, trusted: str | None) -> Move:
        lines = self.history(name)
        before = _before(name, lines)
        try:
            held = self.lease(before)
        except KeyError:
            raise AdapterError(
                name, f"{before}, which it would roll back to, is gone; alias another version"
            ) from None
        with held.lease:
            self.get(before, hashes=before != trusted)
            move = Move.now(held.reference, lines[-1], "rollback", by)
            self._append(name, move, lines[-1])
        return move

    def _build(
        self,
        source: Path,
        name: str,
        base: BaseCheckpoint | None,
        origin: Origin | None = None,
    ) -> tuple[AdapterVersion, Lease]:
        """Make a version of `source`, or find it there; the lease holds it until it is aliased."""
        folder = AdapterVersion.read(source, name, known="-")  # bounds what is copied
        home = self.root / name
        with writing(home):  # or the garbage collection might sweep what nobody holds yet
            building = home / f"{BUILDING}{secrets.token_hex(6)}"
            building.mkdir()
            try:
                lease = Lease.take(building)
                assert lease is not None
            except BaseException:
                remove_tree(building)
                raise
        try:
            weights = folder.copy_to(building, base, origin=origin)
            version = AdapterVersion.read(building, name, weights=weights)
            if base is not None:
                version.check_fits(base)
            reference = Reference(name, version.hash)
            while not self._put_in_place(building, self.path(reference)):
                with suppress(KeyError):  # collected just now: then ours can take its place
                    held = self.lease(str(reference))
                    lease.close()
                    lease = held.lease
                    with suppress(OSError):
                        os.utime(held.path)  # published just now, to the garbage collection
                    return self.get(str(reference)), lease
        except BaseException:
            lease.close()
            raise
        finally:
            with suppress(OSError):  # what cannot be removed now is swept later
                remove_tree(building)
        try:
            return AdapterVersion.read(self.path(reference), name, version.hash), lease
        except BaseException:
            lease.close()
            raise

    def _put_in_place(self, building: Path, path: Path) -> bool:
        """Rename a finished version into place; False: it is there already."""
        fsync(building)
        try:
            os.rename(building, path)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
        fsync(path.parent)
        return True

    def _move(self, name: str, to: Reference, action: Action, by: str | None) -> Move:
        """Move an alias to a version that the caller holds a lease of."""
        home = self.root / name
        if self.plain(name) is not None and (home / CONFIG).exists():
            try:
                self._adopt(name, by)
            except AdapterError as error:
                if moves.read_last(home) is None:
                    raise AdapterError(
                        name,
                        f"its plain folder cannot become a version ({error.reason}); "
                        f"remove {home / CONFIG}",
                    ) from error
        return self._point(name, to, action, by)

    def _point(self, name: str, to: Reference, action: Action, by: str | None) -> Move:
        """Have the alias point at `to`, of which the caller holds a lease."""
        with self._turn(name):
            for _ in range(_TRIES):
                last = self.last_move(name)
                if last is not None and last.version == str(to):
                    return last
                move = Move.now(to, last, action, by)
                with suppress(MovedMeanwhileError):
                    self._append(name, move, last)
                    return move
        raise StoreError(name, "others move this alias all the time; try again")

    def _adopt(self, name: str, by: str | None) -> AdapterVersion:
        home = self.root / name
        self._check_links(name, home)
        files = [home / file for file in self._plain_files(home) if (home / file).exists()]
        before = [stamp(path) for path in files]
        version, lease = self._build(home, name, None)
        with lease:
            self._point(name, Reference(name, version.hash), "publish", by)
        # Without its weights, which go first, the rest of a folder is no adapter.
        if before == [stamp(path) for path in files]:
            for path in files:
                path.unlink(missing_ok=True)
        return version

    @staticmethod
    def _plain_files(home: Path) -> list[str]:
        """Names of what an adapter in the folder of a name may consist of, weights first."""
        shards = sorted(shard.name for shard in home.glob(SHARDS))
        return list(dict.fromkeys((WEIGHTS, INDEX, *shards, *FILES, *ALONGSIDE)))

    def leftovers(self, name: str) -> list[str]:
        """Files of a plain folder that became a version, which holds the same content."""
        home = self.root / name
        return [
            file
            for file in self._plain_files(home)
            if (home / file).is_file() and self._is_in_a_version(name, file)
        ]

    def _is_in_a_version(self, name: str, file: str) -> bool:
        """Whether a version holds the file, or was made from it."""
        versions = [self.root / name / digest for digest in self.versions(name)]
        here = self.root / name / file
        return any(
            (version / file).is_file()
            and (version / file).stat().st_size == here.stat().st_size
            and sha256_file(version / file) == sha256_file(here)
            for version in versions
        ) or any(
            read_origin(version).files.get(file) == sha256_file(here)
            for version in versions
            if (version / ORIGIN).is_file()
        )

    # ----------------------------------------------------------------------------- the small print

    def _read(
        self,
        found: Reference,
        reference: str,
        base: BaseCheckpoint | None,
        max_rank: int | None,
        hashes: bool,
    ) -> AdapterVersion:
        path = self._files(found, hashes)
        if found.hash is not None and not _is_folder(path):
            raise AdapterError(reference, f"its version {found} is gone; move the alias, or verify")
        self._check_links(reference, path)
        version = AdapterVersion.read(path, found.name, None if hashes else found.hash)
        if found.hash not in (None, version.hash):
            raise AdapterError(
                reference, f"the content of {found} is not what its hash names ({version.hash})"
            )
        if max_rank is not None and version.rank > max_rank:
            raise AdapterError(
                reference,
                f"rank {version.rank} is over the limit {max_rank}; raise --max-lora-rank",
            )
        if base is not None:
            version.check_fits(base)
        return version

    def _folder(self, name: str) -> Path:
        """The folder of `name`. Raises KeyError: none; AdapterError: it lies elsewhere."""
        folder = self.root / name
        if not is_name(name) or not folder.is_dir():
            raise KeyError(name)
        if folder.is_symlink():
            self._check_inside(name, folder)
        return folder

    def _means_something(self, name: str) -> bool:
        """Whether there is an alias, or anything that somebody meant to be a plain adapter.

        A name whose first version was built, but never aliased, means nothing yet.
        """
        folder = self.root / name
        try:
            if moves.read_last(folder) is not None:
                return True
        except (DamagedHistoryError, OSError):
            return True  # something is there; asking for it says what is wrong
        try:
            return bool(_own(folder))
        except OSError as error:
            return not isinstance(error, FileNotFoundError)  # asking for it says what is wrong

    def _check_links(self, name: str, path: Path) -> None:
        try:
            entries = [path, *path.iterdir()]
        except OSError as error:
            raise AdapterError(name, f"its folder cannot be read: {error.strerror}") from error
        for entry in entries:
            self._check_inside(name, entry)

    def _check_inside(self, name: str, entry: Path) -> None:
        try:
            inside = entry.resolve().is_relative_to(self.root.resolve())
        except (OSError, RuntimeError) as error:  # links that lead in a circle
            raise AdapterError(name, f"{entry.name[:100]!a} is a link in a circle") from error
        if not inside:
            raise AdapterError(name, f"{entry.name[:100]!a} is a link that leads out of the store")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except DamagedHistoryError as error:
            raise AdapterError(name, str(error)) from error
        except OSError as error:
            raise AdapterError(name, f"{moves.FILE} cannot be read: {error.strerror}") from error

    @contextmanager
    def writes(self, name: str) -> Iterator[None]:
        """Say in the store's words why the folder of `name` could not be written."""
        try:
            if (self.root / name).is_symlink():
                raise AdapterError(name, "is a link; only a folder of the store can be written")
            yield
        except DamagedHistoryError as error:
            raise AdapterError(name, str(error)) from error
        except OSError as error:
            passes = _failure(error) is not None and error.errno not in _NO_ROOM
            raise (StoreAwayError if passes else StoreError)(
                name, f"the store {self.place} cannot be written: {error.strerror or error}"
            ) from error


def _failure(error: BaseException | None) -> OSError | None:
    """The error of the storage behind `error`; None: there is none, or it is told of already."""
    while error is not None and not isinstance(error, StoreError):
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
            return error
        error = error.__cause__
    return None


def _before(name: str, lines: list[Move]) -> str:
    path = moves.path_back(lines)
    if len(path) < 2:
        raise AdapterError(name, "has no version before this one to roll back to")
    return path[-2]


def _own(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in the folder of a name beside its versions, its history and what is hidden."""
    with os.scandir(folder) as entries:
        return [
            entry
            for entry in entries
            if entry.name != moves.FILE and entry.name[0] != "." and not is_hash(entry.name)
        ]


def _is_folder(path: Path) -> bool:
    """A folder and no link to one: a version lies in its store."""
    return path.is_dir() and not path.is_symlink()
