"""Integers of a few bits, one after another in bytes: value i has the bits i * bits to (i + 1) * bits - 1 of its row,
the least significant first, so that it may lie across two bytes; and the numbers that such a code may stand for."""

from functools import reduce
from operator import or_
from typing import Any

import numpy as np


def shifted(words: Any, shifts: np.ndarray) -> Any:
    """words >> shift for every shift, [..., shifts]."""
    return words[..., None] >> shifts.reshape((1,) * words.ndim + (-1,))


def unpacked(rows: Any, bits: int) -> Any:
    """uint8 [..., n] from bytes [..., n * bits / 8]; n is a multiple of 8, or of the values of a byte."""
    *lead, nbytes = rows.shape
    mask = np.uint8(2**bits - 1)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return (shifted(rows, shifts) & mask).reshape(*lead, -1)
    rows = rows.reshape(*lead, nbytes // bits, bits)
    values = []
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        value = rows[..., byte] >> shift
        if shift + bits > 8:
            value = value | rows[..., byte + 1] << (8 - shift)
        values.append(value & mask)
    return rows.__array_namespace__().stack(values, axis=-1).reshape(*lead, -1)


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Bytes [..., ceil(n * bits / 8)] from integers [..., n], of which the lower `bits` count: back from `unpacked`."""
    if 8 % bits == 0 and values.shape[-1] * bits % 8 == 0:
        return joined(values.astype(np.uint8) & np.uint8(2**bits - 1), bits)
    single = values[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(single.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little")


def joined(values: Any, bits: int) -> Any:
    """`packed` of bytes below 2 ** bits, for bits that divide 8; on a device too."""
    step = 8 // bits
    return reduce(or_, (values[..., i::step] << np.uint8(i * bits) for i in range(step)))


def moved(rows: Any, bits: int, order: Any) -> Any:
    """The values of rows [..., n * bits / 8] in another order, int [..., n], or [1, ..., n] for all of them; for bits
    that divide 8.
    """
    byte, shift = order * bits // 8, (order * bits % 8).astype(np.uint8)
    numbers = rows.__array_namespace__()
    if order.size == order.shape[-1]:
        found = numbers.take(rows, byte.reshape(-1), axis=-1)  # 4 times faster
    else:
        found = numbers.take_along_axis(rows, byte, -1)
    return found if bits == 8 else joined(found >> shift & np.uint8(2**bits - 1), bits)


def nibbles(packed: Any) -> Any:
    """uint8 [..., 2 n] from bytes [..., n]: the low half of a byte comes first."""
    return unpacked(packed, 4)


def looked_up(table: Any, codes: Any) -> Any:
    """table[..., code] for codes [..., n] of as many bits as the table [..., 2 ** bits] is long.

    On a device a few choices between numbers are far faster than reading a table: 8 times on a CPU for 16 numbers.
    """
    table = table.reshape((1,) * (codes.ndim - table.ndim) + table.shape)
    if isinstance(codes, np.ndarray):
        return np.take_along_axis(table, codes.astype(np.int64), -1)
    size = table.shape[-1]
    chosen = [table[..., i : i + 1] for i in range(size)]
    for bit in range(size.bit_length() - 1):
        high = (codes >> bit & 1) == 1
        chosen = [
            codes.__array_namespace__().where(high, one, zero)
            for zero, one in zip(chosen[::2], chosen[1::2], strict=True)
        ]
    return chosen[0]
