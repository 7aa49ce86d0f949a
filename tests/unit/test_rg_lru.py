"""The real-gated linear recurrent unit against a loop in float64: in one piece, in chunks, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.rg_lru import gated, recur

pytestmark = pytest.mark.usefixtures("quick_compiles")

BATCH, LENGTH, HEADS, SIZE = 2, 23, 3, 4


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def drawn() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Parameters, inputs, and orders: the first row is a whole text, the second goes on and ends in padding."""
    random = np.random.default_rng(0)
    shapes = {"enter": (HEADS, SIZE, SIZE), "forget": (HEADS, SIZE, SIZE), "rate": (HEADS, SIZE)}
    shapes |= {"enter_bias": (HEADS, SIZE), "forget_bias": (HEADS, SIZE)}
    params = {name: random.normal(size=shape) for name, shape in shapes.items()}
    order = np.stack([np.arange(LENGTH), np.where(np.arange(LENGTH) < 17, np.arange(LENGTH) + 5, -1)])
    return params, random.normal(size=(BATCH, LENGTH, HEADS, SIZE)), order


def plain(params: dict[str, np.ndarray], x: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """arXiv:2402.19427, equations 1 to 4, a token at a time; where a text begins there is nothing to forget."""
    h, out = np.zeros((BATCH, HEADS, SIZE)), []
    enter, forget = (
        sigmoid(np.einsum("btnh,nhi->btni", x, params[name]) + params[f"{name}_bias"]) for name in ("enter", "forget")
    )
    for t in range(LENGTH):
        a = sigmoid(-params["rate"]) ** (8 * forget[:, t])
        first, real = (mark[:, None, None] for mark in (order[:, t] == 0, order[:, t] >= 0))
        now = np.where(first, 1, np.sqrt(1 - a * a)) * enter[:, t] * x[:, t]
        h = np.where(real, np.where(first, 0, a) * h + now, h)
        out.append(h)
    return h, np.stack(out, 1)


@pytest.mark.parametrize("cut", [[23], [7, 1, 9, 6], [1] * 23], ids=str)
def test_it_is_the_formula(drawn: tuple[dict[str, np.ndarray], np.ndarray, np.ndarray], cut: list[int]) -> None:
    params, x, order = drawn
    last, expected = plain(params, x, order)
    given = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    h, found = jnp.zeros(last.shape, jnp.float32), []
    for stop, length in zip(np.cumsum(cut), cut, strict=True):
        part = slice(stop - length, stop)
        piece = gated(given, jnp.asarray(x[:, part], jnp.float32), jnp.asarray(order[:, part], jnp.int32))
        h, y = over_chunks(recur, h, piece, 4)  # the last piece is filled up
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(h, last, rtol=0, atol=1e-6 * np.abs(last).max())


def test_gradients_are_finite_where_nothing_is_forgotten() -> None:
    order = jnp.asarray([[0, 1, 2, -1]], jnp.int32)
    zeros, ones = jnp.zeros((1, 2, 2)), jnp.ones((1, 2))
    params = {"enter": zeros, "forget": zeros, "enter_bias": ones, "forget_bias": ones, "rate": -200 * ones}

    def total(params: dict[str, jax.Array]) -> jax.Array:
        return recur(jnp.zeros((1, 1, 2)), gated(params, jnp.ones((1, 4, 1, 2)), order))[1].sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(params)))
