"""A source of which some tensors are made of several stored ones: codes, scales, zeros. Knows no format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from converters.files import quote
from converters.source import TensorInfo, TensorSource, View
from forge_jax.tensor import QTensor


@dataclass(frozen=True)
class Recipe:
    """A tensor of `shape`, the names of the stored ones it is made of, and what makes it of them by their names.

    kind: its storage type, as a header would say it. `make` gives packed rows, or numbers; ValueError where the stored
    tensors are not what they are said to be.
    """

    shape: tuple[int, ...]
    kind: str
    parts: tuple[str, ...]
    make: Callable[[dict[str, np.ndarray]], QTensor | np.ndarray]

    def info(self, name: str, whole: TensorSource) -> TensorInfo:
        """The tensor as a header would describe it; its bytes are those of its parts."""
        parts = [whole.tensors[part] for part in self.parts]
        return TensorInfo(name, self.shape, self.kind, sum(part.nbytes for part in parts), parts[0].file)


class Composed(View):
    """Stored tensors under their own names, and tensors made of others."""

    def __init__(self, whole: TensorSource, rest: Mapping[str, TensorInfo], recipes: Mapping[str, Recipe]) -> None:
        self.recipes = recipes
        super().__init__(whole, {**rest, **{name: recipe.info(name, whole) for name, recipe in recipes.items()}})

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor; those of all its parts, one after another."""
        if name not in self.recipes:
            return super().raw(name)
        return np.concatenate([self.whole.raw(part) for part in self.recipes[name].parts])

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """One tensor from its bytes, packed if it is.

        Raises:
            ValueError: the parts are not what they are said to be.
        """
        if name not in self.recipes:
            return super().packed(name, raw)
        stored: dict[str, np.ndarray] = {}
        begin = 0
        for part in self.recipes[name].parts:
            end = begin + self.whole.tensors[part].nbytes
            stored[part] = self.whole.decode(part, raw[begin:end])
            begin = end
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by those who load
                return self.recipes[name].make(stored)
        except ValueError as error:
            raise ValueError(f"{self.tensors[name].file}: {quote(name)}: {error}") from None

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes; a packed one is float32. Errors as in `packed`."""
        stored = self.packed(name, raw) if name in self.recipes else super().decode(name, raw)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(stored.dense()) if isinstance(stored, QTensor) else stored
