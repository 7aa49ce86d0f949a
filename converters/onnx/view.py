"""A graph seen as the tensors of a checkpoint: each made of stored ones, packed where it is quantised."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converters.files import quote
from converters.onnx.graph import Expr
from converters.source import TensorInfo, TensorSource, View
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

    def pack(self, stored: dict[str, np.ndarray]) -> QTensor | np.ndarray:
        """The tensor, from the stored ones by their names: packed rows, or numbers."""
        packed = None if self.offset else self.expr.packed(stored, self.rows)
        if packed is not None:
            return packed
        out = self.expr.value(stored)
        out = out.astype(np.float32) if out.dtype == np.float64 else out
        return out.astype(np.float32) - np.float32(self.offset) if self.offset else out


class Weights(View):
    """The weights of a graph, and those of its other tensors that nothing explains, under their own names."""

    def __init__(self, whole: TensorSource, weights: Iterable[Weight], rest: Iterable[str]) -> None:
        self.weights = {weight.name: weight for weight in weights}
        found = {name: whole.tensors[name] for name in rest}
        if twice := sorted(set(found) & set(self.weights)):
            file = found[twice[0]].file
            raise ValueError(f"{file}: {quote(twice[0])} is used by nothing, and another tensor stands in its place")
        super().__init__(whole, found | {name: described(one, whole) for name, one in self.weights.items()})

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor: those of its parts, one after another."""
        if name not in self.weights:
            return super().raw(name)
        return np.concatenate([self.whole.raw(leaf) for leaf in self.weights[name].expr.leaves()])

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """One tensor from its bytes, packed if it is.

        Raises:
            ValueError: the parts are not what they are said to be.
        """
        if name not in self.weights:
            return super().packed(name, raw)
        stored: dict[str, np.ndarray] = {}
        begin = 0
        for leaf in self.weights[name].expr.leaves():
            end = begin + self.whole.tensors[leaf].nbytes
            stored[leaf] = self.whole.decode(leaf, raw[begin:end])
            begin = end
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by those who load
                return self.weights[name].pack(stored)
        except ValueError as error:
            raise ValueError(f"{self.tensors[name].file}: {quote(name)}: {error}") from None

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes. Errors as in `packed`."""
        values = self.packed(name, raw)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(values.dense()) if isinstance(values, QTensor) else values


def described(weight: Weight, whole: TensorSource) -> TensorInfo:
    """A weight as a header would describe it; its bytes are those of its parts."""
    parts = [whole.tensors[leaf] for leaf in weight.expr.leaves()]
    return TensorInfo(weight.name, weight.expr.shape, weight.dtype, sum(part.nbytes for part in parts), parts[0].file)
