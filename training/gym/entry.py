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
    """The entry that `encode_entry` stored."""
    entry: dict[str, Any] = _decode(json.loads(text))
    return entry


def _encode(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _encode(one) for key, one in value.items()}
        return {_TAG: "dict", "of": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if type(value) is list:
        return [_encode(one) for one in value]
    if isinstance(value, tuple | set | frozenset | list):
        name = next(kind.__name__ for kind in (tuple, frozenset, set, list)
                    if isinstance(value, kind))  # fmt: skip
        return {_TAG: name, "of": [_encode(one) for one in value]}
    if isinstance(value, Fraction):
        return {_TAG: "fraction", "of": str(value)}
    if isinstance(value, str):  # numpy's, or an enumeration's
        return str.__str__(value)
    if hasattr(value, "tolist"):  # numpy
        return _encode(value.tolist())
    raise ValueError(f"a {type(value).__name__} cannot be stored")


_MADE = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "list": list,
    "dict": dict,
}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decode(one) for key, one in value.items()}
    if value[_TAG] == "fraction":
        return Fraction(value["of"])
    return _MADE[value[_TAG]](_decode(value["of"]))
