"""Leaves as the kernels for CPUs multiply them fastest: a matter of how numbers lie and are rounded, not of which.

`Halves` hold what was stored in 16 bits. Rounded inputs are a choice: they cost a little accuracy, as they do in
programs that always round them, and are asked for by name.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from forge_jax.params import Param
from forge_jax.quantization.ordered import in_order
from forge_jax.quantization.policy import packable
from forge_jax.quantization.schemes import Halves
from forge_jax.quantization.tiles import tiled
from forge_jax.quantization.trees import rows_of
from forge_jax.tensor import QTensor

Kernels = Literal["exact", "rounded"]


def swift(leaf: Any, param: Param, kernels: Kernels | None) -> Any:
    """A host leaf of the parameter that `param` describes, as kernels want it.

    Integers are put in the order of their groups (`in_order`). "exact": a matrix in bfloat16 or float16 as packed rows
    of those, which are multiplied in float32. "rounded": and whole numbers in tiles of 16 rows, which round what they
    are multiplied by to int8. Stacks stay as they are, but for those of experts, since they are multiplied in ways that
    have no kernels; and so does what `tiled` leaves.
    """
    if param.stacked and param.axes[0] != "experts":
        return leaf
    match leaf:
        case QTensor():
            return in_order(leaf, tiled) if kernels == "rounded" else in_order(leaf)
        case np.ndarray() if kernels is not None and leaf.dtype.name in ("bfloat16", "float16") and packable(param):
            rows, inner, trailing = rows_of(leaf, param)
            return QTensor({"values": np.ascontiguousarray(rows)}, Halves(leaf.dtype.name), inner, trailing, "float32")
        case _:
            return leaf


def plain_rows(leaf: Any) -> Any:
    """A leaf with every row of packed ones by itself and in its own order, as before `swift`."""
    if not isinstance(leaf, QTensor):
        return leaf
    scheme, parts = leaf.scheme.apart(leaf.parts)
    return replace(leaf, parts=parts, scheme=scheme)


def as_stored(leaf: Any) -> Any:
    """A leaf as it was before `swift`: `plain_rows`, and matrices of 16 bits as arrays of those."""
    match leaf:
        case QTensor(scheme=Halves(name=name)):
            return replace(leaf, dtype=name).dense()
        case _:
            return plain_rows(leaf)
