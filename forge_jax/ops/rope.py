"""Rotary positions and every rule that stretches them.

Static frequencies are computed on the host in float32, in the order of the reference (transformers'
modeling_rope_utils), because one unit in the last place of a frequency is a visible angle at position 100,000.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax.kernels import once
from forge_jax.spec import DynamicNtk, Linear, Llama3, LongRope, Proportional, Rope, Yarn


def base_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/dim) for each of the dim/2 pairs, float32."""
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / power


def yarn(rope: Rope, scaling: Yarn) -> np.ndarray:
    """NTK by parts: a ramp from untouched (fast) to interpolated (slow) features (arXiv:2309.00071, 3.2)."""

    def feature(rotations: float) -> float:
        """The feature that turns `rotations` times within the original length."""
        return rope.dim * math.log(scaling.original_len / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = feature(scaling.beta_fast), feature(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - low) / (high - low), 0, 1).astype(np.float32)
    freq = base_frequencies(rope.dim, rope.theta)
    return freq / np.float32(scaling.factor) * ramp + freq * (1 - ramp)


def llama3(rope: Rope, scaling: Llama3) -> np.ndarray:
    """Divide slow features, keep fast ones, blend between."""
    freq = base_frequencies(rope.dim, rope.theta)
    wavelength = 2 * math.pi / freq
    blend = (scaling.original_len / wavelength - scaling.low) / (scaling.high - scaling.low)
    mixed = (1 - blend) * freq / scaling.factor + blend * freq
    slow, fast = wavelength > scaling.original_len / scaling.low, wavelength < scaling.original_len / scaling.high
    return np.where(slow, freq / scaling.factor, np.where(fast, freq, mixed)).astype(np.float32)


def proportional(rope: Rope, scaling: Proportional) -> np.ndarray:
    """The first pairs turn at the frequencies of the whole head, the others stand still."""
    freq = base_frequencies(rope.dim, rope.theta) / np.float32(scaling.factor)
    return np.where(np.arange(rope.dim // 2) < scaling.pairs, freq, np.float32(0))


def divided(rope: Rope, factors: tuple[float, ...]) -> np.ndarray:
    """One divisor a feature pair."""
    if len(factors) != rope.dim // 2:
        raise ValueError(f"rope: {len(factors)} factors for {rope.dim // 2} feature pairs")
    exponent = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    power = np.power(np.float64(rope.theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / (np.asarray(factors, np.float32) * power)


def attention_factor(rope: Rope, length_B: Array | None = None) -> float | Array:
    """What cos and sin are multiplied by: a number, or [B] where it depends on the length."""
    match rope.scaling:
        case LongRope(_, _, original_len, factor, long_factor) if long_factor is not None and length_B is not None:
            return jnp.where(length_B > original_len, jnp.float32(long_factor), jnp.float32(factor))
        case Yarn() | LongRope():
            return rope.scaling.attention_factor
        case _:
            return 1.0


def frequencies(rope: Rope, length_B: Array | None = None) -> np.ndarray | Array:
    """Angle per position of each feature pair: [dim/2] on the host, or [B, dim/2] where it depends on the length.

    `length_B` is the number of tokens each sequence has by now; needed where `rope.varies`.
    """
    match rope.scaling:
        case None:
            return base_frequencies(rope.dim, rope.theta)
        case Linear(factor):
            return base_frequencies(rope.dim, rope.theta) / np.float32(factor)
        case Yarn() as scaling:
            return yarn(rope, scaling)
        case Llama3() as scaling:
            return llama3(rope, scaling)
        case Proportional() as scaling:
            return proportional(rope, scaling)
        case LongRope(short, long, original_len):
            if not rope.varies:
                return divided(rope, short)
            if length_B is None:
                raise ValueError("rope: these frequencies depend on the length of the sequence; pass length_B")
            far_B1 = length_B[:, None] > original_len
            return jnp.where(far_B1, divided(rope, long)[None], divided(rope, short)[None])
        case DynamicNtk(factor, max_len):
            if length_B is None:
                raise ValueError("rope: these frequencies depend on the length of the sequence; pass length_B")
            length = jnp.maximum(length_B, max_len).astype(jnp.float32)
            theta = rope.theta * (factor * length / max_len - (factor - 1)) ** (rope.dim / (rope.dim - 2))
            exponent = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
            return 1.0 / theta[:, None] ** exponent[None]


def angles(rope: Rope, position_BT: Array, length_B: Array | None = None) -> Array:
    """By what each feature pair turns at each position, float32.

    Raises:
        ValueError: an endless rope whose frequencies depend on the length.
    """
    freq = frequencies(rope, length_B)
    if rope.endless:
        if not isinstance(freq, np.ndarray):
            raise ValueError("rope: the frequencies depend on the length of the sequence, so it cannot be endless")
        turn_F = np.rint(freq.astype(np.float64) / (2 * math.pi) * 2.0**32).astype(np.uint32)
        turns_BTF = position_BT.astype(jnp.uint32)[:, :, None] * turn_F[None, None]  # whole turns fall off the end
        return turns_BTF.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * math.pi / 2.0**32)
    freq_B1F = jnp.asarray(freq)[:, None, :] if freq.ndim == 2 else jnp.asarray(freq)[None, None, :]
    return position_BT[:, :, None].astype(jnp.float32) * freq_B1F


def rotate(rope: Rope, x_BTNH: Array, position_BT: Array, length_B: Array | None = None) -> Array:
    """Turn each feature pair of `x` by position times frequency. Angles and products are float32."""
    angle_BTF = angles(rope, position_BT, length_B)
    factor_B11 = jnp.asarray(attention_factor(rope, length_B), jnp.float32).reshape(-1, 1, 1)
    cos, sin = jnp.cos(angle_BTF) * factor_B11, jnp.sin(angle_BTF) * factor_B11
    sin = -sin if rope.backwards else sin
    x = x_BTNH[..., : rope.dim].astype(jnp.float32)
    # (a, b) -> (a cos - b sin, b cos + a sin), by a pair turned round: halves put together are slow on a CPU
    axis, pairs = (-1, (rope.dim // 2, 2)) if rope.interleaved else (-2, (2, rope.dim // 2))
    x = x.reshape(*x.shape[:-1], *pairs)
    sign = jnp.asarray([-1.0, 1.0], jnp.float32).reshape((1,) * (x.ndim - 2) + ((1, 2) if axis == -1 else (2, 1)))
    cos, sin = (jnp.expand_dims(y[:, :, None], axis) for y in (cos, sin))
    cos, sin = once(cos), once(sin * sign)
    y = x * cos + jnp.flip(x, axis) * sin
    y = y.reshape(*y.shape[:-2], rope.dim).astype(x_BTNH.dtype)
    return y if rope.dim == x_BTNH.shape[-1] else jnp.concatenate([y, x_BTNH[..., rope.dim :]], -1)


def rotate_last(rope: Rope, x_BTNH: Array, position_BT: Array, length_B: Array | None = None) -> Array:
    """`rotate`, of the last features where not all of them turn."""
    still = x_BTNH.shape[-1] - rope.dim
    rotated = rotate(rope, x_BTNH[..., still:], position_BT, length_B)
    return jnp.concatenate([x_BTNH[..., :still], rotated], -1) if still else rotated


def sinusoids(position_BT: Array, dim: int, theta: float) -> Array:
    """The sines, then the cosines, of every angle that a rope of `dim` features has at a position: [B, T, dim]."""
    freq_F = jnp.asarray(base_frequencies(dim, theta))
    angle_BTF = position_BT[:, :, None].astype(jnp.float32) * freq_F[None, None, :]
    return jnp.concatenate([jnp.sin(angle_BTF), jnp.cos(angle_BTF)], -1)


@dataclass(frozen=True)
class Explanation:
    """What a rope does, for people: see `explain`."""

    kind: str
    attention_factor: float
    frequencies: np.ndarray
    wavelengths: np.ndarray

    def __str__(self) -> str:
        """A line for the whole, and one for each feature pair."""
        pairs = zip(self.frequencies.tolist(), self.wavelengths.tolist(), strict=True)
        return "\n".join(
            [
                f"{self.kind}, {len(self.frequencies)} feature pairs, cos and sin times {self.attention_factor:g}",
                "pair  radians a token  tokens a turn",
                *(f"{i:4}  {freq:15.9f}  {wave:13.3f}" for i, (freq, wave) in enumerate(pairs)),
            ]
        )


def explain(rope: Rope, length: int = 1) -> Explanation:
    """The derived table of a rope at a sequence length: kind, attention factor, frequency and wavelength a pair.

    >>> print(explain(Rope(4, 100.0, scaling=Linear(2.0))))
    Linear, 2 feature pairs, cos and sin times 1
    pair  radians a token  tokens a turn
       0      0.500000000         12.566
       1      0.050000001        125.664
    """
    length_B = jnp.asarray([length])
    freq, factor = np.asarray(frequencies(rope, length_B)), np.asarray(attention_factor(rope, length_B))
    freq = freq[0] if freq.ndim == 2 else freq
    with np.errstate(divide="ignore"):
        wavelength = 2 * math.pi / freq
    kind = type(rope.scaling).__name__ if rope.scaling else "Default"
    return Explanation(kind, factor.item(), freq, wavelength)
