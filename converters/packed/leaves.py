"""Packed leaves of our own tree in a container of plain arrays: each part is an array of its own, "<path>.<part>".

A JSON file beside the tree says of every packed leaf how its rows are packed and where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.files import quote, read_json
from converters.safetensors_file import numpy_dtype
from converters.source import TensorInfo, TensorSource, View
from forge_jax.params import Tree, flatten, unflatten
from forge_jax.quantization.description import describe, scheme_of
from forge_jax.tensor import QTensor, Scheme

FILE = "packed.json"
MOST_AXES = 8


def split(params: Tree) -> tuple[Tree, dict[str, Any]]:
    """A tree of plain arrays, in which a packed leaf is a dict of its parts, and what `FILE` says of those leaves."""
    leaves: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for path, leaf in flatten(params):
        if not isinstance(leaf, QTensor):
            leaves[path] = leaf
            continue
        leaves |= {f"{path}.{part}": values for part, values in leaf.parts.items()}
        said[path] = {
            "scheme": describe(leaf.scheme),
            "inner": list(leaf.inner),
            "trailing": leaf.trailing,
            "parts": list(leaf.parts),
        }
    return unflatten(leaves), said


class Leaves(View):
    """A tree whose packed leaves are one tensor each."""

    def __init__(self, whole: TensorSource, leaves: Mapping[str, "Leaf"]) -> None:
        self.leaves = leaves
        used = {f"{path}.{part}" for path, leaf in leaves.items() for part in leaf.parts}
        rest = {name: info for name, info in whole.tensors.items() if name not in used}
        super().__init__(whole, rest | {path: leaf.info(path, whole) for path, leaf in leaves.items()})

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor; those of all its parts, one after another."""
        if name not in self.leaves:
            return super().raw(name)
        return np.concatenate([self.whole.raw(f"{name}.{part}") for part in self.leaves[name].parts])

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes, float32 where it is packed."""
        stored = self.packed(name, raw)
        return stored.dense() if isinstance(stored, QTensor) else stored

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """One tensor from its bytes, packed if it is."""
        if name not in self.leaves:
            return super().packed(name, raw)
        parts, begin = {}, 0
        for part in self.leaves[name].parts:
            end = begin + self.whole.tensors[f"{name}.{part}"].nbytes
            parts[part] = self.whole.decode(f"{name}.{part}", raw[begin:end])
            begin = end
        return self.leaves[name].made(parts)


@dataclass(frozen=True)
class Leaf:
    """What `FILE` says of a packed leaf."""

    scheme: Scheme
    inner: tuple[int, ...]
    trailing: int
    parts: tuple[str, ...]

    def made(self, parts: dict[str, Any]) -> QTensor:
        """The leaf of its parts."""
        return QTensor(parts, self.scheme, self.inner, self.trailing)

    def info(self, path: str, source: TensorSource) -> TensorInfo:
        """The leaf as a header would describe it.

        Raises:
            ValueError: its arrays are missing or do not fit.
        """
        stored = [source.tensors[f"{path}.{part}"] for part in self.parts if f"{path}.{part}" in source.tensors]
        if len(stored) != len(self.parts):
            raise ValueError(f"{FILE}: of {quote(path)} an array is missing; expected {', '.join(self.parts)}")
        empty = {
            part: jax.ShapeDtypeStruct(info.shape, numpy_dtype(info.dtype))
            for part, info in zip(self.parts, stored, strict=True)
        }
        try:
            dense = jax.eval_shape(lambda parts: self.made(parts).dense(), empty)
            fits = dense.shape == self.made(empty).shape
        except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError):
            fits, dense = False, None
        if dense is None or not fits:
            shapes = {part: list(info.shape) for part, info in empty.items()}
            raise ValueError(f"{FILE}: the arrays of {quote(path)} do not make rows of {self.scheme.name}: {shapes}")
        return TensorInfo(path, dense.shape, self.scheme.name, sum(info.nbytes for info in stored), stored[0].file)


def joined(source: TensorSource, directory: Path) -> TensorSource:
    """The leaves of a tree, packed ones of several arrays as one tensor each.

    Raises:
        ValueError: `FILE` is not what `split` makes, or does not fit the arrays.
    """
    file = directory / FILE
    if not file.exists():
        return source
    said = read_json(file)
    if not isinstance(said, Mapping):
        raise ValueError(f"{file}: expected a JSON object, found {type(said).__name__}")
    try:
        return Leaves(source, {path: leaf_of(about, quote(path)) for path, about in said.items()})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def leaf_of(about: Any, where: str) -> Leaf:
    """What is said of one leaf; ValueError where it is wrong."""
    if not isinstance(about, Mapping) or about.keys() != {"scheme", "inner", "trailing", "parts"}:
        raise ValueError(f"{where}: expected an object with scheme, inner, trailing and parts")
    inner, trailing, parts = about["inner"], about["trailing"], about["parts"]
    if not isinstance(inner, list) or not all(type(size) is int and size > 0 for size in inner):
        raise ValueError(f"{where}: inner is {inner!r}, expected sizes")
    if type(trailing) is not int or not 0 <= trailing <= MOST_AXES:
        raise ValueError(f"{where}: trailing is {trailing!r}, expected a count of axes")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{where}: parts is {parts!r}, expected names")
    return Leaf(scheme_of(about["scheme"], where), tuple(inner), trailing, tuple(parts))
