"""Evenly spaced numbers that weights are rounded to: scale * (code - zero), codes of a few bits, a scale for a group."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import packed

BITS = (2, 3, 4, 8)


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

    def fit(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero) [..., 1] that the numbers of a group [..., m] span, the scale as it is stored.

        Zero is a number of the grid, exactly.
        """
        low, high = (np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0))
        if self.symmetric:
            high = np.maximum(-low, high)
            low = -high
        limits = np.finfo(self.dtype)
        scale = np.clip((high - low) / self.top, limits.smallest_subnormal, limits.max)
        scale = scale.astype(self.dtype).astype(values.dtype)
        zero = np.full_like(scale, self.middle) if self.symmetric else np.clip(np.rint(-low / scale), 0, self.top)
        return scale[..., None], zero[..., None]

    def codes(self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """The nearest numbers of the grid, as they count from the least: whole, of the dtype of `values`."""
        return np.clip(np.rint(values / scale) + zero, 0, self.top)

    def parts(
        self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, index: np.ndarray | None = None
    ) -> tuple[Integers, dict[str, np.ndarray]]:
        """The scheme and the parts of rows [..., n], scale and zero being [..., groups], index [..., n] or None.

        Raises:
            ValueError: rows that do not fill whole bytes.
        """
        size = codes.shape[-1]
        if size * self.bits % 8 or (self.bits == 3 and size % 8):
            raise ValueError(f"rows of {size} numbers of {self.bits} bits do not fill whole bytes")
        stream = codes.astype(np.uint8)
        parts = {"codes": stream if self.bits == 8 else packed(stream, self.bits), "scale": scale.astype(self.dtype)}
        if not self.symmetric:
            parts["zero"] = zero.astype(np.uint8)
        if index is not None:
            parts["index"] = index.astype(np.int32)
        return Integers(self.bits, middle=self.middle if self.symmetric else 0, group=self.group), parts

    def spans(self, size: int) -> list[slice]:
        """Where the groups of a row of `size` numbers lie; the last may be cut off."""
        group = self.group or size
        return [slice(start, min(start + group, size)) for start in range(0, size, group)]

    def grouped(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(scale, zero) [..., groups] of all groups of rows [..., n]."""
        fitted = [self.fit(rows[..., span]) for span in self.spans(rows.shape[-1])]
        scales, zeros = zip(*fitted, strict=True)
        return np.concatenate(scales, -1), np.concatenate(zeros, -1)
