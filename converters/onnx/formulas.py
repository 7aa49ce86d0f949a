"""How the operators of ONNX and of ONNX Runtime make floats of integers, to the bit.

Every function takes arrays of values and gives float32, or the type of the scale where that is smaller.
Formulas: onnx/docs/Operators.md (DequantizeLinear) and onnxruntime/docs/ContribOperators.md.
"""

import numpy as np

from converters.onnx.data import unpack


def linear(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int, block: int) -> np.ndarray:
    """(q - zero) * scale: one scale for all, one for each index along `axis`, or one for each `block` along it."""
    if scale.size == 1:
        scale, zero = scale.reshape(()), None if zero is None else zero.reshape(())
    elif block:
        size = q.shape[axis]
        scale, zero = blocks(scale, axis, block, size), None if zero is None else blocks(zero, axis, block, size)
    else:
        along = [-1 if i == axis else 1 for i in range(q.ndim)]
        scale, zero = scale.reshape(along), None if zero is None else zero.reshape(along)
    return scaled(q if zero is None else difference(q, zero), scale)


def blocks(values: np.ndarray, axis: int, block: int, size: int) -> np.ndarray:
    """One value for each block as one for each index; the last block may be cut off."""
    return np.repeat(values, min(block, size), axis).take(range(size), axis)


def difference(q: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """q - zero without overflow."""
    return q.astype(np.int32) - zero.astype(np.int32)


def scaled(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The product in float32, rounded to the type of the scale."""
    return (q.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def matmul_nbits(
    q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    group: np.ndarray | None = None,
    *,
    rows: int,
    columns: int,
    bits: int,
) -> np.ndarray:
    """float32 [rows, columns] of com.microsoft.MatMulNBits.

    Args:
        q: bytes [rows, blocks, bytes of a block], the lowest bits first.
        scale: one for each row and block.
        zero: bytes of as many bits a value, each row filled to whole bytes, or floats; the middle where there is none.
        group: the block that the scale of a column is from; columns in order where there is none.

    Raises:
        ValueError: a group that is none of the blocks.
    """
    count = q.shape[1]
    values = unpack(q.reshape(-1), bits, q.size * 8 // bits, np.dtype(np.uint8)).reshape(rows, -1)[:, :columns]
    if zero is None:
        zeros = np.full((rows, count), 1 << bits - 1, np.uint8)
    else:
        zeros = zeros_of(zero, rows, count, bits) if zero.dtype == np.uint8 else zero.reshape(rows, count)
    size = q.shape[2] * 8 // bits
    index = np.arange(columns) // size if group is None else group.reshape(-1)
    if index.size and not (0 <= index.min() and index.max() < count):
        raise ValueError(f"a column is in group {index.max()}, there are {count}")
    scales = scale.reshape(rows, count).astype(np.float32)
    if zeros.dtype != np.uint8:  # the offset of a block is rounded before it is subtracted
        shift = zeros.astype(np.float32) * scales
        return values.astype(np.float32) * scales[:, index] - shift[:, index]
    return scaled(difference(values, zeros[:, index]), scales[:, index])


def zeros_of(packed: np.ndarray, rows: int, count: int, bits: int) -> np.ndarray:
    """uint8 [rows, count]: zero points of a few bits, each row filled to whole bytes."""
    flat = packed.reshape(-1)
    return unpack(flat, bits, flat.size * 8 // bits, flat.dtype).reshape(rows, -1)[:, :count]


def gather_blocks(
    q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, axis: int, block: int, bits: int
) -> np.ndarray:
    """The whole table of com.microsoft.GatherBlockQuantized: bytes hold `bits` a value along the last axis.

    Without zero points, values in bytes are around the middle, values of a type of 4 bits around 0.
    """

    def opened(packed: np.ndarray, last: int) -> np.ndarray:
        return unpack(packed.reshape(-1), bits, packed.size * 8 // bits, np.dtype(np.uint8)).reshape(
            *packed.shape[:-1], -1
        )[..., :last]

    values = opened(q, q.shape[-1] * 8 // bits)
    middle = np.full(scale.shape, 1 << bits - 1, np.uint8)
    zeros = middle if zero is None else opened(zero, scale.shape[-1])
    size = values.shape[axis]
    return scaled(difference(values, blocks(zeros, axis, block, size)), blocks(scale, axis, block, size))


def experts_nbits(
    q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, *, block: int, bits: int
) -> np.ndarray:
    """[experts, out, in] of com.microsoft.QMoE: bytes hold `bits` a value along the last axis.

    Args:
        scale: [experts, out], or [experts, out, blocks] of `block` values.
        zero: bytes of as many bits a value: of all rows of an expert one after another, or of the blocks of each row.
    """
    if zero is not None and scale.ndim == 2:
        zero = zeros_of(zero, scale.shape[0], scale.shape[1], bits)[..., None]
    return gather_blocks(q, scale.reshape(*q.shape[:2], -1), zero, axis=2, block=block, bits=bits)
