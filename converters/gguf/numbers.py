"""Parameters that a GGUF file keeps among its metadata, as a list with one number for each layer: shown as tensors.

So rules read and write them like any other. Knows no architecture.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from converters.rules import Instance
from converters.source import TensorInfo, TensorSource, View
from forge_jax.tensor import QTensor

Shape = tuple[int, ...]


def name_of(key: str, layer: int) -> str:
    """The tensor that stands for a layer's number: "blk.3.xielu.beta"."""
    return f"blk.{layer}.{key}"


class Numbered(View):
    """A source whose metadata hold parameters, with these among its tensors; the rest is that of the source."""

    def __init__(self, source: TensorSource, keys: Mapping[str, Shape], layers: int, where: str) -> None:
        """Show them.

        Args:
            source: an opened file.
            keys: the metadata, and the shape that a parameter of one number has.
            layers: how many layers have one.
            where: what errors begin with.

        Raises:
            ValueError: a key that is neither a number nor one number for each layer.
        """
        self._values = {
            name_of(key, i): value.reshape(shape)
            for key, shape in keys.items()
            if key in source.metadata
            for i, value in enumerate(per_layer(source.metadata[key], layers, f"{where}: {key}"))
        }
        file = next(iter(source.tensors.values())).file
        shown = {name: TensorInfo(name, x.shape, "F32", x.nbytes, file) for name, x in self._values.items()}
        super().__init__(source, {**source.tensors, **shown})

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor; see `TensorSource`."""
        return self._values[name].reshape(-1).view(np.uint8) if name in self._values else super().raw(name)

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes; see `TensorSource`."""
        if name in self._values:
            return raw.view(np.float32).reshape(self._values[name].shape)
        return super().decode(name, raw)

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """The values of one tensor, packed if they are; see `TensorSource`."""
        return self.decode(name, raw) if name in self._values else super().packed(name, raw)


def per_layer(value: Any, layers: int, where: str) -> np.ndarray:
    """One number for each layer, float32 [L], given so or as one for all.

    Raises:
        ValueError: anything else.
    """
    given = np.asarray(value)
    if given.dtype.kind not in "fi" or given.shape not in ((), (layers,)) or not np.isfinite(given).all():
        raise ValueError(f"{where} is {value!r}, expected a finite number for each of {layers} layers")
    return np.array(np.broadcast_to(given, (layers,)), np.float32)


def lists(
    found: Iterable[Instance], keys: Iterable[str], layers: int, values: Callable[[Instance], np.ndarray]
) -> tuple[list[Instance], dict[str, np.ndarray]]:
    """The tensors of a model that are none but numbers, as metadata, float32 [L] each; and the other tensors.

    Args:
        found: all of them.
        keys: the metadata.
        layers: how many layers the model has.
        values: gives a tensor's values.
    """
    named = {instance.theirs: instance for instance in found}
    taken = {key: [named.pop(name_of(key, i)) for i in range(layers)] for key in keys}
    return [*named.values()], {
        key: np.array([values(one).item() for one in instances], np.float32) for key, instances in taken.items()
    }
