"""The calls against one prefix of a bucket, by obstore: S3, Google Cloud Storage and Azure.

Two of them make the store safe without a server of its own. A conditional write (If-Match,
If-None-Match) succeeds only if the object is still the one that was read. A conditional read costs
one small answer while nothing has changed. `AwayError` is all that a caller hears of a network.
"""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from adapters.first_line import first_line

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode, PutResult
    from obstore.store import ObjectStore

PAGE = 1000  # keys that one request lists
MISSING = "obstore is missing, which stores in buckets need; install reasonmaxxer[cloud]"
# Polls, leases and records: they are small, and somebody waits. Seconds.
QUICK = {"timeout": 4, "connect": 2, "retries": 1}
PATIENT = {"timeout": 60, "connect": 5, "retries": 4}
_CONFLICT = re.compile(r"\b409 Conflict\b")  # S3: two conditional writes at the same moment


class AwayError(OSError):
    """The storage cannot be reached, or refuses; the text says which."""


class ConflictError(Exception):
    """A conditional write came too late: the object is another one by now."""


class Etag(NamedTuple):
    """Which content an object had."""

    tag: str | None
    version: str | None = None  # Google's generation

    def mode(self) -> PutMode:
        """As obstore takes it, to replace this content alone."""
        told = {"e_tag": self.tag, "version": self.version}
        return cast("PutMode", {key: value for key, value in told.items() if value is not None})


class Found(NamedTuple):
    """An object."""

    content: bytes
    etag: Etag
    modified: datetime  # by the storage's clock


class Entry(NamedTuple):
    """An object in a listing."""

    key: str
    size: int
    modified: datetime


class UnchangedError(Exception):
    """A conditional read found what was read before."""


class Objects:
    """The objects under one prefix. May be used from several threads."""

    def __init__(self, place: str, patient: ObjectStore, quick: ObjectStore | None = None) -> None:
        self.place = place
        self.calls: Counter[str] = Counter()  # by kind; what the library repeats is not counted
        self._patient = patient
        self._quick = quick or patient

    @classmethod
    def open(cls, url: str) -> Objects:
        """Those under `url`, as `places.parse_place` lets it through.

        Raises:
            ValueError: obstore is missing, or the storage cannot be addressed as the environment
                says.
        """
        try:
            from obstore.exceptions import BaseError
        except ImportError:
            raise ValueError(MISSING) from None
        try:
            return cls(url, _client(url, **PATIENT), _client(url, **QUICK))
        except (BaseError, ValueError, TypeError) as error:
            raise ValueError(f"{url}: {_first_line(error)}") from error

    # ----------------------------------------------------------------------------------- reading

    def get(self, key: str, unless: Etag | None = None) -> Found | None:
        """A small object; None where there is none.

        Raises:
            UnchangedError: it is still the one that `unless` names.
            AwayError: the storage cannot be reached.
        """
        import obstore
        from obstore.exceptions import NotModifiedError

        self.calls["get"] += 1
        with self._told(f"{key} cannot be read"):
            try:
                options = {"if_none_match": unless.tag} if unless and unless.tag else {}
                result = obstore.get(self._quick, key, options=cast("Any", options))
                content = bytes(result.bytes())
            except FileNotFoundError:
                return None
            except NotModifiedError:
                raise UnchangedError from None
            return Found(content, _etag(result.meta), result.meta["last_modified"])

    def part(self, key: str, start: int, length: int) -> bytes:
        """Some bytes of a large object.

        Raises:
            FileNotFoundError: there is no such object.
            AwayError: the storage cannot be reached.
        """
        import obstore

        self.calls["get"] += 1
        with self._told(f"{key} cannot be read"):
            return bytes(obstore.get_range(self._patient, key, start=start, length=length))

    def under(self, prefix: str) -> list[Entry]:
        """Every object under `prefix/`.

        Raises:
            AwayError: the storage cannot be reached.
        """
        import obstore

        with self._told(f"{prefix} cannot be listed"):
            found = obstore.list(self._patient, prefix, chunk_size=PAGE).collect()
        self.calls["list"] += 1 + len(found) // PAGE
        return [Entry(one["path"], one["size"], one["last_modified"]) for one in found]

    def now(self) -> datetime:
        """The time by the storage's clock, which is the only one that machines share.

        Raises:
            AwayError: the storage cannot be reached.
        """
        key = f"clock/{secrets.token_hex(8)}"
        self.put(key, b"")
        found = self.get(key)
        with suppress(AwayError):
            self.delete([key])
        if found is None:
            raise AwayError(f"{self.place}: {key} is gone at once; who deletes here?")
        return found.modified

    # ----------------------------------------------------------------------------------- writing

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object, whatever was there. Raises AwayError."""
        self._put(key, content, "overwrite")

    def replace(self, key: str, content: bytes, was: Etag | None) -> Etag:
        """Write an object if it is still the one that `was` names; None: if there is none.

        Raises:
            ConflictError: it is not; or this very write has succeeded, and its answer was lost.
            AwayError: the storage cannot be reached; whether it was written is not known.
        """
        return _etag(self._put(key, content, was.mode() if was else "create"))

    def _put(self, key: str, content: bytes | Path, mode: PutMode) -> PutResult:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self.calls["put"] += 1
        client = self._patient if isinstance(content, Path) else self._quick
        with self._told(f"{key} cannot be written"):
            try:
                return obstore.put(client, key, content, mode=mode)
            except (AlreadyExistsError, PreconditionError) as error:
                raise ConflictError(key) from error

    def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is gone already is no error. Raises AwayError."""
        import obstore

        if not keys:
            return
        self.calls["delete"] += 1 + len(keys) // PAGE
        with self._told(f"{keys[0]} cannot be deleted"), suppress(FileNotFoundError):
            obstore.delete(self._quick if len(keys) == 1 else self._patient, keys)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (FileNotFoundError, ConflictError, UnchangedError):
            raise
        except (BaseError, OSError, ValueError) as error:
            if _CONFLICT.search(str(error)):
                raise ConflictError(what) from error
            raise AwayError(f"{what}: {_first_line(error)}") from error


def _etag(meta: ObjectMeta | PutResult) -> Etag:
    return Etag(meta["e_tag"], meta["version"])


def _first_line(error: Exception) -> str:
    """What the library says, without the storage's XML and the library's own structures."""
    return first_line(error).partition("<?xml")[0].strip().rstrip(":")[:300]


# ------------------------------------------------------------------------------- the connection


def _client(url: str, timeout: int, connect: int, retries: int) -> ObjectStore:
    from obstore.store import from_url

    options: dict[str, Any] = {
        "timeout": timedelta(seconds=timeout),
        "connect_timeout": timedelta(seconds=connect),
    }
    more: dict[str, Any] = {}
    if url.startswith("s3://"):
        more = _s3_options()
        options["allow_http"] = str(more.get("endpoint", "")).startswith("http://")
    retry = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=timeout),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    more |= {"client_options": options, "retry_config": retry}
    return from_url(url, **more)


def _s3_options() -> dict[str, Any]:
    """What AWS's own tools read and obstore does not: the endpoint of S3 alone, and profiles."""
    more: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        more["endpoint"] = endpoint
    named = os.environ.get("AWS_PROFILE")
    if not named and any(os.environ.get(one) for one in OWN_CREDENTIALS):
        return more
    files = [
        Path(os.environ.get(variable) or Path.home() / ".aws" / name)
        for variable, name in (
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            ("AWS_CONFIG_FILE", "config"),
        )
    ]
    if named or any(file.is_file() for file in files):
        more |= _profile()
    return more


# With one of these in the environment obstore finds credentials by itself.
OWN_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


def _profile() -> dict[str, Any]:
    """The credentials and the region of a profile: keys, single sign-on, roles to assume."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise ValueError("AWS profiles need boto3; install reasonmaxxer[cloud]") from None
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            return {}
        provider = Boto3CredentialProvider(session)
    except BotoCoreError as error:
        raise ValueError(f"the AWS profile cannot be used: {error}") from error
    region = os.environ.get("AWS_REGION") or session.region_name
    return {"credential_provider": provider} | ({"region": region} if region else {})
