"""A graph seen as the tensors of a checkpoint: each made of stored ones, packed where it is quantised."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converters.composed import Composed, Recipe
from converters.files import quote
from converters.onnx.graph import Expr
from converters.source import TensorSource
from forge_jax.tensor import QTensor


@dataclass(frozen=True)
class Weight:
    """A tensor of a model: an expression of stored ones, less an offset. Packed rows are numbered by axis `rows`."""

    name: str
    expr: Expr
    offset: float = 0.0
    rows: int = 0

    @property
    def dtype(self) -> str:
        """The type of its values."""
        return self.expr.dtype if self.expr.dtype in ("F16", "BF16") and not self.offset else "F32"

    def recipe(self) -> Recipe:
        """How it is made."""
        return Recipe(self.expr.shape, self.dtype, tuple(self.expr.leaves()), self.pack)

    def pack(self, stored: dict[str, np.ndarray]) -> QTensor | np.ndarray:
        """The tensor, from the stored ones by their names: packed rows, or numbers."""
        packed = None if self.offset else self.expr.packed(stored, self.rows)
        if packed is not None:
            return packed
        out = self.expr.value(stored)
        out = out.astype(np.float32) if out.dtype == np.float64 else out
        return out.astype(np.float32) - np.float32(self.offset) if self.offset else out


class Weights(Composed):
    """The weights of a graph, and those of its other tensors that nothing explains, under their own names."""

    def __init__(self, whole: TensorSource, weights: Iterable[Weight], rest: Iterable[str]) -> None:
        self.weights = {weight.name: weight for weight in weights}
        found = {name: whole.tensors[name] for name in rest}
        if twice := sorted(set(found) & set(self.weights)):
            file = found[twice[0]].file
            raise ValueError(f"{file}: {quote(twice[0])} is used by nothing, and another tensor stands in its place")
        super().__init__(whole, found, {name: weight.recipe() for name, weight in self.weights.items()})
