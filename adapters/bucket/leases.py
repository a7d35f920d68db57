"""Who uses a version, for machines that share nothing but the bucket.

Each process keeps one object, `leases/ID.json`, that names all it uses. It is written before a
version is used and renewed while the process lives. It ends five minutes after its last renewal by
the storage's own clock, so clocks of machines may differ as they like. A version that is let go is
named until the next renewal, which is safe.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from contextlib import suppress
from datetime import datetime
from types import TracebackType

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.bucket.objects import AwayError, Objects
from adapters.lease import Lease
from adapters.moves import Version, whoami
from adapters.reference import Reference

logger = logging.getLogger(__name__)

LEASES = "leases"
SECONDS = 300.0  # that a lease holds without renewal
RENEWAL = 60.0  # seconds between two


class Holder(BaseModel):
    """A process, and the versions it uses."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    by: str = Field("", max_length=200)
    seconds: float = Field(SECONDS, gt=0, le=86400)
    versions: list[Version] = []


class Leases:
    """Those of this process, and a look at everybody's. From any thread."""

    def __init__(self, objects: Objects, renewal: float = RENEWAL) -> None:
        self._objects = objects
        self._renewal = renewal
        self._key = f"{LEASES}/{secrets.token_hex(8)}.json"
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()  # of what is held, and of the thread
        self._writing = threading.Lock()  # so that the newest is written last
        self._written: frozenset[str] = frozenset()
        self._begun = False  # there may be an object
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def count(self, reference: Reference) -> None:
        """A version is used once more; each call needs one `release`.

        The lease names it from the next renewal on, or from `write` on.
        """
        with self._lock:
            self._held[str(reference)] += 1
            if self._thread is None:
                self._over = threading.Event()
                self._thread = threading.Thread(
                    target=self._keep_renewing, args=(self._over,), name="leases", daemon=True
                )
                self._thread.start()

    def write(self, reference: Reference) -> None:
        """Have the lease name a version that was counted. Raises AwayError."""
        with self._writing:  # `release` may just be deleting what was written
            if str(reference) not in self._written:
                self._write()

    def release(self, reference: Reference) -> None:
        """It is used once less. With the last one the lease goes, which asks the network."""
        with self._lock:
            self._held[str(reference)] -= 1
            self._held = +self._held
            if self._held or self._thread is None:
                return
            self._over.set()
            self._thread = None
        with self._writing, suppress(AwayError):  # it would run out by itself
            if not self._held and self._begun:
                self._begun, self._written = False, frozenset()
                self._objects.delete([self._key])

    def renew(self) -> None:
        """Write the lease as it is now, for another five minutes. Raises AwayError."""
        with self._writing:
            self._write()

    def _write(self) -> None:
        """The same, for a caller whose turn it is."""
        with self._lock:
            held = frozenset(self._held)
        if not held:
            return
        content = Holder(by=whoami(), versions=sorted(held)).model_dump_json().encode()
        self._begun = True
        self._objects.put(self._key, content)
        self._written = held

    def _keep_renewing(self, over: threading.Event) -> None:
        while not over.wait(self._renewal):
            try:
                self.renew()
            except AwayError as error:
                self._written = frozenset()
                logger.warning("the lease of what is served could not be renewed: %s", error)

    def everybodys(self, now: datetime) -> set[str]:
        """Every version that somebody uses.

        Args:
            now: by the storage's clock.

        Raises:
            AwayError: the storage cannot be reached.
            ValueError: a lease cannot be read, so it might name anything.
        """
        found: set[str] = set()
        for entry in self._objects.under(LEASES):
            lease = self._objects.get(entry.key)
            if lease is None:
                continue
            try:
                holder = Holder.model_validate_json(lease.content)
            except ValidationError as error:
                if (now - lease.modified).total_seconds() > 10 * SECONDS:
                    continue
                raise ValueError(f"{entry.key} is no lease; delete it") from error
            if (now - lease.modified).total_seconds() <= holder.seconds:
                found.update(holder.versions)
        return found

    def sweep(self, now: datetime) -> None:
        """Delete leases that ran out long ago. Raises AwayError."""
        old = [
            entry.key
            for entry in self._objects.under(LEASES)
            if (now - entry.modified).total_seconds() > 10 * SECONDS
        ]
        self._objects.delete(old)


class BucketLease(Lease):
    """A version held in the bucket, and in this machine's cache."""

    def __init__(self, here: Lease, leases: Leases, reference: Reference) -> None:
        super().__init__(None)
        self._here = here
        self._leases: Leases | None = leases
        self._reference = reference

    def close(self) -> None:
        """Let go; a second call does nothing."""
        leases, self._leases = self._leases, None
        if leases is not None:
            self._here.close()
            leases.release(self._reference)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
