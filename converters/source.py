"""What every checkpoint container looks like from the inside: names, shapes, storage types, and bytes on demand.

A source knows files, never architectures. Opening one reads headers only; `read` fetches one tensor.
Nothing that a header claims is believed before it has been checked against the size of the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


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


@runtime_checkable
class TensorSource(Protocol):
    """A checkpoint that has been opened: headers are parsed and checked, tensors are read one at a time."""

    format: str
    """ "safetensors", "gguf", "torch", "orbax", "onnx": what the content is, whatever the file's name says."""

    tensors: Mapping[str, TensorInfo]
    """Every tensor of every shard, in file order."""

    metadata: Mapping[str, Any]
    """The container's own key-values (GGUF metadata, the safetensors __metadata__ dict), plain Python values."""

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
