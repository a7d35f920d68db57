"""JSON objects that hold each key once. `json.loads` alone keeps the last of two, and says nothing.

json.loads(text, object_pairs_hook=unique_keys)
"""

from __future__ import annotations

from typing import Any


class DuplicateKeyError(ValueError):
    """The message names the key."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these keys and values.

    Raises:
        DuplicateKeyError: a key is there twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKeyError(f"the key {twice[:100]!a} is there twice")
    return value
