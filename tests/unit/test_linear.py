"""Linear attention against its formula in float64, whole and token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.cache.memory import memory
from forge_jax.ops import Call, Context, apply
from forge_jax.params import Tree, flatten, init
from forge_jax.spec import Block, Branch, Gate, LinearAttention, ModelSpec, Norm

pytestmark = pytest.mark.usefixtures("quick_compiles")

BATCH, LENGTH, WIDTH = 2, 150, 12
OP = LinearAttention(heads=3, head_dim=5, rate=0.7, ratio=0.02, norm=Norm(1e-3), gate=Gate())


@pytest.fixture(scope="module")
def params() -> Tree:
    made = init(ModelSpec(5, WIDTH, (Block((Branch("a", OP),)),), 16), jax.random.key(0))["layers"]["0"]["a"]
    return made | {"norm": {"scale": jax.random.uniform(jax.random.key(2), (3, 5), minval=0.5)}}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, LENGTH, WIDTH))


def formula(params: Tree, x: np.ndarray) -> np.ndarray:
    """y[t] = sum over u <= t of exp(-rate (t - u)) (q[t] . k[u]) v[u], normalised over all heads, gated."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params)}
    q, k, v = (z / (1 + np.exp(-z)) for z in (np.tensordot(x, p[name], 1) for name in "qkv"))
    back = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    rates = OP.rate * OP.ratio ** np.arange(OP.heads)
    decay = np.where(back >= 0, np.exp(-rates[:, None, None] * np.maximum(back, 0)), 0)
    y = np.einsum("btnh,bunh,ntu,bunv->btnv", q, k, decay, v)
    y = y / np.sqrt((y * y).mean((2, 3), keepdims=True) + 1e-3) * p["norm.scale"]
    return np.tensordot(y / (1 + np.exp(-np.tensordot(x, p["gate"], 1))), p["o"], 2)


@pytest.mark.parametrize("cut", [[LENGTH], [100, 1, 49], [1] * LENGTH], ids=["whole", "pieces", "tokens"])
def test_it_is_the_formula(params: Tree, x: np.ndarray, cut: list[int]) -> None:
    run = jax.jit(lambda x, state, call: apply(OP, params, x, state, call, Context()))
    state = {name: jnp.zeros((BATCH, *slab.shape)) for name, slab in memory(OP, WIDTH).items()}
    found = []
    for stop, length in zip(np.cumsum(cut), cut, strict=True):
        order = jnp.broadcast_to(jnp.arange(stop - length, stop, dtype=jnp.int32)[None], (BATCH, length))
        call = Call(order, order[..., None], jnp.zeros_like(order), {})
        y, state = run(jnp.asarray(x[:, stop - length : stop], jnp.float32), state, call)
        found.append(y)
    expected = formula(params, x)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
