"""The ggml storage types: ids, block sizes and the byte layout of one block, as structured NumPy dtypes.

A table of facts (ggml.h, ggml-common.h); knows nothing about files or about what the bytes mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import ml_dtypes
import numpy as np

K = 256
"""Elements of a super-block (QK_K)."""


@dataclass(frozen=True)
class GGMLType:
    """One storage type: `block` consecutive elements of a row take `nbytes` bytes.

    `layout` is the little-endian C struct of one block. `values` is what a reader returns: the type itself for plain
    types, float32 for packed ones. `byte_order` is False where ggml itself writes and reads a field in different
    byte orders, so that a big-endian file has no defined meaning.
    """

    id: int
    name: str
    block: int
    nbytes: int = field(init=False)
    layout: np.dtype
    values: np.dtype
    byte_order: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", self.layout.itemsize)

    @property
    def plain(self) -> bool:
        """Whether one element is one number, stored as such."""
        return self.block == 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` elements.

        Raises:
            ValueError: the row is not a whole number of blocks.
        """
        if columns % self.block:
            raise ValueError(f"{self.name} packs {self.block} elements to a block: a row of {columns} does not divide")
        return columns // self.block * self.nbytes


def _plain(id: int, name: str, stored: str, values: np.dtype | None = None) -> GGMLType:
    return GGMLType(id, name, 1, np.dtype(stored), np.dtype(stored[1:]) if values is None else values)


def _packed(id: int, name: str, block: int, fields: str, byte_order: bool = True) -> GGMLType:
    """A struct from words like `d:<f2` or `qs:u1*16`, in order and without padding."""
    layout = []
    for word in fields.split():
        label, _, code = word.partition(":")
        code, _, count = code.partition("*")
        layout.append((label, code, (int(count),)) if count else (label, code))
    return GGMLType(id, name, block, np.dtype(layout), np.dtype(np.float32), byte_order)


_TYPES = (
    _plain(0, "F32", "<f4"),
    _plain(1, "F16", "<f2"),
    _packed(2, "Q4_0", 32, "d:<f2 qs:u1*16"),
    _packed(3, "Q4_1", 32, "d:<f2 m:<f2 qs:u1*16"),
    _packed(6, "Q5_0", 32, "d:<f2 qh:<u4 qs:u1*16"),
    _packed(7, "Q5_1", 32, "d:<f2 m:<f2 qh:<u4 qs:u1*16"),
    _packed(8, "Q8_0", 32, "d:<f2 qs:i1*32"),
    _packed(9, "Q8_1", 32, "d:<f2 s:<f2 qs:i1*32"),
    _packed(10, "Q2_K", K, "scales:u1*16 qs:u1*64 d:<f2 dmin:<f2"),
    _packed(11, "Q3_K", K, "hmask:u1*32 qs:u1*64 scales:u1*12 d:<f2"),
    _packed(12, "Q4_K", K, "d:<f2 dmin:<f2 scales:u1*12 qs:u1*128"),
    _packed(13, "Q5_K", K, "d:<f2 dmin:<f2 scales:u1*12 qh:u1*32 qs:u1*128"),
    _packed(14, "Q6_K", K, "ql:u1*128 qh:u1*64 scales:i1*16 d:<f2"),
    _packed(15, "Q8_K", K, "d:<f4 qs:i1*256 bsums:<i2*16"),
    # ggml builds the words of IQ2_XXS natively and reads the grid indices out of them byte by byte.
    _packed(16, "IQ2_XXS", K, "d:<f2 qs:<u4*16", byte_order=False),
    _packed(17, "IQ2_XS", K, "d:<f2 qs:<u2*32 scales:u1*8"),
    _packed(18, "IQ3_XXS", K, "d:<f2 qs:u1*64 signs:<u4*8"),
    _packed(19, "IQ1_S", K, "d:<f2 qs:u1*32 qh:<u2*8"),
    _packed(20, "IQ4_NL", 32, "d:<f2 qs:u1*16"),
    _packed(21, "IQ3_S", K, "d:<f2 qs:u1*64 qh:u1*8 signs:u1*32 scales:u1*4"),
    _packed(22, "IQ2_S", K, "d:<f2 qs:u1*32 signs:u1*32 qh:u1*8 scales:u1*8"),
    _packed(23, "IQ4_XS", K, "d:<f2 scales_h:<u2 scales_l:u1*4 qs:u1*128"),
    _plain(24, "I8", "|i1"),
    _plain(25, "I16", "<i2"),
    _plain(26, "I32", "<i4"),
    _plain(27, "I64", "<i8"),
    _plain(28, "F64", "<f8"),
    _packed(29, "IQ1_M", K, "qs:u1*32 qh:u1*16 scales:<u2*4"),
    _plain(30, "BF16", "<u2", np.dtype(ml_dtypes.bfloat16)),
    _packed(34, "TQ1_0", K, "qs:u1*48 qh:u1*4 d:<f2"),
    _packed(35, "TQ2_0", K, "qs:u1*64 d:<f2"),
    _packed(39, "MXFP4", 32, "e:u1 qs:u1*16"),
    _packed(40, "NVFP4", 64, "d:u1*4 qs:u1*32"),
    _packed(41, "Q1_0", 128, "d:<f2 qs:u1*16"),
    _packed(42, "Q2_0", 64, "d:<f2 qs:u1*16"),
)

GGML_TYPES: Mapping[str, GGMLType] = MappingProxyType({kind.name: kind for kind in _TYPES})
"""Every type by name, in the order of their ids."""

TYPES_BY_ID: Mapping[int, GGMLType] = MappingProxyType({kind.id: kind for kind in _TYPES})

REMOVED_TYPES: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2",
        5: "Q4_3",
        31: "Q4_0_4_4",
        32: "Q4_0_4_8",
        33: "Q4_0_8_8",
        36: "IQ4_NL_4_4",
        37: "IQ4_NL_4_8",
        38: "IQ4_NL_8_8",
    }
)
"""Types that old files may name and that ggml itself no longer reads."""


def lookup(name: str) -> GGMLType:
    """The type called `name`.

    Raises:
        ValueError: no such type; the message lists the names.
    """
    kind = GGML_TYPES.get(name)
    if kind is None:
        raise ValueError(f"unknown ggml type {name!r}; expected one of {', '.join(GGML_TYPES)}")
    return kind
