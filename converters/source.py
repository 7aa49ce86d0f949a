"""What every checkpoint container looks like from the inside: names, shapes, storage types, and bytes on demand.

A source knows files, never architectures. Opening one reads headers only; `read` fetches one tensor.
Nothing that a header claims is believed before it has been checked against the size of the file.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from forge_jax.tensor import QTensor


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as its header describes it.

    `shape` is in row-major (NumPy, PyTorch) order: GGUF's reversed dimensions are already undone.
    `dtype` is the storage type: a safetensors name ("F32", "BF16", "F8_E4M3", ...) or a ggml type ("Q4_K", ...).
    `nbytes` counts the bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: Path


class Watch(Protocol):
    """Someone who follows a load: bytes done, and the stage that the time goes to."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block as "reading", "decoding", ..."""
        ...

    def advance(self, nbytes: int) -> None:
        """Count bytes as done."""
        ...


class Unwatched:
    """Nobody follows."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def advance(self, nbytes: int) -> None:
        """Do nothing."""


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint that has been opened: headers are parsed and checked, tensors are read one at a time."""

    format: str
    """ "safetensors", "gguf", "torch", "orbax", "onnx": what the content is, whatever the file's name says."""

    tensors: Mapping[str, TensorInfo]
    """Every tensor of every shard, in file order."""

    metadata: Mapping[str, Any]
    """The container's own key-values (GGUF metadata, the safetensors __metadata__ dict), plain Python values."""

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor, uint8: the part of `read` that waits for the disk. Errors as in `read`."""
        ...

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes: the part of `read` that computes. Errors as in `read`."""
        ...

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """As `decode`, but packed types stay packed, their parts host arrays. Errors as in `read`."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor as an array of `tensors[name].shape`.

        Plain types keep their dtype (ml_dtypes for bfloat16 and float8), packed types are decoded to float32.
        The array owns its memory: it outlives the source, and the file may be replaced afterwards.

        Raises:
            KeyError: no such tensor.
            ValueError: the bytes cannot be what the header says; the message names file, tensor and reason.
        """
        ...

    def close(self) -> None:
        """Release the files. Reading afterwards is an error."""
        ...


class View:
    """A source seen otherwise: its files, with other tensors or names. What a view does not say is as in the source."""

    def __init__(self, whole: TensorSource, tensors: Mapping[str, TensorInfo]) -> None:
        self.whole, self.tensors = whole, tensors
        self.format, self.metadata = whole.format, whole.metadata

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor; see `TensorSource`."""
        return self.whole.raw(name)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes; see `TensorSource`."""
        return self.whole.decode(name, raw)

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """The values of one tensor from its bytes, packed if they are; see `TensorSource`."""
        return self.whole.packed(name, raw)

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; see `TensorSource`."""
        return self.decode(name, self.raw(name))

    def close(self) -> None:
        """Release the files."""
        self.whole.close()
