"""GGUF files as a TensorSource: versions 1 to 3, both byte orders, split files.

Knows the container and ggml's block formats, no model: names and metadata are handed on as they are stored.
"""

import io
import os
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from forge_jax.quantization.ggml import Ggml, parts_of
from forge_jax.quantization.ggml import decode as decode_blocks
from forge_jax.tensor import QTensor

from ..source import TensorInfo
from .header import Entry, Header, read_exactly, read_header
from .values import Typed

SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class _Shard:
    path: Path
    file: io.FileIO
    header: Header

    def split(self, key: str, absent: int) -> int:
        """An integer of the `split.` metadata."""
        value = self.header.metadata.get(f"split.{key}", absent)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{self.path}: split.{key} is {value!r}, expected a count")
        return value


class GGUFSource:
    """An opened GGUF model: one file, or all shards of a split one. Made by `open_gguf`.

    `metadata` is that of the first shard, with the keys that only others have added. `types` names the stored type
    of each value, e.g. "uint32" or "string[]". Reading is safe from several threads.
    """

    format = "gguf"
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, Any]
    types: Mapping[str, str]

    def __init__(self, shards: Sequence[_Shard]) -> None:
        entries: dict[str, tuple[_Shard, Entry]] = {}
        metadata: dict[str, Any] = {}
        types: dict[str, str] = {}
        for shard in shards:
            for name, entry in shard.header.entries.items():
                if name in entries:
                    raise ValueError(f"{shard.path}: the tensor {name!r} is also in {entries[name][0].path}")
                entries[name] = shard, entry
            for key, value in shard.header.metadata.items():
                metadata.setdefault(key, value)
                types.setdefault(key, shard.header.types[key])
        self.tensors = MappingProxyType({name: entry.info for name, (_, entry) in entries.items()})
        self.metadata = MappingProxyType(metadata)
        self.types = MappingProxyType(types)
        self._entries = entries
        self._files = [shard.file for shard in shards]
        self._lock = threading.Lock()

    def typed_metadata(self) -> dict[str, Typed]:
        """The metadata with its stored types, as `write_gguf` takes it."""
        return {key: Typed(self.types[key], value) for key, value in self.metadata.items()}

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor, uint8 [rows, bytes of a row], as a little-endian file has them.

        Raises:
            KeyError: no such tensor.
            ValueError: the source is closed, or the file has been truncated since it was opened.
        """
        shard, entry = self._find(name)
        with self._lock:
            if shard.file.closed:
                raise ValueError(f"{shard.path}: cannot read {name!r}, the source is closed")
            shard.file.seek(entry.offset)
            stored = read_exactly(shard.file, entry.info.nbytes, shard.path)
        if shard.header.big_endian:
            stored.view(entry.kind.layout).byteswap(inplace=True)
        columns = entry.info.shape[-1] if entry.info.shape else 1
        return stored.reshape(-1, entry.kind.row_bytes(columns))

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor, of `tensors[name].shape`.

        Plain types keep their dtype (BF16 is ml_dtypes.bfloat16), packed types are decoded to float32.

        Raises:
            KeyError: no such tensor.
            ValueError: the source is closed, or the file has been truncated since it was opened.
        """
        return self.decode(name, self.raw(name))

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values that the bytes `raw` of one tensor stand for."""
        _, entry = self._find(name)
        values = raw.reshape(-1).view(entry.kind.values) if entry.kind.plain else decode_blocks(entry.kind.name, raw)
        return values.reshape(entry.info.shape)

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """The tensor that the bytes `raw` stand for; blocks stay blocks."""
        _, entry = self._find(name)
        if entry.kind.plain or len(entry.info.shape) < 2:
            return self.decode(name, raw)
        rows = raw.reshape(*entry.info.shape[:-1], -1)
        return QTensor(parts_of(entry.kind.name, rows), Ggml(entry.kind.name))

    def close(self) -> None:
        """Release the files. Reading afterwards is an error."""
        with self._lock:
            for file in self._files:
                file.close()

    def _find(self, name: str) -> tuple[_Shard, Entry]:
        if name not in self._entries:
            raise KeyError(f"no tensor {name!r} among the {len(self._entries)} of {self._files[0].name}")
        return self._entries[name]


def open_gguf(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> GGUFSource:
    """Open a GGUF file, or a split model given any one shard or all of them. Reads headers only.

    Raises:
        FileNotFoundError: a file, or a shard beside the given one, is missing.
        ValueError: a file is not GGUF or damaged; the message names file, byte offset or key, finding, expectation.
    """
    paths = [Path(path)] if isinstance(path, str | os.PathLike) else [Path(one) for one in path]
    if not paths:
        raise ValueError("open_gguf needs at least one path")
    with ExitStack() as stack:
        shards = [_open(one, stack) for one in paths]
        count = shards[0].split("count", 1)
        if len(paths) == 1 and count > 1:
            shards += [_open(one, stack) for one in _siblings(paths[0], count)]
        shards.sort(key=lambda shard: shard.split("no", 0))
        _check_split(shards)
        source = GGUFSource(shards)
        stack.pop_all()
    return source


def _open(path: Path, stack: ExitStack) -> _Shard:
    file = stack.enter_context(io.FileIO(path))
    return _Shard(path, file, read_header(file, path))


def _siblings(path: Path, count: int) -> list[Path]:
    """The other shards beside `path`, which says that there are `count`."""
    match = SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ValueError(
            f"{path}: split.count is {count}, so the name should end in -<number>-of-{count:05d}.gguf; "
            "give all shards, or restore the name"
        )
    names = [f"{match['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FileNotFoundError(f"{path}: {len(missing)} of {count} shards are missing beside it: {shown}")
    return [path.parent / name for name in names if name != path.name]


def _check_split(shards: list[_Shard]) -> None:
    """Whether the shards, in order, are exactly the parts of one model."""
    first = shards[0]
    for i, shard in enumerate(shards):
        number, count = shard.split("no", 0), shard.split("count", 1)
        if max(count, 1) != len(shards) or number != i:
            raise ValueError(
                f"{shard.path}: it says that it is shard {number} of {count} (split.no counts from 0), "
                f"expected shard {i} of {len(shards)}"
            )
    total = sum(len(shard.header.entries) for shard in shards)
    expected = first.split("tensors.count", total)
    if total != expected:
        raise ValueError(f"{first.path}: split.tensors.count is {expected}, but the shards hold {total} tensors")
