"""Reads what torch.save writes (.bin, .pt, .pth), without torch and without running the pickle inside.

Two containers are known: the zip file of torch 1.6 and later, and the older row of pickles with raw storages behind.
The pickle only describes tensors: `converters.pickle_machine` interprets it; `converters.torch_standins` is its world.
Formats: torch/serialization.py (_save, _legacy_save).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import BoundedFile, quote, typed
from converters.pickle_machine import Cursor, load
from converters.safetensors_file import dtype_name
from converters.shards import Shards, find_shards, read_index
from converters.source import TensorInfo
from converters.stored_zip import ZipEntry, stored_entries
from converters.torch_standins import ALLOWED, Storage, Tensor, storage

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_MARK = b"\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
START_BYTES = 24  # what `is_legacy` needs to see
_LEGACY_PROTOCOL = 1001
_PICKLE_NAME = re.compile(r"([^/]+)/data\.pkl")
_MAX_DEPTH = 50  # of containers in the entries that are no tensors


@dataclass(frozen=True)
class _Stored:
    """Where the bytes of a storage lie in the file."""

    offset: int
    size: int
    entry: ZipEntry | None = None


@dataclass(frozen=True)
class _Content:
    """One file, opened: the object that was saved, the storages by key, and whether their bytes are big-endian."""

    root: Any
    storages: dict[str, _Stored]
    cursor: Cursor
    big_endian: bool = False


class TorchSource:
    """An opened torch checkpoint; see `converters.source.TensorSource`.

    Tensors that share a storage (tied weights, views) are separate entries and are read separately.
    """

    format = "torch"

    def __init__(self, shards: Shards, key: str | None = None):
        """Interpret every shard's pickle and check every tensor; nothing stays open if one is wrong."""
        self._tensors: dict[str, TensorInfo] = {}
        self._metadata: dict[str, Any] = {}
        self.tensors: Mapping[str, TensorInfo] = self._tensors
        self.metadata: Mapping[str, Any] = self._metadata
        self._places: dict[str, tuple[BoundedFile, _Content, Tensor]] = {}
        self._files: list[BoundedFile] = []
        try:
            for path in shards.files:
                self._open_shard(path, key)
            shards.check({name: info.file for name, info in self.tensors.items()})
        except BaseException:
            self.close()
            raise

    def _open_shard(self, path: Path, key: str | None) -> None:
        file = BoundedFile(path)
        self._files.append(file)
        content = _open_content(file)
        state, others = _state_dict(content.root, key, str(path))
        content.cursor.spend(1000 * len(state))  # for the records below
        for name, value in state.items():
            if type(value) is Tensor:
                self._add(name, value, file, content)
            else:
                plain = _plain(value, content.cursor, f"{path}: entry {quote(str(name))}", None)
                self._metadata.setdefault(str(name), plain)
        for name, value in others.items():
            plain = _plain(value, content.cursor, f"{path}: entry {quote(str(name))}", "<tensor>")
            self._metadata.setdefault(str(name), plain)

    def _add(self, name: Any, tensor: Tensor, file: BoundedFile, content: _Content) -> None:
        if type(name) is not str:
            raise ValueError(f"{file.path}: a tensor is called {name!r}; the names in a state dict are text")
        if name in self.tensors:
            raise ValueError(f"{file.path}: tensor {quote(name)} is also in {self.tensors[name].file.name}")
        nbytes = tensor.size * tensor.dtype.itemsize
        _check_stored(tensor, nbytes, content, file, f"{file.path}: tensor {quote(name)}")
        self._tensors[name] = TensorInfo(name, tensor.shape, dtype_name(tensor.dtype), nbytes, file.path)
        self._places[name] = (file, content, tensor)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new, contiguous memory. Errors as in `TensorSource.read`."""
        return self.decode(name, self.raw(name))

    def raw(self, name: str) -> np.ndarray:
        """The bytes that one tensor spans in its storage."""
        file, content, tensor = self._places[name]
        where = f"{file.path}: tensor {quote(name)}"
        stored = content.storages[tensor.storage.key]
        itemsize = tensor.dtype.itemsize
        begin = tensor.storage.start + tensor.offset * itemsize
        raw = file.read_array(stored.offset + begin, tensor.span)
        if stored.entry and raw.size == stored.size:
            stored.entry.check(raw, where)
        return raw

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values that the bytes `raw` of one tensor stand for."""
        file, content, tensor = self._places[name]
        where = f"{file.path}: tensor {quote(name)}"
        itemsize = tensor.dtype.itemsize
        if content.big_endian:
            width = itemsize // 2 if tensor.dtype.kind == "c" else itemsize
            raw = np.ascontiguousarray(raw.reshape(-1, width)[:, ::-1])
        strides = [stride * itemsize for stride in tensor.strides]
        values = np.ndarray(tensor.shape, np.uint8 if tensor.dtype == np.bool_ else tensor.dtype, raw, 0, strides)
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return typed(flat, tensor.dtype, where).reshape(tensor.shape)

    packed = decode  # no type of such a file is packed

    def close(self) -> None:
        """Close all shards."""
        for file in self._files:
            file.close()


def open_torch(paths: Path | Sequence[Path], *, key: str | None = None) -> TorchSource:
    """Open a torch checkpoint: a file, a list of shards, an `*.index.json`, or a directory holding one of these.

    Args:
        paths: what to open.
        key: which entry of the saved dict is the state dict, where there is a choice ("model", "ema", …).

    Raises:
        FileNotFoundError: the path or a shard is missing; the message names it.
        ValueError: a damaged or forged file, a pickle that names anything but tensors, no single state dict.
    """
    if not isinstance(paths, str | Path):
        return TorchSource(Shards(tuple(Path(path) for path in paths)), key)
    path = Path(paths)
    if path.is_dir():
        return TorchSource(find_torch_shards(path), key)
    return TorchSource(read_index(path) if path.name.endswith(".index.json") else Shards((path,)), key)


def find_torch_shards(directory: Path) -> Shards:
    """Find the files of the one torch checkpoint in a directory; errors as in `find_shards`."""
    for suffix in (".bin", ".pt"):
        if any(directory.glob(f"*{suffix}")) or any(directory.glob(f"*{suffix}.index.json")):
            return find_shards(directory, suffix, ("pytorch_model.bin",))
    return find_shards(directory, ".pth", ())


def _open_content(file: BoundedFile) -> _Content:
    start = file.read_bytes(0, min(file.size, START_BYTES))
    if start[:4] == b"PK\x03\x04":
        return _open_zip(file)
    if is_legacy(start):
        return _open_legacy(file)
    raise ValueError(
        f"{file.path}: no torch checkpoint: it begins with {start[:8]!r}, neither a zip file nor torch's older mark"
    )


def is_legacy(start: bytes) -> bool:
    """Whether a file that begins so is in the format that torch used before 1.6, in any pickle protocol."""
    return start[:1] == b"\x80" and start.find(_LEGACY_MARK, 0, START_BYTES) >= 2


def is_pickle_entry(name: str) -> bool:
    """Whether a zip entry called so is the pickle of a torch checkpoint."""
    return _PICKLE_NAME.fullmatch(name) is not None


def _open_zip(file: BoundedFile) -> _Content:
    entries = stored_entries(file)
    pickles = [match for name in entries if (match := _PICKLE_NAME.fullmatch(name))]
    if len(pickles) != 1:
        raise ValueError(
            f"{file.path}: {len(pickles)} entries called data.pkl in this zip file; a torch checkpoint has one"
        )
    prefix = pickles[0][1] + "/"
    entry = entries[prefix + "data.pkl"]
    order = entries.get(prefix + "byteorder")
    named = file.read_bytes(order.offset, order.size) if order and order.size < 10 else b"little"
    if named not in (b"little", b"big"):
        raise ValueError(f"{file.path}: byte order {named!r} is neither little nor big")
    _check_crc(file, entry)
    cursor = Cursor(file, entry.offset, entry.offset + entry.size)
    root = load(cursor, ALLOWED, storage, f"{file.path}: {entry.name}")
    folder = prefix + "data/"
    storages = {
        name.removeprefix(folder): _Stored(item.offset, item.size, item)
        for name, item in entries.items()
        if name.startswith(folder)
    }
    return _Content(root, storages, cursor, big_endian=named == b"big")


def _check_crc(file: BoundedFile, entry: ZipEntry) -> None:
    entry.check(file.read_array(entry.offset, entry.size), str(file.path))


def _open_legacy(file: BoundedFile) -> _Content:
    """Five pickles (magic, protocol, machine, saved object, keys), then every storage with its length before it."""
    cursor = Cursor(file, 0, file.size)
    dtypes: dict[str, np.dtype] = {}

    def remember(value: Any) -> Storage:
        found = storage(value)
        dtypes.setdefault(found.key, found.dtype)
        return found

    parts = [load(cursor, ALLOWED, remember, f"{file.path}: pickle {number} of 5") for number in range(1, 6)]
    magic, protocol, _, root, keys = parts
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise ValueError(f"{file.path}: torch's older format in another version than {_LEGACY_PROTOCOL}")
    if type(keys) is not list or not all(type(key) is str and key in dtypes for key in keys):
        raise ValueError(f"{file.path}: the list of storages does not match the tensors")
    storages: dict[str, _Stored] = {}
    at = cursor.position
    for key in keys:
        size = int.from_bytes(file.read_bytes(at, 8), "little") * dtypes[key].itemsize
        if key in storages or at + 8 + size > file.size:
            raise ValueError(
                f"{file.path}: storage {quote(key)} of {size} bytes does not fit or occurs twice: cut off or forged"
            )
        storages[key] = _Stored(at + 8, size)
        at += 8 + size
    return _Content(root, storages, cursor)  # these are little-endian whatever machine wrote them


def _check_stored(tensor: Tensor, nbytes: int, content: _Content, file: BoundedFile, where: str) -> None:
    held = tensor.storage
    stored = content.storages.get(held.key)
    if stored is None:
        raise ValueError(f"{where}: its data (storage {quote(held.key)}) is missing: the file was cut off or forged")
    if held.start + held.nbytes > stored.size:
        needed = held.start + held.nbytes
        raise ValueError(f"{where}: its storage should have {needed} bytes, the file holds {stored.size}")
    if nbytes > file.size:  # stride 0 makes much out of little
        raise ValueError(f"{where}: its shape {tensor.shape} repeats the data beyond the size of the file")


def _state_dict(root: Any, key: str | None, where: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The dict that holds the tensors, at the top or one level below, and the other entries of the top."""
    if type(root) is not dict:
        raise ValueError(f"{where}: holds a {type(root).__name__}, not a state dict; save model.state_dict()")
    if key is None and any(type(value) is Tensor for value in root.values()):
        return root, {}
    inner = [
        name
        for name, value in root.items()
        if type(value) is dict and any(type(item) is Tensor for item in value.values()) and key in (None, name)
    ]
    if len(inner) != 1:
        called = f" called {key!r}" if key else ""
        listed = ", ".join(quote(str(name)) for name in list(root)[:20])
        raise ValueError(
            f"{where}: {len(inner)} of its entries are state dicts{called}; its entries are {listed}; "
            'name the one to load with key="…"'
        )
    return root[inner[0]], {name: value for name, value in root.items() if name != inner[0]}


def _plain(value: Any, cursor: Cursor, where: str, tensor: str | None, depth: int = 0) -> Any:
    """Copy what is no tensor into a plain tree; a tensor inside becomes the text `tensor`, or an error if that is None.

    A pickle can hold one list in a million places, or a list in itself: every copy is paid for.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {_MAX_DEPTH} deep")
    cursor.spend(150)
    again = partial(_plain, cursor=cursor, where=where, tensor=tensor, depth=depth + 1)
    if type(value) is dict:
        return {name: again(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(again(item) for item in value)
    if type(value) is Tensor and tensor is None:
        raise ValueError(f"{where} holds tensors one level below the other tensors; save a flat state dict")
    if type(value) is Tensor:
        return tensor
    if value is None or type(value) in (bool, int, float, str, bytes, set):
        return value
    return str(value) if isinstance(value, np.dtype) else f"<{type(value).__name__}>"
