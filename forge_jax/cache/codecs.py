"""How the numbers of a slab are kept: a codec turns [..., T, H] into named parts [..., T, *] and back.

A codec knows one token and head at a time and nothing of slots, pages and masks. Every formula is below; scales are
bfloat16, which has the range of float32, and codes are chosen with the scale as it is kept.

    float     x in another dtype
    fp8       scale = max |x| / 448, codes = x / scale in E4M3
    int8      y = x turned by Hadamard matrices, scale = max |y| / 127, codes = round(y / scale)
    int4      the same y; a group of up to 32 features has scale = max |y| / 7.5 and codes = round(y / scale + 7.5),
              two a byte
    int2      the same with scale = sqrt(mean y^2), codes = round(y / scale + 1.5) cut at 0 and 3, four a byte
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from forge_jax import kernels

Parts = dict[str, Array]


@dataclass(frozen=True)
class Codec(ABC):
    """One way to keep numbers. `lossless(dtype)`: whether numbers of a dtype come back as they were."""

    name: str

    def problem(self, size: int) -> str | None:
        """Why it cannot keep heads of `size` features, or None."""
        return None

    def lossless(self, dtype: DTypeLike) -> bool:
        """Whether numbers of this dtype come back bit for bit."""
        return False

    @abstractmethod
    def encode(self, x: Array) -> Parts:
        """The parts of [..., T, H], each [..., T, *]."""

    @abstractmethod
    def decode(self, parts: Parts, dtype: DTypeLike) -> Array:
        """[..., T, H] in the basis in which they are kept: `turn` gives the numbers themselves."""

    def turn(self, x: Array) -> Array:
        """The last axis carried into the basis in which numbers are kept, or back: the turn is its own inverse.

        It keeps products: turned queries meet turned keys as the plain ones would, and what is summed up of turned
        values is turned back once.
        """
        return x


@dataclass(frozen=True)
class Float(Codec):
    """Numbers in the floating-point dtype of this name."""

    def lossless(self, dtype: DTypeLike) -> bool:
        """Whether every number of the dtype is one of this one too."""
        theirs, ours = jnp.finfo(dtype), jnp.finfo(self.name)
        return theirs.nmant <= ours.nmant and theirs.nexp <= ours.nexp

    def encode(self, x: Array) -> Parts:
        """Rounded to the nearest."""
        return {"values": x.astype(self.name)}

    def decode(self, parts: Parts, dtype: DTypeLike) -> Array:
        """In another dtype."""
        return parts["values"].astype(dtype)


@dataclass(frozen=True)
class Scaled(Codec):
    """Codes of one byte, of which the largest is `largest`, and a scale for each token and head.

    Steps of one size want numbers of one size, so they are `turned`; a float's steps grow with it.
    """

    dtype: str
    largest: float
    turned: bool = False

    def encode(self, x: Array) -> Parts:
        """Codes [..., T, H] and scale [..., T, 1]."""
        x, scale = scaled(self.turn(x.astype(jnp.float32)), self.largest)
        y = jnp.clip(x, -self.largest, self.largest)
        y = jnp.round(y) if jnp.issubdtype(self.dtype, jnp.integer) else y
        return {"codes": y.astype(self.dtype), "scale": scale}

    def decode(self, parts: Parts, dtype: DTypeLike) -> Array:
        """Codes times scale, in float32."""
        return (parts["codes"].astype(jnp.float32) * parts["scale"].astype(jnp.float32)).astype(dtype)

    def turn(self, x: Array) -> Array:
        """As `hadamard` does, or not at all."""
        return hadamard(x) if self.turned else x


@dataclass(frozen=True)
class Rotated(Codec):
    """A few bits a number, of numbers turned so that none of a group is much larger than the others.

    Turned numbers are close to normally distributed. With many levels the largest of a group is the end of the scale;
    with four that would waste them, and levels half a deviation from 0 and one apart lose least.
    """

    bits: int
    group: int = 32

    @property
    def middle(self) -> float:
        """What stands between the codes for negative and positive numbers."""
        return (2**self.bits - 1) / 2

    @property
    def share(self) -> int:
        """Numbers in a byte."""
        return 8 // self.bits

    def problem(self, size: int) -> str | None:
        """Several numbers share a byte."""
        if not size % self.share:
            return None
        return f"{self.name} packs {self.share} numbers into a byte, so the size must be a multiple of {self.share}"

    def encode(self, x: Array) -> Parts:
        """Codes [..., T, H/share], the first features in the lowest bits, and scale [..., T, groups]."""
        *lead, size = x.shape
        y = self.turn(x.astype(jnp.float32)).reshape(*lead, -1, math.gcd(size, self.group))
        if self.bits > 2:
            y, scale = scaled(y, self.middle)
        else:
            y, scale = over(y, jnp.sqrt((y * y).mean(-1, keepdims=True)))
        codes = jnp.round(jnp.clip(y + self.middle, 0, 2 * self.middle)).astype(jnp.uint8).reshape(*lead, size)
        packed = jnp.split(codes, self.share, -1)
        shifted = [part << (self.bits * i) for i, part in enumerate(packed)]
        return {"codes": functools.reduce(jnp.bitwise_or, shifted), "scale": scale[..., 0]}

    def decode(self, parts: Parts, dtype: DTypeLike) -> Array:
        """(codes - middle) * scale, still turned."""
        mask = 2**self.bits - 1
        codes = jnp.concatenate([(parts["codes"] >> (self.bits * i)) & mask for i in range(self.share)], -1)
        *lead, size = codes.shape
        y = (codes.astype(jnp.float32) - self.middle).reshape(*lead, parts["scale"].shape[-1], -1)
        return (y * parts["scale"].astype(jnp.float32)[..., None]).reshape(*lead, size).astype(dtype)

    def turn(self, x: Array) -> Array:
        """As `hadamard` does."""
        return hadamard(x)


def scaled(x: Array, largest: float) -> tuple[Array, Array]:
    """x over its scale, and the scale in bfloat16: the largest number becomes about `largest`."""
    return over(x, jnp.abs(x).max(-1, keepdims=True) / largest)


def over(x: Array, scale: Array) -> tuple[Array, Array]:
    """x over a scale as bfloat16 has it, and that."""
    # not astype alone: a compiler may leave the rounding out
    scale = jax.lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=7)
    return x / jnp.where(scale > 0, scale, 1), scale.astype(jnp.bfloat16)


def hadamard(x: Array) -> Array:
    """x times Sylvester's matrices, scaled to length 1: of the largest power of two that divides the size, along the
    diagonal. In sums of two, which are the same whatever stands beside them.
    """
    size = math.gcd(x.shape[-1], 1 << 30)
    plain, in_one_call = (functools.partial(run, size=size) for run in (turn_in_pairs, kernels.turn))
    if not kernels.turns(x):
        return plain(x)
    return kernels.as_plain(lambda x: kernels.by_platform(x, cpu=in_one_call, default=plain), plain)(x)


def turn_in_pairs(x: Array, size: int) -> Array:
    """Runs of `size` of the last axis times one matrix each."""
    shape, half = x.shape, 1
    y = x.reshape(*shape[:-1], shape[-1] // size, size)
    while half < size:
        y = y.reshape(*y.shape[: len(shape)], size // (2 * half), 2, half)
        a, b = y[..., 0, :], y[..., 1, :]
        y = jnp.stack([a + b, a - b], -2).reshape(*y.shape[: len(shape)], size)
        half *= 2
    return (y * size**-0.5).reshape(shape)


FLOATS: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("float64", "float32", "bfloat16", "float16")},
        **{"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"},
    }
)
PACKED: Mapping[str, Codec] = MappingProxyType(
    {
        "int8": Scaled("int8", "int8", 127.0, turned=True),
        "fp8": Scaled("fp8", "float8_e4m3fn", 448.0),
        "int4": Rotated("int4", 4),
        "int2": Rotated("int2", 2),
    }
)


def codec(name: Any) -> Codec:
    """The codec of a name, of a floating-point dtype, or itself.

    Raises:
        ValueError: there is none; lists the names.
    """
    if isinstance(name, Codec):
        return name
    if isinstance(name, str) and name in PACKED:
        return PACKED[name]
    try:
        dtype = FLOATS.get(name, "") if isinstance(name, str) else FLOATS.get(jnp.dtype(name).name, "")
    except TypeError:
        dtype = ""
    if not dtype:
        known = ", ".join((*FLOATS, *PACKED))
        raise ValueError(f"cache: no codec {name!r} for keys and values, which are floats; expected one of {known}")
    return Float(dtype)
