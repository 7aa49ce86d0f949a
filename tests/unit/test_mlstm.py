"""The matrix memory: all its forms against the formula in float64, without a stabiliser."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.mlstm import recur, step

pytestmark = pytest.mark.usefixtures("quick_compiles")

EPS = 1e-6
TOKENS = 11


def pieces(scale: float) -> tuple[np.ndarray, ...]:
    """q, k, v, input and forget gates of 2 rows, 3 heads; the second row has padding at its end."""
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (draw((2, TOKENS, 3, size)).astype(np.float32) for size in (4, 4, 5))
    i, f = (scale * draw((2, TOKENS, 3)).astype(np.float32) for _ in range(2))
    real = np.ones((2, TOKENS, 1), bool)
    real[1, 8:] = False
    forget = np.where(real, -np.logaddexp(0, -f), 0).astype(np.float32)
    return q, k, v, i, forget, real


def start() -> dict[str, jnp.ndarray]:
    return {"values": jnp.zeros((2, 3, 4, 5)), "keys": jnp.zeros((2, 3, 4)), "top": jnp.zeros((2, 3))}


def formula(piece: tuple[np.ndarray, ...]) -> np.ndarray:
    """What is read, each token's weight written out."""
    q, k, v, i, f, _ = (part.astype(np.float64) for part in piece)
    out = np.zeros((2, TOKENS, 3, 5))
    for t in range(TOKENS):
        log = i[:, : t + 1] + np.stack([f[:, u + 1 : t + 1].sum(1) for u in range(t + 1)], 1)
        top = np.maximum(log.max(1), f[:, : t + 1].sum(1))  # an empty memory counts as a weight of 1
        scores = np.einsum("bnh,bunh->bun", q[:, t], k[:, : t + 1]) * np.exp(log)
        size = np.maximum(np.abs(scores.sum(1)), 1) + EPS * np.exp(top)
        out[:, t] = np.einsum("bun,bunv->bnv", scores, v[:, : t + 1]) / size[..., None]
    return out


@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("size", [1, 3, 4, 64])
def test_every_form_is_the_formula(scale: float, size: int) -> None:
    piece = pieces(scale)
    run = partial(step if size == 1 else recur, EPS)
    _, y = jax.jit(lambda state, piece: over_chunks(run, state, piece, size))(start(), tuple(map(jnp.asarray, piece)))
    expected = formula(piece)
    real = piece[-1][..., 0]
    np.testing.assert_allclose(np.asarray(y)[real], expected[real], rtol=2e-4, atol=2e-5)


def test_padding_leaves_the_state_alone() -> None:
    piece: Any = tuple(map(jnp.asarray, pieces(3.0)))
    run = jax.jit(partial(recur, EPS))
    whole, _ = run(start(), piece)
    part: Any = tuple(leaf[:, :8] for leaf in piece)
    short, _ = run(start(), part)
    for name, value in short.items():
        np.testing.assert_allclose(whole[name][1], value[1], rtol=1e-6, err_msg=name)
