"""How much each element of a block counts when its scale is searched, given an importance matrix, as in ggml.

An importance matrix has a number for each column of a matrix: the mean square of the input that the column is
multiplied by, over a calibration text (an "imatrix"). An element x weighs importance * sqrt(mean square of its
surroundings + x²), so that large elements count more; what the surroundings are differs by type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from forge_jax.quantization.ggml.search import total
from forge_jax.quantization.ggml.types import GGMLType

ROW_SPREAD = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types whose elements are compared with their whole row."""

BLOCK_SPREAD: Mapping[str, float] = MappingProxyType(
    {"Q6_K": 0}
    | dict.fromkeys(("Q2_K", "IQ2_XXS", "IQ2_XS"), 1)
    | dict.fromkeys(("Q3_K", "Q4_K", "Q5_K", "IQ1_S", "IQ1_M", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"), 2)
)
"""Types whose elements are compared with their block, and how often its mean square counts; at 0 only the importance
counts. Of types in neither table each element is rounded for itself."""

WEIGHED = (*ROW_SPREAD, *BLOCK_SPREAD)
"""The types that make use of an importance matrix."""

AT_ONCE = 1 << 15  # elements, at least a row
LARGE = 1e6
"""Importances are made smaller if one is above."""


@dataclass(frozen=True)
class Weighing:
    """Weights of the blocks of one matrix or stack of matrices.

    `importance` is [matrices, blocks of a row, elements of a block], `rows` how many rows one of the matrices has.
    `power` [all rows] is the mean square of each row for the types that ask for it.
    """

    kind: GGMLType
    importance: np.ndarray
    rows: int
    power: np.ndarray | None

    def weights(self, blocks: np.ndarray, first: int) -> np.ndarray:
        """The weights of consecutive blocks, float32 [n, elements], the first of which is the `first` of all."""
        row, column = np.divmod(np.arange(first, first + len(blocks)), self.importance.shape[1])
        importance = self.importance[row // self.rows, column]
        if self.power is not None:
            surroundings = self.power[row]
        elif factor := BLOCK_SPREAD[self.kind.name]:
            surroundings = _mean_square(blocks) * np.float32(factor)
        else:
            return importance
        return importance * np.sqrt(surroundings[:, None] + blocks * blocks)


def weighing(kind: GGMLType, values: np.ndarray, importance: np.ndarray | None) -> Weighing | None:
    """How the elements of `values` [..., rows, columns] weigh; None where none is more important than another.

    Raises:
        ValueError: importance that is not float32 of [columns], or [..., columns] for a stack, finite and not negative.
    """
    if importance is None:
        return None
    stacked, columns = (*values.shape[:-2], values.shape[-1]), values.shape[-1]
    if importance.dtype != np.float32 or importance.shape not in ((columns,), stacked):
        raise ValueError(
            f"importance is {importance.dtype} {list(importance.shape)}; for values {list(values.shape)} it must be "
            f"float32 [{columns}]" + (f" or {list(stacked)}" if stacked != (columns,) else "")
        )
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("importance has entries that are negative, infinite or NaN; it holds mean squares")
    if kind.name not in WEIGHED:
        return None
    rows = int(np.prod(values.shape[:-1])) if importance.ndim == 1 else values.shape[-2]
    power = None
    if kind.name in ROW_SPREAD:
        flat, step = values.reshape(-1, columns), max(1, AT_ONCE // columns)
        power = np.empty(len(flat), np.float32)
        for i in range(0, len(flat), step):
            power[i : i + step] = _mean_square(flat[i : i + step])
    if importance.max(initial=0) > LARGE:  # a power of four changes no result, but the sums do not overflow
        importance = np.ldexp(importance, -2 * (np.frexp(importance.max())[1] // 2))
    return Weighing(kind, importance.reshape(-1, columns // kind.block, kind.block), rows, power)


def _mean_square(x: np.ndarray) -> np.ndarray:
    """Mean squares [n] of rows [n, elements], added in order."""
    x = np.ascontiguousarray(x.T, np.float32)
    return total(x * x) / np.float32(len(x))
