"""The linear recurrent unit against a loop of its paper's recurrence in float64, whole and in pieces."""

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax.cache.memory import memory
from forge_jax.ops import Call, Context, apply
from forge_jax.params import Tree, init
from forge_jax.spec import Block, Branch, Lru, ModelSpec

BATCH, LENGTH, WIDTH = 2, 300, 10
OP = Lru(dim=12, heads=3, taps=4, act="tanh")


def made() -> Tree:
    """Parameters none of which is at a constant."""
    params = init(ModelSpec(5, WIDTH, (Block((Branch("a", OP),)),), 16), jax.random.key(0))["layers"]["0"]["a"]
    keys = jax.random.split(jax.random.key(1), len(params))
    return {
        name: leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, params.items(), strict=True)
    }


def recurrence(params: Tree, x: np.ndarray) -> np.ndarray:
    """h = a h + sqrt(1 - a^2) take u, one token at a time, in float64."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    z = np.tensordot(x, p["x"], 1) + p["x_bias"]
    past = np.concatenate([np.zeros((BATCH, OP.taps - 1, *z.shape[2:])), z], 1)
    u = sum(past[:, i : i + z.shape[1]] * p["conv"][..., i] for i in range(OP.taps)) + p["conv_bias"]
    forget, take = (
        1 / (1 + np.exp(-np.einsum("btnh,nhk->btnk", u, p[name]) - p[f"{name}_bias"])) for name in ("forget", "take")
    )
    a = np.exp(-8 * forget * np.log1p(np.exp(p["speed"])))
    h, states = np.zeros(u.shape[2:])[None], []
    for t in range(x.shape[1]):
        size = np.sqrt(1 - a[:, t] ** 2) if t else 1.0
        h = a[:, t] * h + size * take[:, t] * u[:, t]
        states.append(h)
    y = np.tanh(np.tensordot(x, p["y"], 1) + p["y_bias"]) * np.stack(states, 1)
    return np.tensordot(y, p["out"], 2) + p["out_bias"]


def run(params: Tree, x: jax.Array, order: np.ndarray, state: Tree | None) -> tuple[jax.Array, Tree]:
    where = jnp.asarray(order)
    call = Call(where, jnp.maximum(where, 0)[..., None], jnp.zeros_like(where), {})
    return apply(OP, params, x, state, call, Context())


def test_whole_and_in_pieces_it_is_the_recurrence() -> None:
    params, x = made(), jax.random.normal(jax.random.key(3), (BATCH, LENGTH, WIDTH))
    expected = recurrence(params, np.asarray(x, np.float64))
    whole, nothing = run(params, x, np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH)), None)
    assert nothing is None
    np.testing.assert_allclose(whole, expected, rtol=0, atol=2e-5)

    state = {key: jnp.zeros((BATCH, *slab.shape)) for key, slab in memory(OP, WIDTH).items()}
    done = np.zeros(BATCH, int)
    # tokens of each row in each call; the rest of the call is padding
    for counts in ([270, 3], [1, 1], [0, 1], [1, 0], [17, 40], [1, 1], [10, 254]):
        length = max(counts)
        places, piece = np.full((BATCH, length), -1), np.full((BATCH, length, WIDTH), 7.0, np.float32)
        for row, count in enumerate(counts):
            places[row, :count] = done[row] + np.arange(count)
            piece[row, :count] = x[row, done[row] : done[row] + count]
        y, state = run(params, jnp.asarray(piece), places, state)
        for row, count in enumerate(counts):
            at = slice(done[row], done[row] + count)
            np.testing.assert_allclose(y[row, :count], expected[row, at], rtol=0, atol=2e-5)
        done += counts
    assert done.tolist() == [LENGTH, LENGTH]
