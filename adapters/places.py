"""Where adapters and the base model lie unless a command says otherwise.

The default store is the first of these:

    $REASONMAXXER_ADAPTERS                  where the variable is set
    ./adapters/store                        where the working directory has that folder
    the store of the source checkout        where the program runs from one
    $XDG_DATA_HOME/reasonmaxxer/store       else; ~/.local/share where that variable is not set

An installed package therefore never writes into site-packages.

A store may be in a bucket too: `s3://BUCKET/PREFIX`, `gs://...`, `az://CONTAINER/PREFIX`. Its
versions are kept in a folder of this machine:

    $REASONMAXXER_STORE_CACHE               where the variable is set
    $XDG_CACHE_HOME/reasonmaxxer/stores     else; ~/.cache where that variable is not set
    $REASONMAXXER_STORE_CACHE_GIB           at most so much of each store; 20 where it is not set
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator

from adapters.store import SHIPPED, Store

STORE_VARIABLE = "REASONMAXXER_ADAPTERS"
CACHE_VARIABLE = "REASONMAXXER_STORE_CACHE"
CACHE_SIZE_VARIABLE = "REASONMAXXER_STORE_CACHE_GIB"
CACHE_GIB = 20.0
BUCKETS = ("s3", "gs", "az")
_SECRETIVE = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://[^\s'\"]*[@?#][^\s'\"]*")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
IN_WORKING_DIRECTORY = Path("adapters", "store")
# The source checkout has a store beside this file and a base model beside this package.
SHIPPED_MODEL = SHIPPED.parents[1] / "models" / "tiny-qwen2"


def default_store() -> Path | str:
    """The store that a command uses where none is named. It may not exist yet."""
    named = os.environ.get(STORE_VARIABLE)
    if named:
        place = parse_place(named)
        return place if isinstance(place, str) else place.absolute()
    for folder in (IN_WORKING_DIRECTORY.absolute(), SHIPPED):
        if folder.is_dir():
            return folder
    return user_store()


def user_store() -> Path:
    """The store in the user's data folder, or in the working directory of a user without a home."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # as the XDG specification asks: relative paths are ignored
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return IN_WORKING_DIRECTORY.absolute()
    return data / "reasonmaxxer" / "store"


def default_model() -> str:
    """The miniature base of a source checkout; empty where there is none."""
    return str(SHIPPED_MODEL) if SHIPPED_MODEL.is_dir() else ""


# ------------------------------------------------------------------------------------ in a bucket


def parse_place(place: Path | str) -> Path | str:
    """A store's folder, or the URL of its bucket without a slash at the end.

    Raises:
        ValueError: a URL that names no place, or holds credentials, which the message leaves out.
    """
    text = str(place)
    known = _ADDRESS.match(text) if isinstance(place, str) else None
    if known is None:
        return Path(place)
    scheme = known.group(1).lower()
    if scheme == "file":
        return _folder(text)
    if scheme not in BUCKETS:
        raise ValueError(
            f"{scheme}:// is no storage for adapters; use a folder, s3://, gs://, az:// or file://"
        )
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(
            f"this {scheme}:// address cannot be read; write {scheme}://BUCKET/PREFIX"
        ) from None
    if "@" in text or "?" in text or "#" in text:
        raise ValueError(
            f"this {scheme}:// address holds more than a bucket and a prefix; credentials belong "
            "into the environment or the cloud's own files"
        )
    prefix = [part for part in parts.path.split("/") if part]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", parts.netloc):
        raise ValueError(
            f"this {scheme}:// address names no bucket; write {scheme}://BUCKET/PREFIX"
        )
    if any(part in (".", "..") or not part.isprintable() for part in prefix):
        raise ValueError(f"this {scheme}:// address has a prefix with '.' or '..'; leave them out")
    return f"{scheme}://" + "/".join([parts.netloc, *prefix])


def _folder(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError("a file:// address names a folder of this machine: file:///FOLDER")
    return Path(unquote(parts.path))


def shown(value: object) -> str:
    """`value` for an error message: of an address that may hold credentials, the scheme alone."""
    return without_credentials(repr(value))


def without_credentials(text: str) -> str:
    """`text` with no more than the scheme of addresses that may hold credentials."""
    return _SECRETIVE.sub(r"\1://...", text)


def check_writable(place: Path | str) -> None:
    """Raise ValueError where nothing could be published, hours before there is anything."""
    if isinstance(place, Path):
        folder = place.absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"{folder} cannot be written")
        return
    from adapters.bucket.objects import Objects

    try:
        Objects.open(place).now()  # writes, reads and deletes
    except OSError as error:
        raise ValueError(f"{place} cannot be written: {error}") from error


# For settings and flags: a folder as a Path, a bucket as the text of its URL.
Place = Annotated[Path | str, BeforeValidator(parse_place)]


def open_store(
    place: Path | str, cache: Path | None = None, cache_gib: float | None = None
) -> Store:
    """The store at `place`: of a bucket as of now, or as of the last look where that is away.

    Args:
        cache: folder for what is downloaded of buckets; default: as above.
        cache_gib: how much of this one stays there.

    Raises:
        ValueError: the place or the cache cannot be used.
        OSError: the bucket is out of reach, and nothing is known of it from earlier.
    """
    place = parse_place(place)
    if isinstance(place, Path):
        return Store(place)
    from adapters.bucket.objects import AwayError, Objects
    from adapters.bucket.store import BucketStore
    from adapters.moves import DamagedHistoryError

    limit = cache_gib if cache_gib is not None else _cache_gib()
    objects = Objects.open(place)
    # One bucket's name means another bucket at another endpoint.
    endpoints = [os.environ.get(f"AWS_ENDPOINT_URL{which}", "") for which in ("_S3", "")]
    address = " ".join([place, *endpoints]).encode()
    folder = (cache or cache_folder()) / hashlib.sha256(address).hexdigest()[:16]
    try:
        store = BucketStore(objects, folder, int(limit * 2**30))
    except OSError as error:
        raise ValueError(
            f"{CACHE_VARIABLE}: {folder} cannot be written ({error.strerror}); name another folder"
        ) from error
    try:
        store.index.refresh()
    except AwayError as error:
        if not store.index.aliases:
            raise OSError(f"{place} is out of reach: {error}") from error
    except DamagedHistoryError as error:
        raise ValueError(f"{place}: {error}") from error
    return store


def cache_folder() -> Path:
    """Where versions of buckets are kept on this machine, each store in a folder of its own."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).absolute()
    data = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not data.is_absolute():
        try:
            data = Path.home() / ".cache"
        except RuntimeError:
            data = Path.cwd() / ".cache"
    return data / "reasonmaxxer" / "stores"


def _cache_gib() -> float:
    text = os.environ.get(CACHE_SIZE_VARIABLE, "")
    try:
        size = float(text or CACHE_GIB)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ValueError(f"{CACHE_SIZE_VARIABLE}: {text[:50]!r} is no number above 0")
    return size
