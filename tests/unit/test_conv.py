"""The short convolution against a loop in float64, in pieces and with padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.conv import causal_conv

BATCH, LENGTH, CHANNELS = 2, 13, 5


def plain(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The definition, one token and one tap at a time."""
    y = np.zeros(x.shape, np.float64)
    for t in range(x.shape[1]):
        for k in range(w.shape[1]):
            if (at := t - (w.shape[1] - 1) + k) >= 0:
                y[:, t] += w[:, k] * x[:, at]
    return y if bias is None else y + bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_pieces_with_padding_are_the_definition(size: int, with_bias: bool) -> None:
    draw = np.random.default_rng(0)
    x, w = draw.normal(size=(BATCH, LENGTH, CHANNELS)), draw.normal(size=(CHANNELS, size))
    bias = draw.normal(size=CHANNELS) if with_bias else None
    expected = plain(x, w, bias)
    tail, done = None, np.zeros(BATCH, int)
    for counts in ([4, 2], [1, 1], [0, 3], [5, 1], [1, 0], [2, 6]):  # tokens of each row; the rest is padding
        length = max(counts)
        order, piece = np.full((BATCH, length), -1), np.full((BATCH, length, CHANNELS), 7.0)
        for row, count in enumerate(counts):
            order[row, :count] = done[row] + np.arange(count)
            piece[row, :count] = x[row, done[row] : done[row] + count]
        f32 = [None if v is None else jnp.asarray(v, jnp.float32) for v in (piece, w, bias)]
        assert f32[0] is not None
        assert f32[1] is not None
        y, tail = causal_conv(f32[0], f32[1], f32[2], tail, jnp.asarray(order))
        assert tail.shape == (BATCH, CHANNELS, size - 1)
        for row, count in enumerate(counts):
            at = slice(done[row], done[row] + count)
            np.testing.assert_allclose(y[row, :count], expected[row, at], rtol=0, atol=1e-5)
        done += counts
    assert done.tolist() == [LENGTH, LENGTH]


def test_the_result_has_the_dtype_of_the_input() -> None:
    x = jnp.ones((1, 3, 2), jnp.bfloat16)
    y, tail = causal_conv(x, jnp.ones((2, 4)), None, None, jnp.arange(3)[None])
    assert y.dtype == jnp.bfloat16
    assert tail.dtype == jnp.float32
