"""Reads and writes safetensors files: one, or a set of shards with its index. No architecture is known here.

The header is parsed and checked completely before any tensor is read; tensors are then read one at a time into
memory of their own, and written one at a time, so that the peak is one tensor.
Layout: https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from converters.files import BoundedFile, atomic_write, parse_json, quote, typed
from converters.shards import Shards, find_shards, read_index
from converters.source import TensorInfo

MAX_HEADER_BYTES = 100_000_000  # as in the reference implementation
MAX_DIMS = 64  # NumPy's limit

# In the order in which the reference implementation lays out a file: last to first. Packed types come with no dtype.
_DTYPES: dict[str, tuple[int, np.dtype | None]] = {
    "BOOL": (8, np.dtype(np.bool_)),
    "F4": (4, np.dtype(ml_dtypes.float4_e2m1fn)),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, np.dtype(np.uint8)),
    "I8": (8, np.dtype(np.int8)),
    "F8_E5M2": (8, np.dtype(ml_dtypes.float8_e5m2)),
    "F8_E4M3": (8, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E8M0": (8, np.dtype(ml_dtypes.float8_e8m0fnu)),
    "F8_E4M3FNUZ": (8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "F8_E5M2FNUZ": (8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    "I16": (16, np.dtype(np.int16)),
    "U16": (16, np.dtype(np.uint16)),
    "F16": (16, np.dtype(np.float16)),
    "BF16": (16, np.dtype(ml_dtypes.bfloat16)),
    "I32": (32, np.dtype(np.int32)),
    "U32": (32, np.dtype(np.uint32)),
    "F32": (32, np.dtype(np.float32)),
    "C64": (64, np.dtype(np.complex64)),
    "F64": (64, np.dtype(np.float64)),
    "I64": (64, np.dtype(np.int64)),
    "U64": (64, np.dtype(np.uint64)),
}


class Entry(NamedTuple):
    """One tensor to be written: `read` is called once, when its turn comes, and gives `shape` values of `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """A safetensors name, such as "BF16"."""
    read: Callable[[], np.ndarray]


class SafetensorsSource:
    """An opened safetensors checkpoint; see `converters.source.TensorSource`."""

    format = "safetensors"

    def __init__(self, shards: Shards):
        """Open every shard and check every header; nothing stays open if one is wrong."""
        self._tensors: dict[str, TensorInfo] = {}
        self._metadata: dict[str, Any] = {}
        self.tensors: Mapping[str, TensorInfo] = self._tensors
        self.metadata: Mapping[str, Any] = self._metadata
        self._places: dict[str, tuple[BoundedFile, int]] = {}
        self._files: list[BoundedFile] = []
        try:
            for path in shards.files:
                self._open_shard(path)
            shards.check({name: info.file for name, info in self.tensors.items()})
        except BaseException:
            self.close()
            raise

    def _open_shard(self, path: Path) -> None:
        file = BoundedFile(path)
        self._files.append(file)
        tensors, metadata, data_start = read_header(file)
        for info, begin in tensors:
            if info.name in self.tensors:
                raise ValueError(f"{path}: tensor {quote(info.name)} is also in {self.tensors[info.name].file.name}")
            self._tensors[info.name] = info
            self._places[info.name] = (file, data_start + begin)
        for key, value in metadata.items():
            self._metadata.setdefault(key, value)  # shards repeat the same entries; the first one speaks

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new memory; float4 gives one value a byte. Errors as in `TensorSource.read`."""
        return self.decode(name, self.raw(name))

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor."""
        file, offset = self._places[name]
        return file.read_array(offset, self.tensors[name].nbytes)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values that the bytes `raw` of one tensor stand for."""
        info = self.tensors[name]
        bits, dtype = _DTYPES[info.dtype]
        if dtype is None:
            raise ValueError(
                f"{info.file}: tensor {quote(name)} is {info.dtype}; its packing is not standardised, so it is not read"
            )
        if bits == 4:  # the low half of a byte comes first
            raw = np.stack([raw & 15, raw >> 4], axis=-1)
        return typed(raw, dtype, f"{info.file}: tensor {quote(name)}").reshape(info.shape)

    packed = decode  # no type of such a file is packed

    def close(self) -> None:
        """Close all shards."""
        for file in self._files:
            file.close()


def open_safetensors(paths: Path | Sequence[Path]) -> SafetensorsSource:
    """Open a safetensors checkpoint: a file, a list of shards, an `*.index.json`, or a directory holding one of these.

    Raises:
        FileNotFoundError: the path or a shard is missing; the message names it.
        ValueError: a header or index is wrong; the message says where and how.
    """
    return SafetensorsSource(_shards(paths))


def _shards(paths: Path | Sequence[Path]) -> Shards:
    if not isinstance(paths, str | Path):
        return Shards(tuple(Path(path) for path in paths))
    path = Path(paths)
    if path.is_dir():
        return find_shards(path, ".safetensors", ("model.safetensors",))
    return read_index(path) if path.name.endswith(".index.json") else Shards((path,))


def read_header(file: BoundedFile) -> tuple[list[tuple[TensorInfo, int]], dict[str, str], int]:
    """Parse and check the header of one file.

    Returns:
        The tensors in file order, each with the offset of its data; the `__metadata__` strings; where the data starts.

    Raises:
        ValueError: the header does not describe exactly this file: bad JSON, unknown dtype, size that is not
            shape x dtype, data that overlaps, leaves holes, or is not all of the file.
    """
    where = str(file.path)
    if file.size < 8:
        raise ValueError(f"{where}: {file.size} bytes are too few for a safetensors file; it is empty or was cut off")
    length = int.from_bytes(file.read_bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > file.size:
        raise ValueError(
            f"{where}: the header is said to have {length} bytes; the file has {file.size}, the limit is "
            f"{MAX_HEADER_BYTES}: it was cut off, or it is no safetensors file"
        )
    header = parse_json(file.read_bytes(8, length), f"{where}: header", file_size=file.size)
    if not isinstance(header, dict):
        raise ValueError(f"{where}: the header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{where}: __metadata__ must map strings to strings")
    tensors = [_tensor(name, entry, file.path) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor[1], tensor[1] + tensor[0].nbytes))
    _check_layout(tensors, file.size - 8 - length, where)
    return tensors, metadata, 8 + length


def _tensor(name: str, entry: Any, path: Path) -> tuple[TensorInfo, int]:
    """Check one header entry by itself; return it with its offset."""
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{where}: dtype {quote(dtype)} is unknown; known are {', '.join(_DTYPES)}")
    if not _is_sizes(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"{where}: shape must be a list of at most {MAX_DIMS} sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where}: data_offsets must be [begin, end]")
    bits = math.prod(shape) * _DTYPES[dtype][0]
    if bits % 8 or math.prod(size or 1 for size in shape) >= 2**60:
        raise ValueError(f"{where}: shape {shape} of {dtype} is not a whole number of bytes below 2^60")
    if bits // 8 != offsets[1] - offsets[0]:
        raise ValueError(
            f"{where}: shape {shape} of {dtype} takes {bits // 8} bytes, data_offsets {offsets} hold another number"
        )
    return TensorInfo(name, tuple(shape), dtype, bits // 8, path), offsets[0]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)  # bool is no size


def _check_layout(tensors: list[tuple[TensorInfo, int]], data_bytes: int, where: str) -> None:
    """Check that the tensors, in order of offset, fill the data exactly: no overlap, no hole, nothing left over."""
    expected = 0
    for info, begin in tensors:
        if begin != expected:
            fault = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise ValueError(
                f"{where}: tensor {quote(info.name)} begins at byte {begin} of the data, not {expected}: it {fault}"
            )
        expected += info.nbytes
    if expected != data_bytes:
        fault = "the file was cut off" if expected > data_bytes else "there are bytes that no tensor uses"
        raise ValueError(f"{where}: the tensors take {expected} bytes, the file holds {data_bytes}: {fault}")


def dtype_name(dtype: np.dtype) -> str:
    """Give the safetensors name of a NumPy (or ml_dtypes) dtype; ValueError if there is none."""
    for name, (_, known) in _DTYPES.items():
        if known is not None and known == dtype:
            return name
    raise ValueError(f"safetensors has no type for {dtype}")


def numpy_dtype(name: str) -> np.dtype:
    """Give the NumPy dtype of a safetensors name; ValueError if there is none."""
    dtype = _DTYPES.get(name, (0, None))[1]
    if dtype is None:
        raise ValueError(f"{name} has no NumPy type")
    return dtype


def write_safetensors(path: Path, tensors: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file, tensor by tensor, all or nothing; byte for byte what the safetensors package writes.

    Raises:
        ValueError: a name twice, an unknown dtype, or an array that is not what its entry says.
        OSError: the disk is full (see `converters.files.atomic_write`).
    """
    order = list(_DTYPES)
    entries = list(tensors)
    for entry in entries:
        entry_bytes(entry)
    entries.sort(key=lambda entry: (-order.index(entry.dtype), entry.name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for entry in entries:
        if entry.name in header or entry.name == "__metadata__":
            raise ValueError(f"{path}: cannot write a tensor named {quote(entry.name)}: the name is taken")
        begin, end = end, end + entry_bytes(entry)
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: a header of {len(text)} bytes is over the limit of {MAX_HEADER_BYTES}; write shards")
    with atomic_write(path, size=8 + len(text) + end) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.write(_stored(entry, entry.read()).data)


def write_sharded(
    directory: Path, tensors: Iterable[Entry], max_shard_bytes: int, metadata: Mapping[str, str] | None = None
) -> list[Path]:
    """Write `model.safetensors`, or `model-00001-of-0000N.safetensors` and their index when it would be too large.

    Args:
        directory: an existing directory.
        tensors: filled into shards in this order; a tensor above the limit gets a shard of its own.
        max_shard_bytes: limit for the tensors of one shard.
        metadata: strings for every shard's header.

    Returns:
        The files written, the index last.
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    shards: list[list[Entry]] = [[]]
    room = max_shard_bytes
    for entry in tensors:
        size = entry_bytes(entry)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= size
    if len(shards) == 1:
        write_safetensors(directory / "model.safetensors", shards[0], metadata)
        return [directory / "model.safetensors"]
    files = [directory / f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map = {entry.name: file.name for file, shard in zip(files, shards, strict=True) for entry in shard}
    if len(weight_map) != sum(len(shard) for shard in shards):
        raise ValueError(f"{directory}: a tensor's name occurs twice")
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(file, shard, metadata)
    total = sum(entry_bytes(entry) for shard in shards for entry in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    files.append(directory / "model.safetensors.index.json")
    with atomic_write(files[-1]) as file:
        file.write(json.dumps(index, indent=2).encode())
    return files


def entry_bytes(entry: Entry) -> int:
    """How many bytes a tensor takes; ValueError for a type that is not written."""
    bits, dtype = _DTYPES.get(entry.dtype, (0, None))
    bits *= math.prod(entry.shape)
    if dtype is None or bits % 8:
        raise ValueError(
            f"tensor {quote(entry.name)}: shape {entry.shape} of {quote(entry.dtype)} cannot be written to safetensors"
        )
    return bits // 8


def _stored(entry: Entry, array: np.ndarray) -> np.ndarray:
    """The bytes of one tensor as they stand in the file."""
    bits, dtype = _DTYPES[entry.dtype]
    if array.shape != tuple(entry.shape) or array.dtype != dtype:
        raise ValueError(
            f"tensor {quote(entry.name)}: announced as {entry.dtype} {entry.shape}, got {array.dtype} {array.shape}"
        )
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw[0::2] | raw[1::2] << 4 if bits == 4 else raw
