"""Writing GGUF version 3, little-endian, one tensor in memory at a time.

Knows the container and its types, no models: names, metadata and storage types are the caller's. Files appear under
their name complete or not at all.
"""

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from converters.files import atomic_write
from forge_jax.quantization.ggml import GGMLType, encode, lookup

from .header import DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY, MAX_TENSOR_NAME
from .values import ARRAY, BOOL, NUMBER_CODES, STRING, TYPE_IDS, Typed, infer

TensorToWrite = tuple[str, Sequence[int], str, Callable[[], np.ndarray]]
"""(name, shape in row-major order, ggml type, function that gives the values or the packed bytes)."""

VERSION = 3


@dataclass(frozen=True)
class _Planned:
    name: str
    shape: tuple[int, ...]
    kind: GGMLType
    nbytes: int
    fetch: Callable[[], np.ndarray]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorToWrite],
) -> None:
    """Write one GGUF file.

    Metadata values are `Typed`, or plain values that get their usual type (`values.infer`). "general.alignment"
    decides the alignment. Each tensor's function is called once, in order, and what it gave is dropped after it is
    written: either uint8 of exactly the stored size, taken as packed bytes, or an array of the tensor's shape, which
    `encode` packs.

    The file grows beside `path` and replaces it when it is complete. On any failure, an interrupt included, the part
    is removed and what was at `path` stays.

    Raises:
        ValueError: metadata or tensors that GGUF cannot hold, or a function's array that does not fit its tensor.
        OSError: the disk is full or the path cannot be written.
    """
    planned = _plan(tensors)
    alignment = _alignment(metadata)
    header = _header(metadata, planned, alignment)
    size = sum(-(-nbytes // alignment) * alignment for nbytes in (len(header), *(one.nbytes for one in planned)))
    with atomic_write(Path(path), size) as file:
        file.write(header)
        _pad(file, alignment)
        for one in planned:
            file.write(_stored(one).data)
            _pad(file, alignment)


def _plan(tensors: Iterable[TensorToWrite]) -> list[_Planned]:
    """Check names, shapes and types before anything is written."""
    planned: dict[str, _Planned] = {}
    for name, shape, type_name, fetch in tensors:
        if name in planned:
            raise ValueError(f"the tensor {name!r} is given twice")
        if not 0 < len(name.encode()) <= MAX_TENSOR_NAME:
            raise ValueError(
                f"the tensor name {name!r} has {len(name.encode())} bytes, expected 1 ... {MAX_TENSOR_NAME}"
            )
        dims = tuple(int(dim) for dim in shape)
        if len(dims) > MAX_DIMS or min(dims, default=1) < 1:
            raise ValueError(
                f"the tensor {name!r} has the shape {dims}, expected up to {MAX_DIMS} dimensions of 1 or more"
            )
        kind = lookup(type_name)
        rows = int(np.prod(dims[:-1], dtype=object))
        try:
            nbytes = rows * kind.row_bytes(dims[-1] if dims else 1)
        except ValueError as error:
            raise ValueError(f"the tensor {name!r} of {dims}: {error}") from None
        planned[name] = _Planned(name, dims, kind, nbytes, fetch)
    return list(planned.values())


def _alignment(metadata: Mapping[str, Any]) -> int:
    key = "general.alignment"
    given = infer(key, metadata.get(key, DEFAULT_ALIGNMENT))
    if given.type != "uint32" or given.value <= 0 or given.value & (given.value - 1):
        raise ValueError(f"metadata {key!r} is {given.value!r} ({given.type}), expected a power of two as uint32")
    return given.value


def _header(metadata: Mapping[str, Any], planned: list[_Planned], alignment: int) -> bytes:
    chunks = [MAGIC, struct.pack("<IQQ", VERSION, len(planned), len(metadata))]
    for key, value in metadata.items():
        if not 0 < len(key.encode()) <= MAX_KEY:
            raise ValueError(f"the metadata key {key[:60]!r} has {len(key.encode())} bytes, expected 1 ... {MAX_KEY}")
        chunks += [_string(key), _value(key, infer(key, value))]
    offset = 0
    for one in planned:
        dims = tuple(reversed(one.shape))
        chunks.append(_string(one.name))
        chunks.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, one.kind.id, offset))
        offset += -(-one.nbytes // alignment) * alignment
    return b"".join(chunks)


def _string(text: str) -> bytes:
    # The reader turns bytes that are not UTF-8 into surrogates; they become the same bytes again.
    stored = text.encode(errors="surrogateescape")
    return struct.pack("<Q", len(stored)) + stored


def _value(key: str, typed: Typed) -> bytes:
    """Type ids and value of one metadata key."""
    element = typed.type.removesuffix("[]")
    id = TYPE_IDS[element]
    if element == typed.type:
        return struct.pack("<I", id) + _elements(key, element, [typed.value])
    values = typed.value.tolist() if isinstance(typed.value, np.ndarray) and id in (BOOL, STRING) else typed.value
    return struct.pack("<IIQ", ARRAY, id, len(values)) + _elements(key, element, values)


def _elements(key: str, element: str, values: Any) -> bytes:
    id = TYPE_IDS[element]
    if id in (STRING, BOOL):
        expected = str if id == STRING else (bool, np.bool_)
        wrong = next((value for value in values if not isinstance(value, expected)), None)
        if wrong is not None:
            raise ValueError(f"metadata {key!r}: found {wrong!r}, expected a {element}")
        try:
            return bytes(map(bool, values)) if id == BOOL else b"".join(map(_string, values))
        except UnicodeEncodeError as error:
            raise ValueError(f"metadata {key!r}: a string that is not Unicode text: {error}") from None
    wanted = np.dtype(NUMBER_CODES[id][1])
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in ("fiu" if wanted.kind == "f" else "iu")):
        raise ValueError(f"metadata {key!r}: found {given.dtype} of {list(given.shape)}, expected {element} values")
    with np.errstate(over="ignore"):
        stored = given.astype(wanted)
    if wanted.kind == "f":
        kept = np.isfinite(stored) | ~np.isfinite(given)
    else:
        kept = stored == given  # NumPy compares int64 with uint64 exactly
    if not kept.all():
        raise ValueError(f"metadata {key!r}: {given[~kept][0]} does not fit into {element}")
    return stored.astype(wanted.newbyteorder("<")).tobytes()


def _stored(one: _Planned) -> np.ndarray:
    """The bytes of a tensor, uint8 [nbytes], from what its function gives."""
    given = np.asarray(one.fetch())
    if given.dtype == np.uint8 and given.size == one.nbytes:
        return np.ascontiguousarray(given).reshape(-1)
    if given.shape != one.shape:
        raise ValueError(
            f"the tensor {one.name!r} is {one.kind.name} {one.shape} of {one.nbytes} bytes, "
            f"but its function gave {given.dtype} {given.shape}"
        )
    try:
        return encode(one.kind.name, np.atleast_1d(given)).reshape(-1)
    except ValueError as error:
        raise ValueError(f"the tensor {one.name!r}: {error}") from None


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
