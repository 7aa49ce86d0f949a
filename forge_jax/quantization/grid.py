"""Evenly spaced numbers that weights are rounded to: scale * (code - zero), codes of a few bits."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import packed

BITS = (2, 3, 4, 8)


class Lines(NamedTuple):
    """The numbers that each group of some rows is rounded to: scale and zero [..., groups]."""

    scale: np.ndarray
    zero: np.ndarray


class Rounded(NamedTuple):
    """Codes [R, n] of rows, their lines, and the group of each of n, None if groups are in turn."""

    codes: np.ndarray
    lines: Lines
    index: np.ndarray | None = None


@dataclass(frozen=True)
class Grid:
    """Codes of `bits` bits, with a scale for every `group` numbers of a row; 0 if the whole row shares one.

    symmetric: the zero is in the middle of the codes, else it is one of them, chosen for each group. dtype: of scales.

    Raises:
        ValueError: a number of bits that there is not, or no size of a group.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = False
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.bits not in BITS or self.group < 0:
            raise ValueError(f"grid: bits = {self.bits}, group = {self.group}; expected one of {BITS} and 0 or a size")

    @property
    def top(self) -> int:
        """The greatest code."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The zero of a symmetric grid."""
        return 2 ** (self.bits - 1)

    def fills(self, size: int) -> bool:
        """Whether the codes of a row of `size` numbers fill whole bytes."""
        return size * self.bits % 8 == 0

    def spans(self, size: int) -> list[slice]:
        """Where the groups of a row of `size` numbers lie; the last may be cut off."""
        group = self.group or size
        return [slice(start, min(start + group, size)) for start in range(0, size, group)]

    def line(self, values: np.ndarray, part: float = 1.0) -> Lines:
        """(scale, zero) [...] for groups [..., m], so that codes reach over that part of what the numbers span.

        Zero is a number of the grid, exactly, and the scale is what can be stored.
        """
        low, high = (np.minimum(values.min(-1), 0) * part, np.maximum(values.max(-1), 0) * part)
        if self.symmetric:
            high = np.maximum(-low, high)
            low = -high
        limits = np.finfo(self.dtype)
        scale = np.clip((high - low) / self.top, limits.smallest_subnormal, limits.max)
        scale = scale.astype(self.dtype).astype(values.dtype)
        zero = np.full_like(scale, self.middle) if self.symmetric else np.clip(np.rint(-low / scale), 0, self.top)
        return Lines(scale, zero)

    def lines(self, rows: np.ndarray) -> Lines:
        """(scale, zero) [..., groups] for all groups of rows [..., n]."""
        found = [self.line(rows[..., span]) for span in self.spans(rows.shape[-1])]
        return Lines(*(np.stack(part, -1) for part in zip(*found, strict=True)))

    def codes(self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The nearest numbers of the grid, as they count from the least: whole, of the dtype of `values`."""
        return np.clip(np.rint(values / scale) + zero, 0, self.top)

    def nearest(self, rows: np.ndarray, lines: Lines) -> np.ndarray:
        """The codes of rows [..., n]."""
        return self.codes(rows, *self.spread(lines, rows.shape[-1]))

    def values(self, codes: np.ndarray, lines: Lines) -> np.ndarray:
        """The rows that codes [..., n] stand for."""
        scale, zero = self.spread(lines, codes.shape[-1])
        return scale * (codes - zero)

    def spread(self, lines: Lines, size: int) -> Lines:
        """(scale, zero) [..., n] for every number of a row."""
        return Lines(*(np.repeat(part, self.group or size, -1)[..., :size] for part in lines))

    def parts(
        self, codes: np.ndarray, lines: Lines, index: np.ndarray | None = None
    ) -> tuple[Integers, dict[str, np.ndarray]]:
        """The scheme and the parts of rows [..., n]; `index` [..., n]: the group of each number, if not in turn.

        Raises:
            ValueError: rows that do not fill whole bytes.
        """
        size = codes.shape[-1]
        if not self.fills(size):
            raise ValueError(f"rows of {size} numbers of {self.bits} bits do not fill whole bytes")
        stream = codes.astype(np.uint8)
        parts = {"codes": stream if self.bits == 8 else packed(stream, self.bits)}
        parts["scale"] = lines.scale.astype(self.dtype)
        if not self.symmetric:
            parts["zero"] = lines.zero.astype(np.uint8)
        if index is not None:
            parts["index"] = index.astype(np.int32)
        return Integers(self.bits, middle=self.middle if self.symmetric else 0, group=self.group), parts
