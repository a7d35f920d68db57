"""Safetensors files, read and written without torch: headers, finite weights, merged copies.

header = read_header(path)                      # no weight is read
check_finite(path)                              # all are
write(target, {"new.name": read_tensors(path)["old.name"]})   # bytes are copied as they are
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapters.files import write_blocks

HEADER_LIMIT = 100 * 2**20  # bytes; the safetensors library's own limit
# safetensors dtype -> unsigned type of its width, its exponent's bits, and the exponent of 65536.
# From there on a number is infinite in float16. All bits are set in infinities and NaNs alone.
# bfloat16 has no type in numpy, its bits have.
_EXPONENTS: dict[str, tuple[np.dtype[Any], int, int]] = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000, (1023 + 16) << 52),
    "F32": (np.dtype("<u4"), 0x7F800000, (127 + 16) << 23),
    "F16": (np.dtype("<u2"), 0x7C00, 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80, (127 + 16) << 7),
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_PIECE = 2**22  # bytes looked at together; whole elements of every type


class Tensor(NamedTuple):
    """Where the bytes of one tensor lie."""

    file: Path
    dtype: str
    shape: list[int]
    begin: int  # from the start of the file, bytes
    end: int


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets} of a safetensors file, read without its data.

    Raises:
        ValueError: the file is not safetensors, is cut short, or its header is over 100 MB.
        OSError: it cannot be read.
    """
    header, start, size = _parse(path)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if start + end != size:
        raise ValueError(f"{path.name}: cut short or with bytes that belong to no tensor")
    return header


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> where its bytes lie. Raises as `read_header`, and where tensors overlap."""
    start = _data_start(path)
    header = read_header(path)
    tensors = {
        name: Tensor(path, entry["dtype"], entry["shape"], *(start + o for o in offsets))
        for name, entry in header.items()
        for offsets in [entry["data_offsets"]]
    }
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != at or tensor.end < tensor.begin:
            raise ValueError(f"{path.name}: {name} overlaps another tensor, or leaves a gap")
        at = tensor.end
    return tensors


def _parse(path: Path) -> tuple[dict[str, dict[str, Any]], int, int]:
    """Header, where the data starts, and the size of the file."""
    size = path.stat().st_size
    start = _data_start(path)
    if is_pointer(path):
        raise ValueError(f"{path.name}: {POINTED}")
    if not 10 <= start <= min(HEADER_LIMIT + 8, size):
        raise ValueError(f"{path.name}: not a safetensors file")
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(start - 8).decode("utf-8"))
            header.pop("__metadata__", None)
            well_formed = all(map(_is_entry, header.values()))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path.name}: not a safetensors file") from error
    if not well_formed:
        raise ValueError(f"{path.name}: not a safetensors file")
    return header, start, size


POINTED = "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"


def is_pointer(path: Path) -> bool:
    """Whether a clone without Git LFS has left a pointer in the file's place."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _data_start(path: Path) -> int:
    """Where the header ends and the data starts, as the file's first eight bytes say."""
    with path.open("rb") as file:
        prefix = file.read(8)
    return 8 + struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and _are_sizes(entry.get("shape"))
        and _are_sizes(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def read_weights(path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
    """The bytes of a safetensors file in one pass: hashed into `digest`, checked, given out.

    Raises:
        ValueError: a tensor, which is named, does not hold finite floating-point numbers; or the
            file is not safetensors.
    """
    tensors = sorted(read_tensors(path).items(), key=lambda item: item[1].begin)
    with path.open("rb") as file:
        head = file.read(_data_start(path))
    yield from _hashed(head, tensors, digest)


def merged(tensors: Mapping[str, Tensor], digest: hashlib._Hash) -> Iterator[bytes]:
    """The bytes of a new safetensors file of `tensors`, hashed and checked on the way.

    Raises:
        ValueError: as `read_weights`.
    """
    # Widest elements first, as the safetensors library does, so that all of them are aligned.
    order = sorted(tensors.items(), key=lambda item: (-_width(item[1]), item[0]))
    head = _head((name, one.dtype, one.shape, one.end - one.begin) for name, one in order)
    yield from _hashed(head, order, digest)


def write_float32(
    path: Path, shapes: Mapping[str, list[int]], array: Callable[[str], npt.NDArray[np.float32]]
) -> None:
    """Write the new file `path` of float32 tensors, one after the other.

    Args:
        array: gives the tensor of a name, in its shape.
    """
    names = sorted(shapes)
    head = _head((name, "F32", shapes[name], 4 * math.prod(shapes[name])) for name in names)
    blocks = (np.ascontiguousarray(array(name), "<f4").tobytes() for name in names)
    write_blocks(path, chain([head], blocks), 0o644)


def _head(entries: Iterable[tuple[str, str, list[int], int]]) -> bytes:
    """What stands before the data: the entries are name, dtype, shape and number of bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _hashed(
    head: bytes, tensors: Iterable[tuple[str, Tensor]], digest: hashlib._Hash
) -> Iterator[bytes]:
    """`head`, then the checked bytes of `tensors`, each hashed into `digest` on its way."""
    digest.update(head)
    yield head
    for name, tensor in tensors:
        for block in _checked(name, tensor):
            digest.update(block)
            yield block


def _checked(name: str, tensor: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor, piece by piece.

    Raises:
        ValueError: they are not finite floating-point numbers, or not as many as its shape says.
    """
    file = tensor.file.name
    if tensor.dtype not in _EXPONENTS:
        raise ValueError(
            f"{file}: {name} is {tensor.dtype}; save it as one of {', '.join(_EXPONENTS)}"
        )
    dtype, exponent, limit = _EXPONENTS[tensor.dtype]
    if tensor.end - tensor.begin != math.prod(tensor.shape) * dtype.itemsize:
        raise ValueError(f"{file}: {name} has not as many bytes as its shape says")
    if tensor.end == tensor.begin:
        raise ValueError(f"{file}: {name} is empty")
    with tensor.file.open("rb") as opened:
        opened.seek(tensor.begin)
        for start in range(tensor.begin, tensor.end, _PIECE):
            size = min(_PIECE, tensor.end - start)
            block = opened.read(size)
            if len(block) < size:
                raise ValueError(f"{file}: cut short while it was read")
            bits = np.frombuffer(block, dtype)
            if bool(((bits & exponent) >= limit).any()):
                raise ValueError(_unusable(file, name, bits, exponent))
            yield block


def _unusable(file: str, name: str, bits: npt.NDArray[Any], exponent: int) -> str:
    """What is wrong with the numbers of a tensor, in words."""
    if bool(((bits & exponent) == exponent).any()):
        return f"{file}: {name} holds numbers that are NaN or infinite"
    return (
        f"{file}: {name} holds numbers of 65536 or more, which are infinite in float16; its "
        "training has diverged, or the file is damaged"
    )


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, as float32; False for other shapes and kinds."""
    if one.shape != other.shape or {one.dtype, other.dtype} - set(_EXPONENTS):
        return False
    count = math.prod(one.shape)
    first, second = _as_floats(one, count), _as_floats(other, count)
    for start in range(0, count, _PIECE):
        slices = (first(start, start + _PIECE), second(start, start + _PIECE))
        if not np.array_equal(*slices):
            return False
    return True


def as_float32(tensor: Tensor) -> npt.NDArray[np.float32]:
    """The numbers of a tensor, in its shape."""
    count = math.prod(tensor.shape)
    return _as_floats(tensor, count)(0, count).reshape(tensor.shape)


def _as_floats(tensor: Tensor, count: int) -> Callable[[int, int], npt.NDArray[np.float32]]:
    """A function that gives elements [start, stop) of a tensor as float32."""
    bits = np.memmap(
        tensor.file, _EXPONENTS[tensor.dtype][0], mode="r", offset=tensor.begin, shape=(count,)
    )

    def read(start: int, stop: int) -> npt.NDArray[np.float32]:
        piece = np.ascontiguousarray(bits[start:stop])
        if tensor.dtype == "BF16":
            return (piece.astype("<u4") << 16).view("<f4")
        return piece.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[tensor.dtype]).astype("<f4")

    return read


def _width(tensor: Tensor) -> int:
    return max(1, (tensor.end - tensor.begin) // max(1, math.prod(tensor.shape)))
