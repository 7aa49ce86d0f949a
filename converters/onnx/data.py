"""The values of stored tensors: types, places in the file or in files beside it, and bytes to numbers.

A file beside must lie in the model's directory, and a place in it inside the file. Format: onnx.proto, TensorProto.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import ml_dtypes
import numpy as np

from converters.files import BoundedFile, quote, typed
from converters.onnx.messages import Tensor
from converters.onnx.wire import LONGEST_VARINT, Window, varints

LARGEST = 1 << 48  # numbers of a tensor, also of one that has none along an axis


@dataclass(frozen=True)
class Kind:
    """A type of values: its name, what NumPy calls it, and how many bits a value takes."""

    name: str
    dtype: np.dtype
    bits: int


def kind(name: str, dtype: type, bits: int = 0) -> Kind:
    """A type that NumPy knows; values of less than 8 bits become whole bytes."""
    return Kind(name, np.dtype(dtype), bits or 8 * np.dtype(dtype).itemsize)


KINDS = {
    1: kind("F32", np.float32),
    2: kind("U8", np.uint8),
    3: kind("I8", np.int8),
    4: kind("U16", np.uint16),
    5: kind("I16", np.int16),
    6: kind("I32", np.int32),
    7: kind("I64", np.int64),
    9: kind("BOOL", np.bool_),
    10: kind("F16", np.float16),
    11: kind("F64", np.float64),
    12: kind("U32", np.uint32),
    13: kind("U64", np.uint64),
    16: kind("BF16", ml_dtypes.bfloat16),
    17: kind("F8_E4M3", ml_dtypes.float8_e4m3fn),
    18: kind("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
    19: kind("F8_E5M2", ml_dtypes.float8_e5m2),
    20: kind("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    21: kind("U4", np.uint8, 4),
    22: kind("I4", np.int8, 4),
    24: kind("F8_E8M0", ml_dtypes.float8_e8m0fnu),
    25: kind("U2", np.uint8, 2),
    26: kind("I2", np.int8, 2),
}
"""The types of onnx.proto that a weight or its scale can have, by number."""
INTEGERS = ("U8", "I8", "U16", "I16", "I32", "U4", "I4", "U2", "I2")
FLOATS = ("F32", "F16", "BF16", "F64")
OTHERS = {8: "strings", 14: "complex numbers", 15: "complex numbers", 23: "4-bit floats"}


@dataclass(frozen=True)
class Place:
    """Where the bytes of a tensor lie: `file` is None for the model's own."""

    kind: Kind
    packed: str
    spans: tuple[tuple[int, int], ...]
    file: Path | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return sum(end - begin for begin, end in self.spans)


class Store:
    """The tensors of a model and its files beside."""

    def __init__(self, window: Window) -> None:
        self.window, self.path = window, window.path
        self.beside: dict[str, BoundedFile] = {}

    def locate(self, tensor: Tensor) -> Place:
        """Where a tensor is, checked against its shape and the size of its file.

        Raises:
            ValueError: a type that is not known, or bytes that are not those of the shape.
            FileNotFoundError: the file that it names is not there.
        """
        where = f"{self.path}: tensor {quote(tensor.name)}"
        if tensor.kind not in KINDS:
            found = OTHERS.get(tensor.kind, f"type {tensor.kind}")
            raise ValueError(f"{where} holds {found}; expected numbers of a type that weights have")
        found = KINDS[tensor.kind]
        size = math.prod(tensor.shape)
        if math.prod(max(axis, 1) for axis in tensor.shape) > LARGEST:
            raise ValueError(f"{where} has shape {list(tensor.shape)}, which is larger than any file")
        nbytes = -(-size * found.bits // 8)
        if tensor.external is not None:
            return self.locate_beside(tensor, found, nbytes, where)
        place = Place(found, tensor.packed, tensor.places)
        count = items(found, size)
        least, most = (nbytes, nbytes) if tensor.packed == "raw" else (count, LONGEST_VARINT * count)
        if not least <= place.nbytes <= most:
            raise ValueError(f"{where} is {list(tensor.shape)} {found.name}, which {place.nbytes} bytes cannot be")
        return place

    def locate_beside(self, tensor: Tensor, found: Kind, nbytes: int, where: str) -> Place:
        """Where a tensor is in another file."""
        stored = tensor.external or {}
        if tensor.places:
            raise ValueError(f"{where} is stored here and in another file")
        file = self.open_beside(stored.get("location", ""), where)
        begin, length = (
            number(stored.get(key, default), key, where) for key, default in (("offset", "0"), ("length", str(nbytes)))
        )
        if length != nbytes:
            raise ValueError(f"{where} is {list(tensor.shape)} {found.name}, {nbytes} bytes; its length is {length}")
        if begin + length > file.size:
            raise ValueError(
                f"{where} ends at byte {begin + length} of {file.path.name}, which has {file.size}; "
                "its download was interrupted"
            )
        return Place(found, "raw", ((begin, begin + length),), file.path)

    def open_beside(self, location: str, where: str) -> BoundedFile:
        """A file that a tensor names, opened once.

        Raises:
            ValueError: it is not in the model's directory, or a link leads out of it.
            FileNotFoundError: it is not there.
        """
        if location in self.beside:
            return self.beside[location]
        parts = PurePosixPath(location).parts
        if not parts or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
            raise ValueError(f"{where} names the file {quote(location)}; expected one in the model's directory")
        path = self.path.parent / location
        # a download cache keeps every file of a model as a link to where all of them lie
        homes = {self.path.parent.resolve(), self.path.resolve().parent}
        if not homes & set(path.resolve().parents):
            raise ValueError(f"{where} names the file {quote(location)}, a link out of the model's directory")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; {where} is in it. Put it beside {self.path.name}")
        self.beside[location] = BoundedFile(path)
        return self.beside[location]

    def raw(self, place: Place) -> np.ndarray:
        """The stored bytes, uint8."""
        file = self.window.file
        if place.file is not None:
            file = next(one for one in self.beside.values() if one.path == place.file)
        pieces = [file.read_array(begin, end - begin) for begin, end in place.spans]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])

    def refuse_overlaps(self, places: Iterable[Place]) -> None:
        """Check that no two tensors share a part of a file; the same tensor twice is allowed.

        Raises:
            ValueError: two do.
        """
        last: tuple[str, int, int] = ("", 0, 0)
        for file, begin, end in sorted((str(p.file), *s) for p in places if p.file for s in p.spans if s[0] < s[1]):
            if file == last[0] and begin < last[2] and (begin, end) != last[1:]:
                raise ValueError(f"{file}: two tensors overlap at byte {begin}; the model is damaged or forged")
            last = (file, begin, end)

    def close(self) -> None:
        """Close all files."""
        self.window.close()
        for file in self.beside.values():
            file.close()


def number(text: str, key: str, where: str) -> int:
    """A count of bytes that is written as text; ValueError if it is none."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"{where}: {key} of its external data is {quote(text)}, expected a number of bytes")
    return int(text)


def items(found: Kind, size: int) -> int:
    """How many numbers stand for `size` values where each is a varint; those of less than 8 bits share bytes."""
    return -(-size * found.bits // 8) if found.bits < 8 else size


def decode(raw: np.ndarray, place: Place, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The values of a tensor from its bytes; those of 4 or 2 bits as bytes.

    Raises:
        ValueError: the bytes are no such values.
    """
    found, size = place.kind, math.prod(shape)
    if place.packed == "varint":
        raw = from_varints(raw, found, items(found, size), where)
    if found.bits < 8:
        return unpack(raw, found.bits, size, found.dtype).reshape(shape)
    return typed(raw, found.dtype, where).reshape(shape)


def from_varints(raw: np.ndarray, found: Kind, count: int, where: str) -> np.ndarray:
    """The bytes of `count` numbers that are stored as varints; floats of 1 or 2 bytes by their bits."""
    try:
        values = varints(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if values.size != count:
        raise ValueError(f"{where} holds {values.size} numbers, expected {count}")
    whole = np.dtype(f"u{found.dtype.itemsize}") if found.dtype.kind not in "iub" else found.dtype
    whole = np.dtype(np.uint8) if found.dtype == np.bool_ or found.bits < 8 else whole
    out = values.astype(whole)
    if not np.array_equal(out.astype(np.int64), values):
        raise ValueError(f"{where} is {found.name} and holds numbers beyond its range")
    return out.view(np.uint8)


def unpack(raw: np.ndarray, bits: int, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` integers of 2 or 4 bits, the lowest bits of a byte first; as signed ones if `dtype` is."""
    per = 8 // bits
    values = np.stack([raw >> bits * i & (2**bits - 1) for i in range(per)], -1).reshape(-1)[:count]
    if dtype.kind == "u":
        return values
    half = 1 << bits - 1
    return ((values ^ half).astype(np.int16) - half).astype(np.int8)
