"""Packed leaves of our own tree in a container of plain arrays: each part is an array of its own, "<path>.<part>".

A JSON file beside the tree says of every packed leaf how its rows are packed and where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.composed import Composed, Recipe
from converters.files import quote, read_json
from converters.safetensors_file import numpy_dtype
from converters.source import TensorSource
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

    def recipe(self, path: str, source: TensorSource) -> Recipe:
        """How the leaf at a path is made of the arrays of a source.

        Raises:
            ValueError: its arrays are missing or do not fit.
        """
        names = {part: f"{path}.{part}" for part in self.parts}
        if not all(name in source.tensors for name in names.values()):
            raise ValueError(f"of {quote(path)} an array is missing; expected {', '.join(self.parts)}")
        infos = {part: source.tensors[name] for part, name in names.items()}
        empty = {part: jax.ShapeDtypeStruct(info.shape, numpy_dtype(info.dtype)) for part, info in infos.items()}
        try:
            shape = jax.eval_shape(lambda parts: self.made(parts).dense(), empty).shape
            fits = shape == self.made(empty).shape
        except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError):
            fits, shape = False, ()
        if not fits:
            shapes = {part: list(info.shape) for part, info in infos.items()}
            raise ValueError(f"the arrays of {quote(path)} do not make rows of {self.scheme.name}: {shapes}")

        def make(stored: dict[str, np.ndarray]) -> QTensor:
            return self.made({part: stored[name] for part, name in names.items()})

        return Recipe(shape, self.scheme.name, tuple(names.values()), make)


def joined(source: TensorSource, directory: Path) -> TensorSource:
    """The leaves of a tree, packed ones of several arrays as one tensor each.

    Raises:
        ValueError: `FILE` is not what `split` makes, or does not fit the arrays.
    """
    file = directory / FILE
    return with_packed(source, read_json(file), str(file)) if file.exists() else source


def with_packed(source: TensorSource, said: Any, where: str) -> TensorSource:
    """The arrays of a source, those that what is `said` of packed leaves names as one tensor each; errors: `joined`."""
    if not isinstance(said, Mapping):
        raise ValueError(f"{where}: expected a JSON object, found {type(said).__name__}")
    try:
        recipes = {path: leaf_of(about, quote(path)).recipe(path, source) for path, about in said.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    used = {part for recipe in recipes.values() for part in recipe.parts}
    return Composed(source, {name: info for name, info in source.tensors.items() if name not in used}, recipes)


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
