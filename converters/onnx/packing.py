"""Quantised weights of a graph as packed rows: the same numbers as `converters.onnx.formulas` gives, to the bit.

What cannot stand as rows of integers with a scale a group is None, and is decoded.
"""

import numpy as np

from converters.onnx.formulas import zeros_of
from forge_jax.quantization.schemes import Integers
from forge_jax.tensor import QTensor


def pack_linear(
    q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int, block: int, bits: int, rows: int
) -> QTensor | None:
    """The rows of `linear`, numbered by axis `rows`: scales run along it, or blocks along the other axis."""
    if q.ndim != 2 or bits not in (4, 8) or (scale.size > 1 and (axis == rows) == bool(block)):
        return None

    def turned(values: np.ndarray) -> np.ndarray:
        """A scale for each row and block, [1, 1] where there is one for all."""
        if values.size == 1 or not block:
            return values.reshape(-1, 1)
        return np.ascontiguousarray(values if rows == 0 else values.T)

    lift = 8 if bits == 4 and q.dtype == np.int8 else 0  # a stream of bits has no sign
    codes = np.ascontiguousarray(q if rows == 0 else q.T)
    if bits == 4:
        if codes.shape[1] % 2:
            return None
        raised = (codes.astype(np.int16) + lift).astype(np.uint8)
        codes = raised[:, ::2] | raised[:, 1::2] << 4
    parts = {"codes": codes, "scale": turned(scale)}
    if zero is not None:
        parts["zero"] = turned(zero.astype(np.int32) + lift)
    scheme = Integers(bits, middle=lift if zero is None else 0, group=block if scale.size > 1 else 0)
    return QTensor(parts, scheme, trailing=rows, dtype=str(scale.dtype))


def pack_nbits(
    q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    group: np.ndarray | None = None,
    *,
    columns: int,
    bits: int,
    rows: int,
) -> QTensor | None:
    """The rows of `matmul_nbits`, which are numbered by its first axis."""
    outputs, count = q.shape[:2]
    if rows != 0 or columns * bits % 8:
        return None
    parts = {"codes": np.ascontiguousarray(q.reshape(outputs, -1)[:, : columns * bits // 8])}
    parts["scale"] = scale.reshape(outputs, count)
    middle = 1 << bits - 1
    if zero is not None and zero.dtype == np.uint8:
        middle, parts["zero"] = 0, zeros_of(zero, outputs, count, bits)
    elif zero is not None:  # the offset of a block is rounded before it is subtracted
        middle = 0
        parts["shift"] = -(zero.reshape(outputs, count).astype(np.float32) * parts["scale"].astype(np.float32))
    if group is not None:
        parts["index"] = group.reshape(1, -1).astype(np.int32)
    scheme = Integers(bits, middle=middle, group=q.shape[2] * 8 // bits)
    return QTensor(parts, scheme, dtype=str(scale.dtype))
