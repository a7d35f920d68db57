"""How an entry, a generator's own record of one problem, is stored as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_TAG = "__type__"


def encode_entry(entry: Mapping[str, Any]) -> str:
    """An entry as JSON that `decode_entry` turns into the same Python objects.

    Graders tell a tuple from a list and look things up by numbers, so JSON alone would change what
    they decide. Raises ValueError on a type that cannot be stored.
    """
    return json.dumps(_encode(entry), ensure_ascii=False)


def decode_entry(text: str) -> dict[str, Any]:
    """Read back the entry that `encode_entry` stored."""
    entry: dict[str, Any] = _decode(json.loads(text))
    return entry


def _encode(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_encode(one) for one in value]
    if type(value) is dict and _TAG not in value and all(type(key) is str for key in value):
        return {key: _encode(one) for key, one in value.items()}
    return _tagged(value)


_KINDS = {kind.__name__: kind for kind in (tuple, frozenset, set, list, dict)}


def _tagged(value: Any) -> Any:
    """A value of a type that JSON does not have, with the type's name."""
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            parts = value.items() if isinstance(value, dict) else value
            return {_TAG: name, "of": [_encode(one) for one in parts]}
    if isinstance(value, Fraction):
        return {_TAG: "fraction", "of": str(value)}
    if isinstance(value, str):  # numpy's, or an enumeration's
        return str.__str__(value)
    if hasattr(value, "tolist"):  # numpy
        return _encode(value.tolist())
    raise ValueError(f"a {type(value).__name__} cannot be stored")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decode(one) for key, one in value.items()}
    parts = value["of"]
    if value[_TAG] == "fraction":
        return Fraction(parts)
    return _KINDS[value[_TAG]](_decode(parts))
