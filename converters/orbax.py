"""Reads and writes orbax checkpoints of our own parameter tree: nested dicts of arrays, named by their path.

orbax writes them. They are read by what orbax stores them with, tensorstore, one array at a time and without orbax's
event loops; the layout is that of https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html.
Which parameters a model has is not known here. Both packages are optional and imported when they are needed.
"""

import errno
import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import SLACK_BYTES, quote, read_json
from converters.safetensors_file import dtype_name
from converters.source import TensorInfo
from forge_jax.params import Tree

TREE_FILE = "_METADATA"
ROOT_FILE = "_CHECKPOINT_METADATA"
PARAMS = "params"
"""The subdirectory that `forge_jax.exporting.export_orbax` puts the tree into."""

MOST_PACKED = 1000  # how many times smaller than its values a checkpoint may be: it is compressed
_DICT_KEY = 2  # orbax's key_type of a dict's string key
_ARRAYS = ("jax.Array", "np.ndarray")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")  # no dot, which joins keys, and no way out of the directory
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


def find_trees(directory: Path) -> list[Path]:
    """The directories with an orbax tree: `directory` itself, or else those in it (a composite checkpoint's items)."""
    if (directory / TREE_FILE).is_file():
        return [directory]
    return sorted(mark.parent for mark in directory.glob(f"*/{TREE_FILE}"))


def optional(module: str) -> Any:
    """Import a module that orbax checkpoints need.

    Raises:
        ImportError: it is not installed; with the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'orbax checkpoints need {module}: pip install "forge-jax[train]"') from error


class OrbaxSource:
    """An opened orbax checkpoint; see `converters.source.TensorSource`. Names are paths, "layers.0.attention.q"."""

    format = "orbax"

    def __init__(self, directory: Path):
        """Read and check what the checkpoint says it holds; no values."""
        self._directory = directory.resolve()
        self._tensorstore = optional("tensorstore")
        self._context = self._tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._described = read_json(self._directory / TREE_FILE)
        names = tree_names(self._described, str(self._directory / TREE_FILE))
        self._stores = {name: self._open(name) for name in names}
        self.tensors: Mapping[str, TensorInfo] = {name: self._info(name) for name in names}
        self.metadata: Mapping[str, Any] = {}
        self._check_size()

    def _open(self, name: str) -> Any:
        """One array's header."""
        files: dict[str, Any] = {"driver": "file", "path": f"{self._directory}/"}
        if self._described.get("use_ocdbt", (self._directory / "manifest.ocdbt").is_file()):
            files = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
        else:
            files["path"] += f"{name}/"
        spec = {
            "driver": "zarr3" if self._described.get("use_zarr3") else "zarr",
            "kvstore": files,
            # where all-zero chunks are stored like others, one that is not there was lost
            "fill_missing_data_reads": not self._described.get("store_array_data_equal_to_fill_value"),
        }
        return self._wait(name, lambda: self._tensorstore.open(spec, context=self._context, open=True, read=True))

    def _wait(self, name: str, begin: Any) -> Any:
        """The result of something that tensorstore does with an array."""
        try:
            return begin().result()
        except Exception as error:  # whatever kind a damaged file makes of it
            raise ValueError(f"{self._directory}: tensor {quote(name)} cannot be read: {short(error)}") from error

    def _info(self, name: str) -> TensorInfo:
        store = self._stores[name]
        dtype, shape = store.dtype.numpy_dtype, tuple(int(size) for size in store.shape)
        try:
            stored = dtype_name(dtype)
        except ValueError:
            raise ValueError(f"{self._directory}: tensor {quote(name)} is {dtype}, no model's type") from None
        return TensorInfo(name, shape, stored, math.prod(shape) * dtype.itemsize, self._directory)

    def _check_size(self) -> None:
        """Whatever is read takes the array, and a chunk, which may be larger."""
        held = sum(file.stat().st_size for file in self._directory.rglob("*") if file.is_file())
        claimed = 0
        for store in self._stores.values():
            chunk = math.prod(store.chunk_layout.read_chunk.shape or ())
            claimed += max(chunk, math.prod(store.shape)) * store.dtype.numpy_dtype.itemsize
        if claimed > MOST_PACKED * held + SLACK_BYTES:
            raise ValueError(
                f"{self._directory}: claims {claimed} bytes of tensors, its files have {held}; it is damaged"
            )

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new memory. Errors as in `TensorSource.read`."""
        return self.decode(name, self.raw(name))

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor, already unpacked: tensorstore reads and unpacks in one go."""
        store = self._stores[name]
        values = self._wait(name, lambda: store.read(order="C"))
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values that the bytes of one tensor stand for."""
        return raw.view(self._stores[name].dtype.numpy_dtype).reshape(self.tensors[name].shape)

    packed = decode  # no type of such a file is packed

    def close(self) -> None:
        """Let go of the files."""
        self._stores.clear()


def tree_names(described: Any, where: str) -> list[str]:
    """The paths of the arrays in a tree that a `_METADATA` file describes.

    Raises:
        ValueError: it describes no tree, or one that is no nested dict of arrays.
    """
    entries = described.get("tree_metadata") if isinstance(described, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{where}: found no 'tree_metadata' object, so this is not the description of an orbax tree")
    names = []
    for entry, about in entries.items():
        try:
            keys = [(key["key"], key["key_type"]) for key in about["key_metadata"]]
            kind = about["value_metadata"]["value_type"]
        except (KeyError, TypeError):
            raise ValueError(f"{where}: the entry {quote(entry)} is not one of orbax") from None
        if not keys or any(type_ != _DICT_KEY or not isinstance(key, str) for key, type_ in keys):
            raise ValueError(f"{where}: {quote(entry)} is not in nested dicts, as export_orbax writes them")
        if odd := [key for key, _ in keys if not _PLAIN_KEY.fullmatch(key)]:
            raise ValueError(f"{where}: the key {quote(odd[0])} is no plain name of letters, digits, - and _")
        if kind not in (*_ARRAYS, "Dict"):
            raise ValueError(f"{where}: {quote(entry)} is a {quote(kind)}; expected {' or '.join(_ARRAYS)}")
        if kind != "Dict":  # an empty one
            names.append(".".join(key for key, _ in keys))
    return names


def open_orbax(path: Path) -> OrbaxSource:
    """Open an orbax checkpoint: its directory, or the one that it is the only tree of.

    Raises:
        FileNotFoundError: no tree there.
        ValueError: several trees, or one that is damaged or no nested dict of arrays; the message says which.
        ImportError: tensorstore is not installed.
    """
    trees = find_trees(path)
    if not trees:
        raise FileNotFoundError(f"{path}: no orbax tree ({TREE_FILE}) here; its writing may have been interrupted")
    chosen = [tree for tree in trees if tree.name == PARAMS] if len(trees) > 1 else trees
    if len(chosen) != 1:
        listed = ", ".join(tree.name for tree in trees[:8])
        raise ValueError(f"{path}: {len(trees)} orbax trees ({listed}); name one with file=…")
    return OrbaxSource(chosen[0])


def write_orbax(directory: Path, tree: Tree) -> None:
    """Write a tree of arrays as a new orbax checkpoint, each in the dtype it has.

    Raises:
        ImportError: orbax is not installed.
        OSError: the disk is full.
    """
    ocp = optional("orbax.checkpoint")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory.resolve(), tree)
    except ValueError as error:  # tensorstore tells of the operating system's errors in words only
        found = _OS_ERROR.search(str(error))
        if found is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(int(found[1]) if found else errno.ENOSPC, short(error), str(directory)) from error


def short(error: BaseException) -> str:
    """An error of orbax or tensorstore in one line."""
    text = " ".join(str(error).partition("[tensorstore_spec=")[0].split())
    return f"{type(error).__name__}: {text[:300]}"
