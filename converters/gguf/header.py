"""The header of one GGUF file: counts, metadata, tensor descriptions. Knows bytes, not models.

Everything a header claims is checked against what is left of the file before anything is allocated for it, and the
Python objects that are built stay below twice the size of the file plus a constant.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from sys import getsizeof
from typing import Any, Literal

import numpy as np

from forge_jax.quantization.ggml import REMOVED_TYPES, TYPES_BY_ID, GGMLType

from ..source import TensorInfo
from .values import ARRAY, BOOL, NUMBER_CODES, STRING, TYPE_IDS

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_TENSOR_NAME = 63  # GGML_MAX_NAME counts the closing zero
MAX_KEY = 65535
WINDOW = 1 << 20
ALLOWANCE = 48 << 20
KEY_COST, TENSOR_COST = 400, 1200  # bytes of Python objects for one key or tensor, generously


@dataclass(frozen=True)
class Entry:
    """A tensor and where its bytes start in its file."""

    info: TensorInfo
    kind: GGMLType
    offset: int


@dataclass(frozen=True)
class Header:
    """What one file says about itself. `types` names the stored type of each metadata value."""

    version: int
    big_endian: bool
    metadata: dict[str, Any]
    types: dict[str, str]
    entries: dict[str, Entry]


class Cursor:
    """A bounds-checked reader of one file, from the start on, through a window of about a megabyte."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self.path = path
        self.size = file.seek(0, io.SEEK_END)
        self.order: Literal["<", ">"] = "<"
        self.count_code = "Q"  # version 1 counts in 32 bits
        self._file = file
        self._data = b""
        self._at = 0
        self._base = 0
        self._budget = 2 * self.size + ALLOWANCE

    @property
    def offset(self) -> int:
        return self._base + self._at

    def error(self, message: str, offset: int | None = None) -> ValueError:
        return ValueError(f"{self.path}: at byte {self.offset if offset is None else offset}: {message}")

    def charge(self, nbytes: int) -> None:
        """Account for memory that the result will hold."""
        self._budget -= nbytes
        if self._budget < 0:
            raise self.error(f"the header would take over {2 * self.size + ALLOWANCE} bytes of memory")

    def require(self, nbytes: int, what: str) -> None:
        """Have the next bytes in the window, or fail before anything is read."""
        if len(self._data) - self._at >= nbytes:
            return
        left = self.size - self.offset
        if nbytes > left:
            raise self.error(f"{what} takes {nbytes} bytes, but {left} are left in the file")
        self._base += self._at
        kept = self._data[self._at :]
        self._at = 0
        self._file.seek(self._base + len(kept))
        self._data = kept + read_exactly(self._file, min(max(nbytes, WINDOW), left) - len(kept), self.path).tobytes()

    def take(self, nbytes: int, what: str) -> bytes:
        self.require(nbytes, what)
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(self.order + code, self.take(struct.calcsize(self.order + code), what))[0]

    def scalar(self, code: str, what: str) -> Any:
        """A number of a NumPy type, as a plain Python one."""
        dtype = np.dtype(code).newbyteorder(self.order)
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def count(self, what: str, item_bytes: int) -> int:
        """A count of items that take at least `item_bytes` each."""
        start = self.offset
        count = self.number(self.count_code, what)
        left = self.size - self.offset
        if count * item_bytes > left:
            raise self.error(
                f"{what} is {count}, which needs at least {count * item_bytes} bytes, but {left} are left", start
            )
        return count

    def name(self, what: str, longest: int) -> str:
        """A key or a tensor's name."""
        start = self.offset
        length = self.count(f"the length of {what}", 1)
        if length > longest:
            raise self.error(f"{what} has {length} bytes, expected at most {longest}", start)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error}", start) from None

    def text(self, what: str) -> str:
        """A string value. Bytes that are not UTF-8 become surrogates, so that writing gives the same bytes."""
        length = self.count(f"the length of {what}", 1)
        if length <= WINDOW:
            value = self.take(length, what).decode(errors="surrogateescape")
            self.charge(getsizeof(value))
            return value
        stored = self.numbers("u1", length, what)
        widest = stored.max()
        self.charge(length * (4 if widest >= 0xF0 else 2 if widest >= 0x80 else 1))
        return str(stored.data, "utf-8", "surrogateescape")

    def texts(self, count: int, what: str) -> list[str]:
        """An array of strings: one pass over the window, refilled when a string reaches beyond it."""
        result: list[str] = []
        length_of = struct.Struct(self.order + self.count_code)
        width = length_of.size
        while len(result) < count:
            data, at, done = self._data, self._at, len(result)
            end = len(data)
            for _ in range(count - done):
                start = at + width
                if start > end:
                    break
                stop = start + length_of.unpack_from(data, at)[0]
                if stop > end:
                    break
                result.append(data[start:stop].decode(errors="surrogateescape"))
                at = stop
            self._at = at
            self.charge(sum(map(getsizeof, result[done:])) + 9 * (len(result) - done))
            if len(result) < count:
                result.append(self.text(f"element {len(result)} of {what}"))
        return result

    def numbers(self, code: str, count: int, what: str) -> np.ndarray:
        """An array of numbers; a long one is read straight into its own memory."""
        dtype = np.dtype(code)
        nbytes = count * dtype.itemsize
        left = self.size - self.offset
        if nbytes > left:
            raise self.error(f"{what} takes {nbytes} bytes, but {left} are left in the file")
        self.charge(nbytes)
        if nbytes <= WINDOW:
            stored = np.frombuffer(bytearray(self.take(nbytes, what)), np.uint8)
        else:
            start = self.offset
            self._file.seek(start)
            stored = read_exactly(self._file, nbytes, self.path)
            self._base, self._data, self._at = start + nbytes, b"", 0
        return stored.view(dtype.newbyteorder(self.order)).astype(dtype, copy=False)


def read_exactly(file: io.FileIO, nbytes: int, path: Path) -> np.ndarray:
    """The next bytes of an unbuffered file as a fresh uint8 array.

    Raises:
        ValueError: the file ends before that (it was truncated after its size was taken).
    """
    result = np.empty(nbytes, np.uint8)
    view, done = result.data, 0
    while done < nbytes:
        got = file.readinto(view[done:])
        if not got:
            raise ValueError(f"{path}: the file ended after {done} of {nbytes} bytes at {file.tell() - done}")
        done += got
    return result


def read_header(file: io.FileIO, path: Path) -> Header:
    """Parse and check the header of an open file.

    Raises:
        ValueError: the file is not GGUF, or any statement in it is impossible; with offset, finding and expectation.
    """
    cursor = Cursor(file, path)
    version, big_endian = _preamble(cursor)
    tensor_count = cursor.count("the number of tensors", 24 if version > 1 else 20)
    key_count = cursor.count("the number of metadata keys", 13 if version > 1 else 9)
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    for _ in range(key_count):
        start = cursor.offset
        key = cursor.name("a metadata key", MAX_KEY)
        if key in metadata:
            raise cursor.error(f"the metadata key {key!r} appears twice", start)
        cursor.charge(KEY_COST)
        types[key], metadata[key] = _value(cursor, key)
    alignment = _alignment(cursor, metadata, types)
    described = [_tensor(cursor, big_endian) for _ in range(tensor_count)]
    return Header(version, big_endian, metadata, types, _place(cursor, described, alignment))


def _preamble(cursor: Cursor) -> tuple[int, bool]:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        raise cursor.error(f"found {magic!r}, expected {MAGIC!r}: this is not a GGUF file", 0)
    version = cursor.number("I", "the version")
    if big_endian := version & 0xFFFF == 0:
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        cursor.order = ">"
    if version not in (1, 2, 3):
        raise cursor.error(f"found GGUF version {version}, expected 1, 2 or 3", 4)
    if version == 1:
        cursor.count_code = "I"
    return version, big_endian


def _value(cursor: Cursor, key: str) -> tuple[str, Any]:
    """The type and the value of one metadata key."""
    start = cursor.offset
    what = f"the value of {key!r}"
    id = cursor.number("I", f"the type of {key!r}")
    if id in NUMBER_CODES:
        name, code = NUMBER_CODES[id]
        return name, cursor.scalar(code, what)
    if id == STRING:
        return "string", cursor.text(what)
    if id == BOOL:
        return "bool", bool(_booleans(cursor, 1, what)[0])
    if id != ARRAY:
        raise cursor.error(f"{key!r} has the value type {id}, expected 0 ... 12", start)
    id = cursor.number("I", f"the element type of {key!r}")
    if id not in TYPE_IDS.values():
        raise cursor.error(
            f"{key!r} is an array of the type {id}, expected a type 0 ... 12 that is no array", start + 4
        )
    number_of = f"the number of elements of {key!r}"
    if id == STRING:
        return "string[]", cursor.texts(cursor.count(number_of, struct.calcsize(f"={cursor.count_code}")), repr(key))
    if id == BOOL:
        return "bool[]", _booleans(cursor, cursor.count(number_of, 1), what)
    name, code = NUMBER_CODES[id]
    return f"{name}[]", cursor.numbers(code, cursor.count(number_of, np.dtype(code).itemsize), what)


def _booleans(cursor: Cursor, count: int, what: str) -> np.ndarray:
    start = cursor.offset
    values = cursor.numbers("u1", count, what)
    if count and values.max() > 1:
        raise cursor.error(f"{what} holds a boolean of {values.max()}, expected 0 or 1", start)
    return values.view(np.bool_)


def _alignment(cursor: Cursor, metadata: dict[str, Any], types: dict[str, str]) -> int:
    key = "general.alignment"
    value = metadata.get(key, DEFAULT_ALIGNMENT)
    if types.get(key, "uint32") != "uint32" or value == 0 or value & (value - 1):
        raise cursor.error(f"{key!r} is {value!r} ({types[key]}), expected a power of two stored as uint32")
    return value


@dataclass(frozen=True)
class _Described:
    name: str
    shape: tuple[int, ...]
    kind: GGMLType
    nbytes: int
    relative: int
    at: int


def _tensor(cursor: Cursor, big_endian: bool) -> _Described:
    """One tensor description: name, dimensions, type, offset; checked in itself."""
    start = cursor.offset
    cursor.charge(TENSOR_COST)
    name = cursor.name("a tensor's name", MAX_TENSOR_NAME)
    rank = cursor.number("I", f"the number of dimensions of {name!r}")
    if rank > MAX_DIMS:
        raise cursor.error(f"the tensor {name!r} has {rank} dimensions, expected at most {MAX_DIMS}", start)
    dims = [cursor.number(cursor.count_code, f"dimension {i} of {name!r}") for i in range(rank)]
    id = cursor.number("I", f"the type of {name!r}")
    relative = cursor.number("Q", f"the offset of {name!r}")
    kind = TYPES_BY_ID.get(id)
    if kind is None:
        removed = f" ({REMOVED_TYPES[id]}, removed from ggml: requantise the model)" if id in REMOVED_TYPES else ""
        raise cursor.error(f"the tensor {name!r} has the ggml type {id}{removed}, which is not known", start)
    if big_endian and not kind.byte_order:
        raise cursor.error(f"the tensor {name!r} is {kind.name}, which has no defined big-endian layout", start)
    elements = 1
    for dim in dims:
        elements *= dim
    if not 0 < elements < 1 << 63:
        raise cursor.error(f"the tensor {name!r} of {dims} has {elements} elements, expected 1 ... 2^63 - 1", start)
    columns = dims[0] if dims else 1
    try:
        nbytes = elements // columns * kind.row_bytes(columns)
    except ValueError as error:
        raise cursor.error(f"the tensor {name!r} of {dims}: {error}", start) from None
    return _Described(name, tuple(reversed(dims)), kind, nbytes, relative, start)


def _place(cursor: Cursor, described: list[_Described], alignment: int) -> dict[str, Entry]:
    """Absolute offsets, checked against the file and against each other."""
    data = -(-cursor.offset // alignment) * alignment
    entries: dict[str, Entry] = {}
    for one in described:
        if one.name in entries:
            raise cursor.error(f"the tensor {one.name!r} appears twice", one.at)
        if one.relative % alignment:
            raise cursor.error(
                f"the tensor {one.name!r} has the offset {one.relative}, expected a multiple of {alignment}", one.at
            )
        offset = data + one.relative
        if offset + one.nbytes > cursor.size:
            raise cursor.error(
                f"the tensor {one.name!r} takes the bytes {offset} ... {offset + one.nbytes}, "
                f"but the file has {cursor.size}: it is truncated or its header is wrong",
                one.at,
            )
        info = TensorInfo(one.name, one.shape, one.kind.name, one.nbytes, cursor.path)
        entries[one.name] = Entry(info, one.kind, offset)
    ordered = sorted(entries.values(), key=lambda entry: entry.offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.info.nbytes > after.offset:
            raise cursor.error(
                f"the tensors {before.info.name!r} and {after.info.name!r} overlap: the first ends at byte "
                f"{before.offset + before.info.nbytes}, the second starts at {after.offset}"
            )
    return entries
