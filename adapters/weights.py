"""Are an adapter's weights numbers? Read from the file piece by piece, whatever their type."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import safetensors_header

# safetensors dtype -> unsigned type of its width, and its exponent's bits: all of them are set in
# infinities and NaNs, and in nothing else. bfloat16 has no type in numpy, its bits have.
_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
_PIECE = 2**22  # elements looked at together


def check_finite(path: Path) -> None:
    """Raise ValueError, naming the tensor, unless `path` holds finite floating-point numbers."""
    header = safetensors_header(path)
    with path.open("rb") as file:
        data = 8 + struct.unpack("<Q", file.read(8))[0]
    for name, entry in header.items():
        if entry["dtype"] not in _EXPONENTS:
            raise ValueError(
                f"{path.name}: {name} is {entry['dtype']}; save it as one of "
                f"{', '.join(_EXPONENTS)}"
            )
        dtype, exponent = _EXPONENTS[entry["dtype"]]
        begin, end = entry["data_offsets"]
        count = math.prod(entry["shape"])
        if begin < 0 or end - begin != count * dtype.itemsize:
            raise ValueError(f"{path.name}: {name} has not as many bytes as its shape says")
        if count == 0:
            raise ValueError(f"{path.name}: {name} is empty")
        bits = np.memmap(path, dtype, mode="r", offset=data + begin, shape=(count,))
        for start in range(0, count, _PIECE):
            piece = bits[start : start + _PIECE]
            if bool(((piece & exponent) == exponent).any()):
                raise ValueError(f"{path.name}: {name} holds numbers that are NaN or infinite")
