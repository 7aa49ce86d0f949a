"""The paths of a mixture of experts against each other and against NumPy in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops import Call, Context
from forge_jax.ops.moe import block_size, moe, places
from forge_jax.ops.router import route
from forge_jax.params import Tree, flatten, op_params, unflatten
from forge_jax.quantization.int8 import encode_leaf
from forge_jax.spec import Clamp, Mlp, Moe, Router

DIM = 12
ROUTER = Router(8, 3, renorm=1.0)
OPS = {
    "plain": Moe(ROUTER, 20),
    "not gated": Moe(ROUTER, 20, gated=False, act="relu2"),
    "biases, clamp": Moe(replace(ROUTER, logit_bias=True), 20, bias=True, clamp=Clamp(0.5)),
    "shared": Moe(ROUTER, 20, shared=Mlp(16), shared_gate=True),
    "identity": Moe(ROUTER, 20, identity=4),
    "input scaled": Moe(replace(ROUTER, top_k=1, score="chosen_sigmoid", renorm=None), 20, scale_input=True),
    "groups": Moe(Router(8, 3, "sigmoid", choice_bias=True, groups=(4, 2), group_top=2, scale=2.5), 20),
}


def draw(op: Moe, seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    described = dict(flatten(op_params(op, DIM)))
    return unflatten({k: jnp.asarray(rng.normal(size=p.shape) * 0.5, jnp.float32) for k, p in described.items()})


def tokens(batch: int, length: int, seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, DIM)), jnp.float32)


def call(x: jax.Array) -> Call:
    order = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    return Call(order, order[..., None], jnp.zeros_like(order), {})


def run(op: Moe, params: Tree, x: jax.Array, experts: str) -> jax.Array:
    return moe(op, params, x, None, call(x), Context(experts=experts))[0]  # type: ignore[arg-type]


def exact(op: Moe, params: Tree, x: jax.Array) -> np.ndarray:
    """Token by token, expert by expert, in float64."""
    p = {key: np.asarray(leaf, np.float64) for key, leaf in flatten(params)}
    ids, weights = (np.asarray(part) for part in route(op.router, params, x))
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731
    act = {"silu": silu, "relu2": lambda z: np.maximum(z, 0) ** 2}[op.act]

    def feed(v: np.ndarray, e: int) -> np.ndarray:
        up = v @ p["up"][e] + (p["up_bias"][e] if op.bias else 0)
        if not op.gated:
            inner = act(up)
        else:
            gate = v @ p["gate"][e] + (p["gate_bias"][e] if op.bias else 0)
            if op.clamp:
                gate, up = np.minimum(gate, op.clamp.limit), np.clip(up, -op.clamp.limit, op.clamp.limit)
                inner = gate / (1 + np.exp(-op.clamp.alpha * gate)) * (up + op.clamp.offset)
            else:
                inner = act(gate) * up
        return inner @ p["down"][e] + (p["down_bias"][e] if op.bias else 0)

    out = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:2]):
        v = np.asarray(x[at], np.float64)
        for e, w in zip(ids[at], weights[at], strict=True):
            if e >= op.router.experts:
                out[at] += w * v
            else:
                out[at] += feed(v * w, e) if op.scale_input else w * feed(v, e)
        if op.shared:
            gate = 1 / (1 + np.exp(-(v @ p["shared_gate"]))) if op.shared_gate else 1
            out[at] += gate * ((silu(v @ p["shared.gate"]) * (v @ p["shared.up"])) @ p["shared.down"])
    return out


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 40)])
@pytest.mark.parametrize("name", OPS)
def test_paths_agree(name: str, shape: tuple[int, int]) -> None:
    op, x = OPS[name], tokens(*shape)
    params = draw(op)
    expected = exact(op, params, x)
    for experts in ("every", "grouped"):
        found = jax.jit(run, static_argnums=(0, 3))(op, params, x, experts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_no_token_is_dropped_when_all_choose_the_same_expert() -> None:
    op = Moe(replace(ROUTER, top_k=1, logit_bias=True), 20)
    x = tokens(2, 100)
    params = draw(op) | {"router_bias": jnp.asarray([0.0, 0, 0, 99, 0, 0, 0, 0])}
    assert (np.asarray(route(op.router, params, x)[0]) == 3).all()
    found, expected = run(op, params, x, "grouped"), exact(op, params, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_gradients_agree() -> None:
    op, x = OPS["shared"], tokens(2, 40)
    params = draw(op)
    loss = lambda p, experts: (run(op, p, x, experts) ** 2).sum()  # noqa: E731
    expected, found = (jax.grad(partial(loss, experts=path))(params) for path in ("every", "grouped"))
    for (path, a), (_, b) in zip(flatten(expected), flatten(found), strict=True):
        assert float(jnp.abs(a).max()) > 0, path
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * float(jnp.abs(a).max()), err_msg=path)


def test_packed_experts_stay_packed() -> None:
    op, x = OPS["plain"], tokens(2, 40)
    described = op_params(op, DIM)
    params = {k: leaf if k == "router" else encode_leaf(leaf, described[k]) for k, leaf in draw(op).items()}
    assert params["up"].scale.shape == (8, 1, 20)
    plain = {k: leaf if k == "router" else leaf.dense() for k, leaf in params.items()}
    expected = exact(op, plain, x)
    for experts in ("every", "grouped"):
        found = run(op, params, x, experts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_rows_of_a_block_have_one_expert() -> None:
    rng = np.random.default_rng(0)
    for rows, experts in ((64, 4), (640, 16), (50, 3)):
        ids = rng.integers(0, experts + 2, rows)  # some stand for none
        size = block_size(rows, experts)
        count = rows // size + experts
        place, expert, used = map(np.asarray, places(jnp.asarray(ids), experts, size, count))
        real = ids < experts
        assert len(set(place[real])) == real.sum()
        assert (place[~real] == count * size).all()
        np.testing.assert_array_equal(expert[place[real] // size], ids[real])
        assert used[place[real] // size].all()
        assert used.sum() == sum(-(-(ids == e).sum() // size) for e in range(experts))


@pytest.mark.parametrize(
    "bad", [{"top_k": 9}, {"top_k": 0}, {"groups": (3, 1)}, {"groups": (4, 1)}, {"groups": (4, 2), "group_top": 3}]
)
def test_impossible_routers_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="router: .* 8 experts|router: 8 experts|router: . of 8"):
        replace(ROUTER, **bad)
