"""Weight-only int8: each output feature has one scale, the largest magnitude of its weights over 127."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.quantization.schemes import Integers
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor

LEVELS = 127  # codes are -127 ... 127: symmetric, so that zero is exact


def quantize_int8(spec: ModelSpec, params: Tree, *, linear: bool = True, embedding: bool = False) -> Tree:
    """The same parameters with int8 weights.

    Args:
        linear: quantise every matrix of the layers and an untied head.
        embedding: quantise the embedding, and with it a tied head, and other tables of tokens.

    Returns:
        A tree whose quantised leaves are `QTensor`; norms, biases and position tables stay as they are.
    """

    def convert(path: str, param: Param, leaf: Any) -> Any:
        if isinstance(leaf, QTensor) or param.fill is not None or path == "positions":
            return leaf
        wanted = linear if param.inputs else embedding
        return encode_leaf(leaf, param) if wanted else leaf

    described = dict(flatten(abstract(spec)))
    return unflatten({path: convert(path, described[path], leaf) for path, leaf in flatten(params)})


def encode_leaf(w: Array, param: Param) -> QTensor:
    """Quantise one weight; the axes that are summed over (the last one for a table) share a scale."""
    rows, inner, trailing = rows_of(w, param)
    wide = rows.astype(jnp.float32)
    scale = jnp.abs(wide).max(-1, keepdims=True) / LEVELS
    codes = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
    return QTensor({"codes": codes, "scale": scale.astype(w.dtype)}, Integers(8), inner, trailing, str(w.dtype))


def rows_of(w: Array, param: Param) -> tuple[Array, tuple[int, ...], int]:
    """The rows [*outputs, summed] of a weight, and how a `QTensor` says where they lie: (inner, trailing)."""
    summed = param.summed or (w.ndim - 1,)
    outputs = tuple(axis for axis in range(w.ndim) if axis not in summed)
    rows = w.transpose(*outputs, *summed).reshape(*(w.shape[axis] for axis in outputs), -1)
    return rows, tuple(w.shape[axis] for axis in summed[1:]), w.ndim - 1 - summed[-1]
