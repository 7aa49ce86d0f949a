"""The delta rule against a loop of its paper's recurrence in float64, whole, in pieces and token by token."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.cache.memory import memory
from forge_jax.ops import Call, Context, apply
from forge_jax.params import Tree, flatten, init
from forge_jax.spec import Block, Branch, Decay, DeltaNet, ModelSpec, Norm

pytestmark = pytest.mark.usefixtures("quick_compiles")

BATCH, LENGTH, WIDTH = 2, 150, 12
HEAD = DeltaNet(key_heads=2, value_heads=4, key_dim=6, value_dim=5, taps=3, norm=Norm(1e-3))
FEATURE = replace(HEAD, key_heads=4, decay=Decay("feature", rank=3), gate="sigmoid", gate_rank=2)
OPS = {
    "head": HEAD,
    "negative eigenvalues": replace(HEAD, beta_scale=2.0),
    "feature": FEATURE,
    "floor": replace(FEATURE, decay=Decay("feature", floor=-5.0), act="tanh", gate_rank=None),
}


def made(op: DeltaNet) -> Tree:
    """Parameters none of which is at a constant; decays differ and some are near 1."""
    params = init(ModelSpec(5, WIDTH, (Block((Branch("a", op),)),), 16), jax.random.key(0))["layers"]["0"]["a"]
    spread = jnp.linspace(-4.0, 1.0, op.value_heads)
    shift = jax.random.normal(jax.random.key(1), params["dt_bias"].shape)
    scale = jax.random.uniform(jax.random.key(2), (op.value_dim,), minval=0.5)
    return params | {"a_log": spread, "dt_bias": shift, "norm": {"scale": scale}}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def recurrence(op: DeltaNet, params: Tree, x: np.ndarray) -> np.ndarray:
    """S = D S + beta k (v - k D S), y = q S, one token and one head at a time, in float64."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params)}
    act = {"silu": lambda z: z * sigmoid(z), "tanh": np.tanh, "sigmoid": sigmoid}

    def linear(name: str) -> np.ndarray:
        z = x @ p[f"{name}_in"] if f"{name}_in" in p else x
        return np.tensordot(z, p[name], 1)

    def mixed(name: str) -> np.ndarray:
        z = linear(name)
        past = np.concatenate([np.zeros((BATCH, op.taps - 1, *z.shape[2:])), z], 1)
        return act[op.act](sum(past[:, i : i + z.shape[1]] * p[f"{name}_conv"][..., i] for i in range(op.taps)))

    q, k, v = (mixed(name) for name in "qkv")
    q, k = (z / np.sqrt((z * z).sum(-1, keepdims=True) + 1e-6) for z in (q, k))
    beta = op.beta_scale * sigmoid(linear("beta"))
    z, speed = linear("decay") + p["dt_bias"], np.exp(p["a_log"])
    if op.decay.over == "head":
        z = z[..., None]
    if op.decay.floor is None:
        decay = np.exp(-speed[:, None] * np.log1p(np.exp(z)))
    else:
        decay = np.exp(op.decay.floor * sigmoid(speed[:, None] * z))
    y = np.zeros_like(v)
    for b in range(BATCH):
        for n in range(op.value_heads):
            head, state = n // (op.value_heads // op.key_heads), np.zeros((op.key_dim, op.value_dim))
            for t in range(x.shape[1]):
                state = decay[b, t, n][:, None] * state
                key = k[b, t, head]
                state = state + beta[b, t, n] * np.outer(key, v[b, t, n] - key @ state)
                y[b, t, n] = q[b, t, head] @ state / np.sqrt(op.key_dim)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + op.norm.eps) * p["norm.scale"] * act[op.gate](linear("gate"))
    return np.tensordot(y, p["o"], 2)


@partial(jax.jit, static_argnums=0)
def run(op: DeltaNet, params: Tree, x: jax.Array, order: jax.Array, state: Tree | None) -> tuple[jax.Array, Tree]:
    call = Call(order, jnp.maximum(order, 0)[..., None], jnp.zeros_like(order), {})
    return apply(op, params, x, state, call, Context())


@pytest.mark.parametrize("name", OPS)
def test_whole_and_in_pieces_it_is_the_recurrence(name: str) -> None:
    op = OPS[name]
    params, x = made(op), jax.random.normal(jax.random.key(3), (BATCH, LENGTH, WIDTH))
    expected = recurrence(op, params, np.asarray(x, np.float64))
    order = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    whole, nothing = run(op, params, x, order, None)
    assert nothing is None
    np.testing.assert_allclose(whole, expected, rtol=0, atol=2e-5)

    state = {key: jnp.zeros((BATCH, *slab.shape)) for key, slab in memory(op, WIDTH).items()}
    done = np.zeros(BATCH, int)
    # the length of each call and the tokens of each row in it; the rest of the call is padding
    calls = (
        (70, [70, 3]),
        (1, [1, 1]),
        (1, [0, 1]),
        (1, [1, 0]),
        (40, [17, 40]),
        (1, [1, 1]),
        (70, [60, 70]),
        (40, [0, 34]),
    )
    for length, counts in calls:
        places, piece = np.full((BATCH, length), -1), np.full((BATCH, length, WIDTH), 7.0, np.float32)
        for row, count in enumerate(counts):
            places[row, :count] = done[row] + np.arange(count)
            piece[row, :count] = x[row, done[row] : done[row] + count]
        y, state = run(op, params, jnp.asarray(piece), places, state)
        assert {key: leaf.shape for key, leaf in state.items()} == {
            key: (BATCH, *slab.shape) for key, slab in memory(op, WIDTH).items()
        }
        for row, count in enumerate(counts):
            at = slice(done[row], done[row] + count)
            np.testing.assert_allclose(y[row, :count], expected[row, at], rtol=0, atol=2e-5)
        done += counts
    assert done.tolist() == [LENGTH, LENGTH]


def test_keys_that_repeat_do_not_lose_precision() -> None:
    """The same token over and over: the inverse of the system by powers of it would overflow what float32 can hold."""
    op = replace(HEAD, beta_scale=2.0)
    params = made(op) | {"a_log": jnp.full((op.value_heads,), -9.0)}
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(4), (BATCH, 1, WIDTH)), (BATCH, LENGTH, WIDTH))
    order = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    found, _ = run(op, params, x, order, None)
    np.testing.assert_allclose(found, recurrence(op, params, np.asarray(x, np.float64)), rtol=0, atol=5e-5)
