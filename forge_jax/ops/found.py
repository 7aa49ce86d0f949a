"""What queries find: softmax over the scores of keys, times values. Knows no positions and no parameters."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from forge_jax import kernels
from forge_jax.kernels import cudnn, pallas
from forge_jax.ops.packed import HIDDEN, Held, Plain, for_cpus, look_packed, packed

BLOCK = 128  # queries of a prompt that are looked at together


@dataclass(frozen=True)
class Mix:
    """How each query mixes profiles of a bias, the profiles, and how far keys lie back."""

    mix_BTNR: Array
    profiles_RE: Array
    distance_BTS: Array

    def bias(self) -> Array:
        """[B, N, T, S]: what is added to the scores, nothing beyond the last distance that the profiles know."""
        profile_BNTE = jnp.einsum("BTNR,RE->BNTE", self.mix_BTNR, self.profiles_RE)
        extent = self.profiles_RE.shape[1]
        distance_B1TS = self.distance_BTS[:, None]
        bias = jnp.take_along_axis(profile_BNTE, jnp.clip(distance_B1TS, 0, extent - 1), axis=-1)
        return jnp.where((distance_B1TS >= 0) & (distance_B1TS < extent), bias, 0).astype(jnp.float32)


@dataclass(frozen=True)
class Keys:
    """Some tokens to look at: keys and values, which of them each query sees, and what is added to their scores.

    What is seen may differ by kv head: [B, K, T, S]. `q_BTNH`: the queries that meet them, where they are others.
    `held`: the same as a cache keeps them, which is what kernels read.
    """

    k_BKSH: Array
    v_BKSH: Array
    seen_BTS: Array
    bias_BN1S: Array | None = None
    mix: Mix | None = None
    q_BTNH: Array | None = None
    held: Held | None = None

    @property
    def bare(self) -> bool:
        """Whether kernels know all that there is to it."""
        return self.bias_BN1S is None and self.mix is None and self.q_BTNH is None and self.seen_BTS.ndim == 3

    @property
    def plain(self) -> Plain:
        """Keys, values and what is seen."""
        return self.k_BKSH, self.v_BKSH, self.seen_BTS

    def cut(self, rows: slice, near: slice) -> "Keys":
        """Those in `near`, as the queries in `rows` see them."""
        bias = None if self.bias_BN1S is None else self.bias_BN1S[..., near]
        bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, rows]
        mix = self.mix and Mix(self.mix.mix_BTNR[:, rows], self.mix.profiles_RE, self.mix.distance_BTS[:, rows, near])
        q_BTNH = None if self.q_BTNH is None else self.q_BTNH[:, rows]
        return Keys(self.k_BKSH[:, :, near], self.v_BKSH[:, :, near], self.seen_BTS[..., rows, near], bias, mix, q_BTNH)


def span(q_BTNH: Array, parts: Sequence[Keys], *, softcap: float | None, sinks_N: Array | None) -> int:
    """How many queries of a prompt are best looked at together: keys that come after all of them cost nothing."""
    bare = all(part.bare for part in parts)
    return cudnn.SPAN if bare and cudnn.looks(q_BTNH, [part.plain for part in parts], sinks_N, softcap) else BLOCK


def attend(
    q_BTNH: Array, parts: Sequence[Keys], *, scale: float, softcap: float | None = None, sinks_N: Array | None = None
) -> Array:
    """softmax(scale * q k^T + bias) v over the tokens of all parts together, for grouped heads: [B, T, N, H].

    The parts (what a cache holds, what is new) are never copied into one array. Softmax is float32.
    """
    plain = [part.plain for part in parts]
    if all(part.bare for part in parts):
        pairs = [packed(part.held) for part in parts]
        if pallas.looks(q_BTNH, pairs):
            held = list(zip(plain, pairs, strict=True))
            return attend_by(look_packed, q_BTNH, plain, held, sinks_N, scale, softcap)
        if cudnn.looks(q_BTNH, plain, sinks_N, softcap):
            return attend_by(cudnn.look, q_BTNH, plain, plain, sinks_N, scale, softcap)
        slabs = [for_cpus(known, part.held) for known, part in zip(plain, parts, strict=True)]
        if kernels.looks(q_BTNH, slabs):
            return attend_by(kernels.look, q_BTNH, plain, slabs, sinks_N, scale, softcap)
    return attend_plainly(q_BTNH, parts, scale=scale, softcap=softcap, sinks_N=sinks_N)


def bare_plainly(
    q_BTNH: Array, plain: list[Plain], sinks_N: Array | None, scale: float, softcap: float | None
) -> Array:
    """`attend` where nothing is added to scores, without a kernel."""
    return attend_plainly(q_BTNH, [Keys(*part) for part in plain], scale=scale, softcap=softcap, sinks_N=sinks_N)


def attend_by(
    look: Callable[..., Array],
    q_BTNH: Array,
    plain: list[Plain],
    held: Sequence[Any],
    sinks_N: Array | None,
    scale: float,
    softcap: float | None,
) -> Array:
    """`attend` where nothing is added to scores, by a kernel, which reads what is `held`.

    The same tokens stand in `plain`, which costs nothing where nobody reads them, and whose derivative is its own.
    """

    def fast(q_BTNH: Array, plain: list[Plain], held: Sequence[Any], sinks_N: Array | None) -> Array:
        return look(q_BTNH, held, sinks_N, scale, softcap)

    def slow(q_BTNH: Array, plain: list[Plain], held: Sequence[Any], sinks_N: Array | None) -> Array:
        return bare_plainly(q_BTNH, plain, sinks_N, scale, softcap)

    def run(*at: Any) -> Array:
        if look is look_packed and pallas.interpreted():
            return fast(*at)
        on_cpus, elsewhere = (fast, slow) if look is kernels.look else (slow, fast)
        return kernels.by_platform(*at, cpu=on_cpus, default=elsewhere)

    return kernels.as_plain(run, slow)(q_BTNH, plain, held, sinks_N)


def attend_plainly(
    q_BTNH: Array, parts: Sequence[Keys], *, scale: float, softcap: float | None, sinks_N: Array | None
) -> Array:
    """`attend` in any setting."""
    b, t, n, h = q_BTNH.shape
    heads = parts[0].k_BKSH.shape[1]
    group = n // heads

    def rows(q_BTNH: Array) -> Array:
        # one matrix product a kv head: rows are (group, token), so that decoding has G rows and not 1
        return q_BTNH.reshape(b, t, heads, group, h).transpose(0, 2, 3, 1, 4).reshape(b, heads, group * t, h)

    def score(part: Keys) -> Array:
        s = part.k_BKSH.shape[2]
        q_BKQH = rows(q_BTNH if part.q_BTNH is None else part.q_BTNH)
        z = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, part.k_BKSH, preferred_element_type=jnp.float32) * scale
        z = z.reshape(b, heads, group, t, s)
        if part.bias_BN1S is not None:
            z = z + part.bias_BN1S.reshape(b, heads, group, -1, s)
        if part.mix is not None:
            z = z + part.mix.bias().reshape(b, heads, group, t, s)
        if softcap is not None:
            z = softcap * jnp.tanh(z / softcap)
        seen = part.seen_BTS[:, None] if part.seen_BTS.ndim == 3 else part.seen_BTS
        return jnp.where(seen[:, :, None], z, HIDDEN)

    scores = [score(part) for part in parts]
    top = functools.reduce(jnp.maximum, [z.max(-1, keepdims=True) for z in scores])
    total = jnp.zeros_like(top)
    if sinks_N is not None:
        sink = sinks_N.astype(jnp.float32).reshape(1, heads, group, 1, 1)
        top = jnp.maximum(top, sink)
        total = jnp.exp(sink - top)
    y = jnp.zeros((), q_BTNH.dtype)
    for part, z in zip(parts, scores, strict=True):
        weight = jnp.exp(z - top)
        total = total + weight.sum(-1, keepdims=True)
        weight = weight.reshape(b, heads, group * t, -1).astype(part.v_BKSH.dtype)
        y = y + jnp.einsum("BKQS,BKSH->BKQH", weight, part.v_BKSH)
    # dividing here, and not the weights, costs H and not S operations a query
    y = y.reshape(b, heads, group, t, -1) / total.astype(y.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, t, n, -1)
