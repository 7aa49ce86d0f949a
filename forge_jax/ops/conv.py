"""The short causal convolution that recurrent ops put before their state: one filter a channel, K taps."""

import math

import jax.numpy as jnp
from jax import Array

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
    (batch, length, channels), size = x_BTC.shape, taps_CK.shape[1]
    reach = (size - 1) * every
    if tail_BCS is None:
        tail_BCS = jnp.zeros((batch, channels, reach), jnp.float32)
    seen_BSC = jnp.concatenate([tail_BCS.transpose(0, 2, 1), x_BTC.astype(jnp.float32)], 1)
    start = jnp.zeros(()) if bias_C is None else bias_C.astype(jnp.float32)[None, None]
    taps = (seen_BSC[:, k * every : k * every + length] * taps_CK[None, None, :, k] for k in range(size))
    y_BTC = sum(taps, start=start)
    count_B1 = (order_BT >= 0).sum(1, keepdims=True)
    last_BS = count_B1 + jnp.arange(reach)[None]
    tail_BSC = jnp.take_along_axis(seen_BSC, last_BS[..., None], axis=1)
    return y_BTC.astype(x_BTC.dtype), tail_BSC.transpose(0, 2, 1)


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
