"""Reads and writes orbax checkpoints of our own parameter tree: nested dicts of arrays, named by their path.

The container is orbax's, through its public interface; which parameters a model has is not known here. orbax is
optional and imported when it is needed.
"""

import math
import re
from collections.abc import Mapping
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import SLACK_BYTES, quote, read_json
from converters.safetensors_file import dtype_name
from converters.source import TensorInfo
from forge_jax.params import Tree, flatten, unflatten

TREE_FILE = "_METADATA"
ROOT_FILE = "_CHECKPOINT_METADATA"
PARAMS = "params"
"""The subdirectory that `forge_jax.exporting.export_orbax` puts the tree into."""

MOST_PACKED = 1000  # how many times smaller than its values a checkpoint may be: it is compressed
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


def find_trees(directory: Path) -> list[Path]:
    """The directories with an orbax tree: `directory` itself, or else those in it (a composite checkpoint's items)."""
    if (directory / TREE_FILE).is_file():
        return [directory]
    return sorted(mark.parent for mark in directory.glob(f"*/{TREE_FILE}"))


def load_orbax() -> Any:
    """The orbax.checkpoint module.

    Raises:
        ImportError: it is not installed; with the line that installs it.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError('orbax checkpoints need orbax: pip install "forge-jax[train]"') from error
    return ocp


class OrbaxSource:
    """An opened orbax checkpoint; see `converters.source.TensorSource`. Names are paths, "layers.0.attention.q"."""

    format = "orbax"

    def __init__(self, directory: Path):
        """Read and check what the checkpoint says it holds; no values."""
        self._ocp = load_orbax()
        self._directory = directory.resolve()
        self._dtypes: dict[str, np.dtype] = {}
        tensors: dict[str, TensorInfo] = {}
        for name, leaf in flatten(self._described()):
            tensors[name] = self._info(name, leaf)
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.metadata: Mapping[str, Any] = {}
        self._check_size()
        self._reader = self._ocp.PyTreeCheckpointer()

    def _described(self) -> Tree:
        """The tree of orbax's descriptions."""
        read_json(self._directory / TREE_FILE)  # under our bounds, before orbax parses it under none
        try:
            with self._ocp.PyTreeCheckpointer() as checkpointer:
                tree = checkpointer.metadata(self._directory).item_metadata.tree
        except Exception as error:  # whatever a damaged file makes orbax and tensorstore raise
            raise ValueError(f"{self._directory}: not an orbax checkpoint that can be read: {short(error)}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{self._directory}: the checkpoint is a {type(tree).__name__}, expected a dict of arrays")
        check_keys(tree, str(self._directory))
        return tree

    def _info(self, name: str, leaf: Any) -> TensorInfo:
        where = f"{self._directory}: {quote(name)}"
        if not isinstance(leaf, self._ocp.metadata.ArrayMetadata):
            raise ValueError(f"{where} is a {type(leaf).__name__}; expected nested dicts of arrays and nothing else")
        dtype = np.dtype(leaf.dtype)
        self._dtypes[name] = dtype
        shape = tuple(int(size) for size in leaf.shape)
        try:
            stored = dtype_name(dtype)
        except ValueError:
            raise ValueError(f"{where} is {dtype}, which no model is made of") from None
        return TensorInfo(name, shape, stored, math.prod(shape) * dtype.itemsize, self._directory)

    def _check_size(self) -> None:
        claimed = sum(info.nbytes for info in self.tensors.values())
        held = sum(file.stat().st_size for file in self._directory.rglob("*") if file.is_file())
        if claimed > MOST_PACKED * held + SLACK_BYTES:
            raise ValueError(
                f"{self._directory}: claims {claimed} bytes of tensors, its files have {held}; it is damaged"
            )

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new memory. Errors as in `TensorSource.read`."""
        return self.decode(name, self.raw(name))

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor, already unpacked: orbax reads and unpacks in one go."""
        info = self.tensors[name]
        wanted = self._ocp.RestoreArgs(restore_type=np.ndarray)
        args = self._ocp.args.PyTreeRestore(
            item=unflatten({name: 0}), restore_args=unflatten({name: wanted}), partial_restore=True
        )
        try:
            tree = self._reader.restore(self._directory, args=args)
        except Exception as error:  # as above
            raise ValueError(f"{info.file}: tensor {quote(name)} cannot be read: {short(error)}") from error
        values = dict(flatten(tree))[name]
        if values.shape != info.shape or values.dtype != self._dtypes[name]:
            raise ValueError(
                f"{info.file}: tensor {quote(name)} is {values.dtype}{list(values.shape)}, not as described"
            )
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values that the bytes of one tensor stand for."""
        return raw.view(self._dtypes[name]).reshape(self.tensors[name].shape)

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()


def check_keys(tree: Tree, where: str) -> None:
    """Raise ValueError for a key that is no plain name: joined with dots, it could not be told from another."""
    for key, value in tree.items():
        if not isinstance(key, str) or "." in key:
            raise ValueError(
                f"{where}: the key {key!r} is no plain name; expected nested dicts, as export_orbax writes"
            )
        if isinstance(value, dict):
            check_keys(value, where)


def open_orbax(path: Path) -> OrbaxSource:
    """Open an orbax checkpoint: its directory, or the one that it is the only tree of.

    Raises:
        FileNotFoundError: no tree there.
        ValueError: several trees, or one that is damaged or no nested dict of arrays; the message says which.
        ImportError: orbax is not installed.
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
    ocp = load_orbax()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory.resolve(), tree)
    except ValueError as error:  # tensorstore tells of the operating system's errors in words only
        found = _OS_ERROR.search(str(error))
        if found is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(int(found[1]) if found else ENOSPC, short(error), str(directory)) from error


def short(error: BaseException) -> str:
    """An error of orbax in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
