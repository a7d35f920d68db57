"""NAME and NAME@HASH: the one place that reads them.

`NAME` is an alias, which may point elsewhere tomorrow; `NAME@HASH` is one content for ever. Nothing
else is ever joined to a store's path.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from adapters.manifest import is_name

HASH_LENGTH = 12
_HASH = re.compile(rf"[0-9a-f]{{{HASH_LENGTH}}}")


def is_hash(text: str) -> bool:
    """Whether `text` is the HASH of a version: twelve lower-case hexadecimal digits."""
    return _HASH.fullmatch(text) is not None


class Reference(NamedTuple):
    """A name, and the hash of one version where one is meant."""

    name: str
    hash: str | None = None

    def __str__(self) -> str:
        return self.name if self.hash is None else f"{self.name}@{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference that `text` writes; `str` of it is `text` again.

        Raises:
            ValueError: anything but a name, or a name, one '@' and a hash.
        """
        name, at, digest = text.partition("@")
        if not is_name(name) or (at and not is_hash(digest)):
            raise ValueError(
                f"{text[:100]!r} is neither NAME nor NAME@HASH: a name is up to 64 lower-case "
                f"letters, digits, . _ - without '..', a hash is {HASH_LENGTH} hexadecimal digits"
            )
        return cls(name, digest if at else None)

    @classmethod
    def parse_version(cls, text: str) -> Reference:
        """As `parse`, for NAME@HASH alone. Raises ValueError."""
        reference = cls.parse(text)
        if reference.hash is None:
            raise ValueError(f"{text!r} is a name; a version is written NAME@HASH")
        return reference
