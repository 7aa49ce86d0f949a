"""An ONNX file as a source of tensors: what is stored, under the names that the file gives it.

What these tensors are in a model, `converters.onnx.model` finds out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.files import quote
from converters.onnx.data import KINDS, Store
from converters.onnx.graph import Graph
from converters.onnx.messages import read_model, read_notes
from converters.onnx.subgraphs import flattened
from converters.onnx.wire import Window
from converters.source import TensorInfo

PREFIX = "forge."
"""How the names of the notes begin that this library leaves in a file of its own."""


class OnnxSource:
    """An opened ONNX model; see `converters.source.TensorSource`.

    Its nodes are in `graph`, its notes of ours, by what follows `PREFIX`, in `notes`.
    """

    format = "onnx"

    def __init__(self, path: Path) -> None:
        """Read the nodes and the places of all tensors; nothing stays open if something is wrong.

        Raises:
            ValueError: a damaged file, or a model that defines operators of its own.
            FileNotFoundError: a file with tensors is missing.
        """
        self.store = Store(Window(path))
        try:
            model = read_model(self.store.window)
            if model.functions:
                raise ValueError(
                    f"{path}: the model defines {model.functions} operators of its own; export it again without "
                    "functions (onnx.inliner.inline_local_functions does it for an existing file)"
                )
            self.notes = read_notes(self.store.window, model.notes, PREFIX)
            # a file of ours has its parameters outside all loops, of which it may have one for each layer
            message = model.graph if self.notes else flattened(self.store.window, model.graph)
            self.graph = Graph(message, self.store)
            self.tensors: Mapping[str, TensorInfo] = {
                name: self.info(name) for name, tensor in self.graph.tensors.items() if tensor.kind in KINDS
            }
            self.store.refuse_overlaps(self.graph.place(name) for name in self.tensors)
            self.metadata: Mapping[str, Any] = {"producer": model.producer}
        except BaseException:
            self.close()
            raise

    def info(self, name: str) -> TensorInfo:
        """One stored tensor, checked against the size of its file."""
        place = self.graph.place(name)
        return TensorInfo(
            name, self.graph.tensors[name].shape, place.kind.name, place.nbytes, place.file or self.store.path
        )

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor; see `TensorSource`."""
        if name not in self.tensors:
            raise KeyError(f"{self.store.path}: no tensor {quote(name)}")
        return self.store.raw(self.graph.place(name))

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes; see `TensorSource`."""
        return self.graph.decode(name, raw)

    packed = decode  # what is packed are not tensors, but what a graph makes of several

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; see `TensorSource`."""
        return self.decode(name, self.raw(name))

    def close(self) -> None:
        """Release the files."""
        self.store.close()
