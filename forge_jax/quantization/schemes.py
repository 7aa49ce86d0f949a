"""The schemes of packed rows: integers, small floats and codes of a table, with a scale for every group of a row.

Part "codes" holds the values, "scale" [..., groups] their scales. Decoding works on NumPy arrays and on jax's, in
float32, and gives the same bits. `forge_jax.quantization.ggml` has the schemes of blocks.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import ml_dtypes
import numpy as np
from jax import Array

from forge_jax.kernels import Packing, Steps
from forge_jax.products import rounded_products
from forge_jax.quantization.base import Rows
from forge_jax.quantization.streams import looked_up, nibbles, unpacked

Parts = Mapping[str, Any]
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = np.array([*POSITIVE, *(-value for value in POSITIVE)], np.float32)
POWERS = np.ldexp(1.0, np.arange(256) - 127).clip(max=2.0**127).astype(np.float32)
"""2^(e - 127) for each byte e of E8M0; 255, which stands for NaN there, is refused where files are read."""


def float32(values: Any) -> Any:
    """The values in float32."""
    return values.astype(np.float32)


def spread(values: Any, group: int, size: int) -> Any:
    """One number for every group [..., groups] as one for each of `size` elements; the last group may be cut off."""
    if group == 0:
        return values
    wide = values.__array_namespace__().repeat(values, group, axis=-1)
    return wide if wide.shape[-1] == size else wide[..., :size]


@dataclass(frozen=True, kw_only=True)
class Grouped(Rows):
    """What schemes with a scale for every `group` numbers of a row have in common; 0 if the whole row shares one."""

    group: int = 0

    @abstractmethod
    def size(self, parts: Parts) -> int:
        """How many numbers a row has."""

    def finer(self, parts: Parts, group: int) -> tuple[Self, dict[str, Any]]:
        """The same rows with a scale for every `group` numbers, a divisor of now; the last group may be cut off."""
        if self.group == 0 or group == self.group:
            return self, dict(parts)
        times, kept, groups = self.group // group, ("codes", "index", *self.whole), -(-self.size(parts) // group)
        cut = {
            name: part if name in kept else part.__array_namespace__().repeat(part, times, axis=-1)[..., :groups]
            for name, part in parts.items()
        }
        return replace(self, group=group), cut


@dataclass(frozen=True)
class Integers(Grouped):
    """value = scale / over * (code - zero) + shift.

    Codes of 8 bits are int8 or uint8 [..., n], others a stream of bits, uint8 [..., n * bits / 8] (`streams`). Where
    there is no part "zero" [..., groups], it is `middle`; where there is no "shift" [..., groups], it is 0. A part
    "index" int32 [..., n] numbers the group of each element, where these do not follow one another.

    dynamic: products round their inputs to int8 as well; for codes of int8 and a scale a row.
    """

    bits: int
    middle: int = 0
    over: int = 1
    dynamic: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "") + ("-dynamic" if self.dynamic else "")

    @property
    def rounds(self) -> bool:
        """Whether products round their inputs."""
        return self.dynamic

    def packing(self, parts: Parts) -> Packing | None:
        """Whole numbers with a scale for each row or group, if there is nothing else to them."""
        if self.dynamic or not {*parts} <= {"codes", "scale", "zero"}:
            return None
        names = tuple(name for name in ("codes", "scale", "zero") if name in parts)
        return Packing("integers", names, steps=Steps(self.bits, self.group, self.middle, self.over))

    def products(
        self, weights: Sequence[dict[str, Array]], outputs: Sequence[tuple[int, ...]], x_RI: Array
    ) -> list[Array]:
        """With inputs that are rounded, where they are to be and rows have a factor."""
        if not self.dynamic or self.factors(weights[0])[1] is None:
            return super().products(weights, outputs, x_RI)
        return rounded_products(replace(self, dynamic=False), [self.factors(w) for w in weights], outputs, x_RI)

    def size(self, parts: Parts) -> int:
        """How many numbers a row has."""
        return parts["codes"].shape[-1] * 8 // self.bits

    def wide(self, parts: Parts, name: str) -> Any:
        """A part [..., groups] in float32, for each element."""
        values = float32(parts[name])
        if "index" in parts:
            return values.__array_namespace__().take_along_axis(values, parts["index"], -1)
        return spread(values, self.group, self.size(parts))

    def centred(self, parts: Parts) -> Any:
        """code - zero."""
        codes = parts["codes"] if self.bits == 8 else unpacked(parts["codes"], self.bits)
        return float32(codes) - (self.wide(parts, "zero") if "zero" in parts else np.float32(self.middle))

    def decode(self, parts: Parts) -> Any:
        """The rows, float32 [..., n]."""
        values = self.centred(parts) * self.wide(parts, "scale")
        values = values / np.float32(self.over) if self.over != 1 else values
        return values + self.wide(parts, "shift") if "shift" in parts else values

    def factors(self, parts: Parts) -> tuple[Any, Any | None]:
        """The rows before they are scaled, and their scales, where a row has one."""
        if self.group or "index" in parts or "shift" in parts:
            return self.decode(parts), None
        values = parts["codes"] if self.dynamic else self.centred(parts)
        return values, float32(parts["scale"][..., 0]) / np.float32(self.over)


@dataclass(frozen=True)
class Floats(Grouped):
    """value = scale * code / divisor * multiplier, codes being floats of 8 or 4 bits.

    Codes are float8 [..., n], or, of 4 bits (E2M1), bytes [..., n / 2] with the low half first. Scales are floats, or
    bytes that are exponents of two with a bias of 127. "divisor" or "multiplier", float32 [..., 1], is for a tensor.

    rounded: values are rounded to bfloat16.
    """

    name: str
    bits: int = 8
    rounded: bool = False

    @property
    def whole(self) -> tuple[str, ...]:
        """The parts of a tensor."""
        return ("divisor", "multiplier")

    def size(self, parts: Parts) -> int:
        """How many numbers a row has."""
        return parts["codes"].shape[-1] * 8 // self.bits

    def values(self, parts: Parts) -> Any:
        """The codes as numbers."""
        codes = parts["codes"]
        return float32(codes) if self.bits == 8 else looked_up(E2M1, nibbles(codes))

    def scales(self, parts: Parts) -> Any:
        """What a group is multiplied by, float32 [..., groups]."""
        scale = parts["scale"]
        scale = scale.__array_namespace__().asarray(POWERS)[scale] if scale.dtype == np.uint8 else float32(scale)
        if "divisor" in parts:
            scale = scale / parts["divisor"]
        return scale * parts["multiplier"] if "multiplier" in parts else scale

    def decode(self, parts: Parts) -> Any:
        """The rows, float32 [..., n]."""
        values = self.values(parts) * spread(self.scales(parts), self.group, self.size(parts))
        return float32(values.astype(ml_dtypes.bfloat16)) if self.rounded else values

    def factors(self, parts: Parts) -> tuple[Any, Any | None]:
        """The rows before they are scaled, and their scales, where a row has one."""
        if self.group or self.rounded:
            return self.decode(parts), None
        return self.values(parts), self.scales(parts)[..., 0]


@dataclass(frozen=True)
class Codebook(Grouped):
    """value = table[code] * scale: codes of 4 bits, two in a byte, the high half first; table float32 [..., 16]."""

    name: str

    @property
    def whole(self) -> tuple[str, ...]:
        """The table."""
        return ("table",)

    def size(self, parts: Parts) -> int:
        """How many numbers a row has."""
        return parts["codes"].shape[-1] * 2

    def decode(self, parts: Parts) -> Any:
        """The rows, float32 [..., n]."""
        codes, table = parts["codes"], parts["table"]
        numbers = table.__array_namespace__()
        halves = numbers.stack([codes >> 4, codes & 15], axis=-1).reshape(*codes.shape[:-1], -1)
        return looked_up(table, halves) * spread(parts["scale"], self.group, self.size(parts))

    def factors(self, parts: Parts) -> tuple[Any, None]:
        """The rows; no factor is common to one."""
        return self.decode(parts), None


@dataclass(frozen=True)
class Halves(Grouped):
    """Floats of 16 bits, part "values" [..., n], that are multiplied in float32: the same numbers in half the bytes.

    name: bfloat16 or float16.
    """

    name: str

    def size(self, parts: Parts) -> int:
        """How many numbers a row has."""
        return parts["values"].shape[-1]

    def decode(self, parts: Parts) -> Any:
        """The rows, float32 [..., n]."""
        return float32(parts["values"])

    def factors(self, parts: Parts) -> tuple[Any, None]:
        """The rows; no factor is common to one."""
        return self.decode(parts), None

    def packing(self, parts: Parts) -> Packing:
        """The type in ggml's words."""
        return Packing({"bfloat16": "BF16", "float16": "F16"}[self.name], ("values",))
