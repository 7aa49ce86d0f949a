"""The short causal convolution that recurrent ops put before their state: one filter a channel, K taps."""

import math

import jax.numpy as jnp
from jax import Array

from forge_jax.spec import Smoothing
from forge_jax.tensor import Weight, dense


def causal_conv(
    x_BTC: Array, w_CK: Weight, bias_C: Array | None, tail_BCS: Array | None, order_BT: Array, every: int = 1
) -> tuple[Array, Array]:
    """y[t] = bias + sum_k w[k] * x[t - (K - 1) + k], in float32. Returns y [B, T, C] in the dtype of x, and the tail.

    The tail is what the next call needs: the last S = K - 1 inputs of each row, float32. None: nothing came before.
    `every`: taps are so many tokens apart, and the tail is so many times as long.
    Tokens of a row come before its padding (order -1), which does not enter the tail; what y is there means nothing.
    """
    taps_CK = dense(w_CK).astype(jnp.float32)
    length, size = x_BTC.shape[1], taps_CK.shape[1]
    seen_BSC, tail_BCS = history(x_BTC, (size - 1) * every, tail_BCS, order_BT)
    start = jnp.zeros(()) if bias_C is None else bias_C.astype(jnp.float32)[None, None]
    taps = (seen_BSC[:, k * every : k * every + length] * taps_CK[None, None, :, k] for k in range(size))
    y_BTC = sum(taps, start=start)
    return y_BTC.astype(x_BTC.dtype), tail_BCS


def smoothed(
    op: Smoothing, w: Weight, x: Array, tail: Array | None, order_BT: Array, filters_BTKS: Array | None = None
) -> tuple[Array, Array]:
    """scale * (x + convolution of x), float32 inside, for channels [B, T, C] or the features of heads [B, T, N, H].

    Returns it and the tail.
    """
    if filters_BTKS is not None:
        return dynamic(op, w, filters_BTKS, x, tail, order_BT)
    wide = x.astype(jnp.float32)
    conv = causal_conv if x.ndim == 3 else convolved
    y, tail = conv(wide, w, None, tail, order_BT)
    return ((wide + y) * op.scale).astype(x.dtype), tail


def dynamic(
    op: Smoothing, w_KHS: Weight, w_BTKS: Array, x_BTKH: Array, tail: Array | None, order_BT: Array
) -> tuple[Array, Array]:
    """`smoothed` with filters that the tokens change; S taps, from a token backwards."""
    batch, length, heads, dim = x_BTKH.shape
    tail = None if tail is None else tail.reshape(batch, heads * dim, -1)
    past = op.taps - 1
    seen, tail = history(x_BTKH.reshape(batch, length, heads * dim), past, tail, order_BT)
    seen = seen.reshape(batch, -1, heads, dim)
    taps = dense(w_KHS).astype(jnp.float32)[None, None] + w_BTKS.astype(jnp.float32)[:, :, :, None]
    y = sum(seen[:, past - lag : past - lag + length] * taps[..., lag] for lag in range(op.taps))
    wide = x_BTKH.astype(jnp.float32)
    return ((wide + y) * op.scale).astype(x_BTKH.dtype), tail.reshape(batch, heads, dim, -1)


def history(x_BTC: Array, past: int, tail_BCS: Array | None, order_BT: Array) -> tuple[Array, Array]:
    """The inputs of a convolution, the `past` tokens before them first [B, past + T, C], and the next tail; float32."""
    batch, _, channels = x_BTC.shape
    if tail_BCS is None:
        tail_BCS = jnp.zeros((batch, channels, past), jnp.float32)
    seen_BSC = jnp.concatenate([tail_BCS.transpose(0, 2, 1), x_BTC.astype(jnp.float32)], 1)
    count_B1 = (order_BT >= 0).sum(1, keepdims=True)
    last_BS = count_B1 + jnp.arange(past)[None]
    tail_BSC = jnp.take_along_axis(seen_BSC, last_BS[..., None], axis=1)
    return seen_BSC, tail_BSC.transpose(0, 2, 1)


def convolved(
    x_BTNH: Array, w_NHK: Weight, bias_NH: Array | None, tail_BNHS: Array | None, order_BT: Array, every: int = 1
) -> tuple[Array, Array]:
    """`causal_conv` over channels that are the features of heads."""
    batch, length, *heads = x_BTNH.shape
    channels = math.prod(heads)
    y, tail = causal_conv(
        x_BTNH.reshape(batch, length, channels),
        dense(w_NHK).reshape(channels, -1),
        None if bias_NH is None else bias_NH.reshape(channels),
        None if tail_BNHS is None else tail_BNHS.reshape(batch, channels, tail_BNHS.shape[-1]),
        order_BT,
        every,
    )
    return y.reshape(x_BTNH.shape), tail.reshape(batch, *heads, tail.shape[-1])
