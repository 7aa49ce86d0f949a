"""The paths of a mixture of experts against each other and against NumPy in float64."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forge_jax import Forge, ForgeConfig, generate, parallel
from forge_jax.decoder import Driver, Inputs, forward, inputs
from forge_jax.ops import Call, Context
from forge_jax.ops.moe import PATHS, block_size, moe, places
from forge_jax.ops.router import route
from forge_jax.params import Tree, flatten, init, op_params, unflatten
from forge_jax.quantization import encode_leaf, packer
from forge_jax.spec import Attention, Block, Branch, Clamp, Mlp, ModelSpec, Moe, Norm, Rope, Router
from forge_jax.training import balance_loss, balanced, routing, z_loss

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


@partial(jax.jit, static_argnums=(0, 3))  # one program is sooner compiled than each of its steps
def run(op: Moe, params: Tree, x: jax.Array, experts: str) -> jax.Array:
    return moe(op, params, x, None, call(x), Context(experts=experts))[0]  # type: ignore[arg-type]


def exact(op: Moe, params: Tree, x: jax.Array) -> np.ndarray:
    """Token by token, expert by expert, in float64."""
    p = {key: np.asarray(leaf, np.float64) for key, leaf in flatten(params)}
    ids, weights = (np.asarray(part) for part in jax.jit(route, static_argnums=0)(op.router, params, x))
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


@pytest.mark.parametrize("shape", [(1, 1), pytest.param((2, 1), marks=pytest.mark.slow), (2, 40)])
@pytest.mark.parametrize("name", OPS)
def test_paths_agree(name: str, shape: tuple[int, int]) -> None:
    op, x = OPS[name], tokens(*shape)
    params = draw(op)
    expected = exact(op, params, x)
    for experts in PATHS:
        found = run(op, params, x, experts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_experts_of_closed_groups_are_chosen_where_their_score_is_the_better() -> None:
    router = Router(4, 2, "sigmoid", choice_bias=True, groups=(2, 1), group_top=2)
    params = {"router": jnp.zeros((DIM, 4)), "choice_bias": jnp.asarray([1.0, -0.75, -0.5, -0.5])}
    chosen = lambda router: np.asarray(route(router, params, tokens(1, 1))[0])[0, 0].tolist()  # noqa: E731
    assert chosen(router) == [0, 1]
    assert chosen(replace(router, closed=0.0)) == [0, 2]


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
    expected, *others = (
        jax.jit(jax.grad(partial(loss, experts=way)))(params) for way in ("every", "best", "gathered", "ragged")
    )
    for found in others:
        for (path, a), (_, b) in zip(flatten(expected), flatten(found), strict=True):
            assert float(jnp.abs(a).max()) > 0, path
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * float(jnp.abs(a).max()), err_msg=path)


def test_packed_experts_stay_packed() -> None:
    op, x = OPS["plain"], tokens(2, 40)
    described = op_params(op, DIM)
    params = {
        k: leaf if k == "router" else encode_leaf(leaf, described[k], packer("int8")) for k, leaf in draw(op).items()
    }
    assert params["up"].parts["scale"].shape == (8, 20, 1)
    plain = {k: leaf if k == "router" else leaf.dense() for k, leaf in params.items()}
    expected = exact(op, plain, x)
    for experts in PATHS:
        found = run(op, params, x, experts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_rows_of_a_block_have_one_expert() -> None:
    rng = np.random.default_rng(0)
    for rows, experts in ((64, 4), (640, 16), (50, 3)):
        ids = rng.integers(0, experts + 2, rows)  # some stand for none
        size = block_size(rows, experts)
        count = rows // size + experts
        place, expert, used = map(
            np.asarray, jax.jit(places, static_argnums=(1, 2, 3))(jnp.asarray(ids), experts, size, count)
        )
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


# ------------------------------------------------------------------------------------------------ devices
def small(op: Moe, layers: int = 2) -> ModelSpec:
    norm = Norm(1e-3)
    attention = Attention(4, 2, 4, 0.5, Rope(4))
    block = Block((Branch("attention", attention, pre=norm), Branch("moe", op, pre=norm)))
    return ModelSpec(32, DIM, (block,) * layers, 64, norm)


@pytest.mark.parametrize("name", ["biases, clamp", "identity", pytest.param("shared", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("shards", "experts"), [(1, 4), (2, 2)])
def test_experts_on_several_devices(name: str, shards: int, experts: int) -> None:
    spec = small(OPS[name], 1)
    params = init(spec, jax.random.key(0))
    # 7 tokens: no multiple of the devices
    ids = np.random.default_rng(2).integers(0, 32, (1, 7)).astype(np.int32)
    expected = np.asarray(jax.jit(forward, static_argnums=0)(spec, params, inputs(ids))[0])
    mesh = parallel.make_mesh(shards, experts=experts)
    placed = parallel.shard(spec, params, mesh, expert_axis="expert")
    assert placed["layers"]["0"]["moe"]["up"].sharding.shard_shape((8, DIM, 20)) == (8 // experts, DIM, 20 // shards)
    found, _ = parallel.sharded_forward(spec, mesh, expert_axis="expert")(placed, inputs(ids))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_experts_that_cannot_be_shared_out_are_refused() -> None:
    spec = small(OPS["plain"])
    with pytest.raises(ValueError, match="layer 0: 8 experts cannot be spread evenly over the 3 devices of 'expert'"):
        parallel.sharded_forward(spec, parallel.make_mesh(1, experts=3), expert_axis="expert")
    with pytest.raises(ValueError, match="expected 'expert'"):
        parallel.sharded_forward(spec, parallel.make_mesh(2), expert_axis="expert")


# ------------------------------------------------------------------------------------------------ balance
@partial(jax.jit, static_argnums=(0, 2))
def recorded(spec: ModelSpec, params: Tree, driver: Driver = "loop"):
    ids = np.random.default_rng(3).integers(0, 32, (2, 9)).astype(np.int32)
    order = np.broadcast_to(np.arange(9), (2, 9)).copy()
    order[1, 5:] = -1  # padding
    return forward(spec, params, Inputs(jnp.asarray(ids), jnp.asarray(order)), routing(spec), driver=driver)[1]


def test_losses_are_those_of_the_papers() -> None:
    spec = small(OPS["plain"])
    params = init(spec, jax.random.key(0))
    cache = recorded(spec, params)
    for i in range(2):
        record = cache.layers[i]["moe"]
        assert float(record.tokens) == 14
        assert float(record.chosen_E.sum()) == pytest.approx(14 * 3)
        assert float(record.probability_E.sum()) == pytest.approx(14, rel=1e-5)
    share, chance = (np.stack([getattr(c["moe"], n) for c in cache.layers]) / 14 for n in ("chosen_E", "probability_E"))
    assert float(balance_loss(spec, cache)) == pytest.approx(8 * (share * chance).sum(1).mean(), rel=1e-5)
    assert float(balance_loss(spec, cache)) >= 3 - 1e-4
    assert float(z_loss(spec, cache)) > 0
    again = recorded(spec, params, "scan")
    assert float(balance_loss(spec, again)) == pytest.approx(float(balance_loss(spec, cache)), rel=1e-5)
    with pytest.raises(ValueError, match="no mixture of experts"):
        routing(replace(spec, layers=()))


def test_losses_move_the_routers() -> None:
    spec = small(OPS["plain"])
    params = init(spec, jax.random.key(0))
    params["layers"]["0"]["moe"]["router"] = params["layers"]["0"]["moe"]["router"].at[:, 0].add(1.0)
    for loss in (balance_loss, z_loss):
        value = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss(spec, recorded(spec, p))))
        before, gradient = value(params)
        assert float(jnp.abs(gradient["layers"]["0"]["moe"]["router"]).max()) > 0
        after, _ = value(jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient))
        assert float(after) < float(before)


def test_choice_biases_move_towards_balance() -> None:
    spec = small(OPS["groups"])
    params = init(spec, jax.random.key(0))
    cache = recorded(spec, params)
    moved = balanced(spec, params, cache, rate=0.5)
    for i in range(2):
        chosen = np.asarray(cache.layers[i]["moe"].chosen_E)
        bias = np.asarray(moved["layers"][str(i)]["moe"]["choice_bias"])
        np.testing.assert_array_equal(bias, 0.5 * np.sign(chosen.mean() - chosen))
    with pytest.raises(ValueError, match="no router has a choice bias"):
        balanced(small(OPS["plain"]), params, cache)


def test_a_mixture_trains_and_generates() -> None:
    config = ForgeConfig(32, 16, 2, 4, use_moe=True, num_experts=4, hidden_dim=24, max_seq_len=32, dropout=0.0)
    forge = Forge(config=config)
    spec, ids = forge.spec, jnp.asarray(np.tile(np.arange(8), (2, 2)), jnp.int32)
    assert float(forge.get_moe_aux_loss()) == 0

    def loss(params: Tree) -> jax.Array:
        logits, cache = forward(spec, params, inputs(ids), routing(spec))
        right = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], -1)
        return -right.mean() + config.moe_load_balancing * balance_loss(spec, cache)

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params: Tree, state: optax.OptState) -> tuple[jax.Array, Any, optax.OptState]:
        value, gradient = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(gradient, state)
        return value, optax.apply_updates(params, update), state

    params, state, losses = forge.params, optimizer.init(forge.params), []
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in whole numbers
        for _ in range(60):
            value, params, state = step(params, state)
            losses.append(float(value))
    assert losses[-1] < 0.2 < 2 < losses[0]
    logits, _ = forge.forward(ids, return_loss=True)
    assert float(forge.get_moe_aux_loss()) >= 0.01 * (2 - 1e-4)
    out = generate(spec, params, [[0, 1, 2], [0, 1, 2, 3, 4]], max_new_tokens=6)
    assert [o.ids for o in out] == [(3, 4, 5, 6, 7, 0), (5, 6, 7, 0, 1, 2)]
