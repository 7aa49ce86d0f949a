"""What calibration sees of a model, and what it makes of it: sums against NumPy, folds that change nothing, KLD."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden

from forge_jax import calibration
from forge_jax.calibration.folds import Fold, holding
from forge_jax.calibration.observing import advanced, entries, matrices, observe, paths
from forge_jax.calibration.rounding import round_leaf
from forge_jax.decoder import forward, inputs, share, unshared, whole
from forge_jax.params import Tree, abstract, flatten, init, unflatten
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid, Rounded
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Moe, Norm, Rope, Router
from forge_jax.tensor import Observed, QTensor, contract, pick, take

RMS = Norm(1e-3)
ATTENTION = Branch("attention", Attention(4, 2, 8, 0.4, rope=Rope(8)), pre=RMS)
MOE = Moe(Router(4, 2, renorm=1.0), 24, shared=Mlp(16))
MIXED = ModelSpec(
    64,
    16,
    (
        Block((ATTENTION, Branch("mlp", Mlp(24), pre=RMS))),
        Block((replace(ATTENTION, pre=Norm(1e-3, offset=1.0)), Branch("moe", MOE, pre=RMS))),
    ),
    64,
    RMS,
)


def model(spec: ModelSpec, seed: int = 0) -> Tree:
    """Random weights; those of norms are not all ones."""
    noise = np.random.default_rng(seed)
    leaves = dict(flatten(init(spec, jax.random.key(seed))))
    vary = lambda x: x + jnp.asarray(noise.uniform(-0.4, 0.4, x.shape), x.dtype)  # noqa: E731
    return unflatten({path: vary(x) if x.ndim == 1 else x for path, x in leaves.items()})


def text(vocabulary: int = 64, rows: int = 4, length: int = 24, seed: int = 0) -> np.ndarray:
    """Ids, some far more often than others."""
    rng = np.random.default_rng(seed)
    return (rng.exponential(0.2, (rows, length)).clip(max=0.999) * vocabulary).astype(np.int32)


def logprobs(spec: ModelSpec, params: Tree, ids: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(forward(spec, params, inputs(ids))[0]), np.float64)


def divergence(spec: ModelSpec, params: Tree, other: Tree, ids: np.ndarray) -> float:
    p, q = (logprobs(spec, tree, ids) for tree in (params, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


# ------------------------------------------------------------------------------------------------ what is seen
ALL = ("gram", "square", "absolute", "count")


def seen(eq: str, x: jax.Array, w: jax.Array, stacked: int, ends: int) -> dict[str, np.ndarray]:
    """The sums that `contract` gives as a gradient."""
    n = int(np.prod(w.shape[stacked : stacked + ends]))
    sizes = {"gram": (n, n), "square": (n,), "absolute": (n,), "count": ()}
    taps = {name: jnp.zeros((*w.shape[:stacked], *sizes[name])) for name in ALL}
    found = jax.grad(lambda taps: contract(eq, x, Observed(w, taps, stacked, ends)).sum())(taps)
    return {name: np.asarray(value) for name, value in found.items()}


def check_sums(found: dict[str, np.ndarray], rows: np.ndarray):
    """rows: [R, n], or [stacked, R, n]."""
    rows = rows.astype(np.float64)
    np.testing.assert_allclose(found["gram"], np.swapaxes(rows, -1, -2) @ rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["square"], (rows**2).sum(-2), rtol=1e-5)
    np.testing.assert_allclose(found["absolute"], abs(rows).sum(-2), rtol=1e-5)
    np.testing.assert_array_equal(found["count"], (rows != 0).any(-1).sum(-1))


@pytest.mark.parametrize(
    ("eq", "x", "w", "stacked", "ends", "rows"),
    [
        ("BTD,DNH->BTNH", (2, 3, 5), (5, 2, 4), 0, 1, "BTD->(BT)D"),
        ("BTNH,NHD->BTD", (2, 3, 2, 4), (2, 4, 5), 0, 2, "BTNH"),
        ("BTNI,NIO->BTNO", (2, 3, 2, 4), (2, 4, 5), 1, 1, "stacked"),
        ("ND,EDF->NEF", (6, 5), (3, 5, 4), 1, 1, "each"),
    ],
)
def test_products_tell_their_inputs(eq: str, x: tuple, w: tuple, stacked: int, ends: int, rows: str):
    rng = np.random.default_rng(0)
    values, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))
    values = values.at[0].multiply(0)
    plain, n = np.asarray(values), int(np.prod(w[stacked : stacked + ends]))
    expected = {"stacked": lambda: plain.transpose(2, 0, 1, 3).reshape(2, 6, 4), "each": lambda: np.stack([plain] * 3)}
    check_sums(seen(eq, values, weight, stacked, ends), expected.get(rows, lambda: plain.reshape(-1, n))())


def test_a_product_the_other_way_round_tells_nothing():
    x, w = jnp.ones((2, 3, 4)), jnp.ones((5, 4))
    found = seen("BTV,DV->BTD", x, w, 0, 1)
    assert not any(value.any() for value in found.values())
    leaf = Observed(w, {"square": jnp.zeros(5)})
    np.testing.assert_array_equal(take(leaf, jnp.asarray([1, 2])), w[1:3])


def test_picked_weights_tell_their_own_inputs_through_loops():
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(6, 2, 4)), jnp.float32), jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    which = jnp.asarray([0, 2, 2, 0, 2, 0])

    def run(taps: dict[str, jax.Array]) -> jax.Array:
        leaf = Observed(w, taps, 1, 1)
        one = lambda step: contract("MD,DF->MF", step[0], pick(leaf, step[1]))  # noqa: E731
        return jax.lax.map(one, (x, which)).sum()

    zeros = {"gram": jnp.zeros((3, 4, 4)), "square": jnp.zeros((3, 4)), "absolute": jnp.zeros((3, 4))}
    found = jax.grad(run)(zeros | {"count": jnp.zeros(3)})
    for expert in range(3):
        rows = np.asarray(x)[np.asarray(which) == expert].reshape(-1, 4)
        check_sums({name: np.asarray(value[expert]) for name, value in found.items()}, rows)


def test_experts_see_the_tokens_that_chose_them():
    op = Moe(Router(4, 2, renorm=1.0), 24)
    spec = ModelSpec(64, 16, (Block((Branch("moe", op, pre=RMS),)),), 64, RMS)
    params, ids = model(spec), text()
    states = entries(spec, params, [ids[:2], ids[2:]])
    sums, _ = observe(spec, params, 0, states, matrices, ("gram", "absolute", "square"))
    p = {path: np.asarray(x, np.float64) for path, x in flatten(params["layers"]["0"]["moe"])}
    x = np.asarray(params["embed"], np.float64)[ids].reshape(-1, 16)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * p["pre.scale"]
    chosen = np.argsort(-(x @ p["router"]), axis=1)[:, :2]
    assert set(sums) == {f"layers.0.moe.{name}" for name in ("gate", "up", "down")}
    for e in range(4):
        rows = x[(chosen == e).any(1)]
        gate = rows @ p["gate"][e]
        hidden = gate / (1 + np.exp(-gate)) * (rows @ p["up"][e])
        for name, expected in (("gate", rows), ("up", rows), ("down", hidden)):
            found = sums[f"layers.0.moe.{name}"]
            np.testing.assert_allclose(found["gram"][e], expected.T @ expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found["absolute"][e], abs(expected).sum(0), rtol=1e-4, atol=1e-4)
            assert found["count"][e] == len(rows)
            np.testing.assert_allclose(found["square"][e], (expected**2).sum(0), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ GPTQ
def nearest(spec: ModelSpec, params: Tree, grid: Grid) -> Tree:
    """The chosen parameters rounded to the nearest numbers."""

    def way(rows: np.ndarray, gram: np.ndarray) -> Rounded:
        return Rounded(grid.nearest(rows, lines := grid.lines(rows)), lines)

    described, leaves = dict(flatten(abstract(spec))), dict(flatten(params))
    for path in [path for path, param in described.items() if matrices(path, param)]:
        empty = np.zeros(described[path].shape[: described[path].stacked])
        leaves[path] = round_leaf(leaves[path], described[path], empty, way, grid)
    return unflatten(leaves)


def test_a_model_rounded_by_gptq_is_nearer_than_one_rounded_to_the_nearest():
    params, ids, held_out = model(MIXED), text(rows=64), text(rows=8, seed=1)
    grid = Grid(3, 8)
    found, report = calibration.gptq(MIXED, params, [ids], Gptq(grid, act_order=True))
    rounded = {path for path, leaf in flatten(found) if isinstance(leaf, QTensor)}
    assert rounded == {path for path, param in flatten(abstract(MIXED)) if matrices(path, param)} == report.seen.keys()
    assert report.seen["layers.1.moe.up"].sum() == 2 * ids.size
    for some in (ids, held_out):
        plain = divergence(MIXED, params, nearest(MIXED, params, grid), some)
        assert divergence(MIXED, params, found, some) < 0.8 * plain


def test_a_layer_sees_what_the_rounded_ones_before_it_make():
    params, ids = model(MIXED), text()
    how = Gptq(Grid(2, 8))
    found, _ = calibration.gptq(MIXED, params, [ids], how)
    before = params | {"layers": {"0": found["layers"]["0"], "1": params["layers"]["1"]}}
    states = advanced(MIXED, before, 0, entries(MIXED, before, [ids]))
    sums, _ = observe(MIXED, before, 1, states, matrices, ("gram",))
    for path, param in flatten(abstract(MIXED)):
        if path in sums:
            expected = round_leaf(dict(flatten(params))[path], param, sums[path]["gram"], how.round, how.grid)
            leaf = dict(flatten(found))[path]
            np.testing.assert_array_equal(leaf.parts["codes"], expected.parts["codes"], err_msg=path)
            assert leaf.shape == param.shape


def test_what_layers_share_is_rounded_for_all_of_them():
    shared = Branch("mlp", Mlp(24), pre=RMS, shared="common")
    spec = replace(MIXED, layers=(Block((ATTENTION, shared)), Block((shared,))))
    params, ids = model(spec), text()
    found, report = calibration.gptq(spec, params, [ids], Gptq(Grid(4, 8)))
    assert report.seen["shared.common.up"] == 2 * ids.size
    assert isinstance(found["shared"]["common"]["down"], QTensor)
    assert divergence(spec, params, found, ids) < divergence(spec, params, nearest(spec, params, Grid(4, 8)), ids)


# ------------------------------------------------------------------------------------------------ AWQ
def found_folds(spec: ModelSpec, params: Tree, ids: np.ndarray) -> tuple[dict[int, list[Fold]], Tree]:
    """The folds of each layer, and the parameters with all of them applied with scales of their own."""
    described, states = dict(flatten(abstract(spec))), entries(spec, params, [ids])
    folds, leaves, rng = {}, dict(flatten(params)), np.random.default_rng(1)
    for i, layer in enumerate(spec.layers):
        mine = {near: described[far] for near, far in paths(layer, i, described) if far.startswith(f"layers.{i}.")}
        near = dict(flatten(whole(layer, params["layers"][str(i)], params)))
        x, call = states[0]
        folds[i] = holding(unshared(layer), mine, near, (x, share(call, i)))
        for fold in folds[i]:
            lead = mine[fold.into[0]].shape[: fold.stacked]
            near = fold.applied(near, mine, np.exp2(rng.uniform(-1, 1, (*lead, *fold.shape))))
        leaves |= {f"layers.{i}.{path}": near[path] for path in mine}
        states = advanced(spec, params, i, states)
    return folds, unflatten(leaves)


@pytest.mark.parametrize(
    ("name", "into"),
    [
        ("llama_bias", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]),
        ("gemma2", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]),  # norms that add 1, one after each branch
        ("gpt2", ["attention.pre", "mlp.pre", "attention.v"]),  # what enters "down" has gone through GELU
        ("gpt_neox", ["attention.pre", "mlp.pre", "attention.v"]),  # branches beside each other
        ("cohere", ["pre", "attention.v", "mlp.up"]),  # one norm for both branches
        ("olmo2", ["attention.v", "mlp.up"]),  # no norm before a branch
        ("phimoe", ["attention.pre", "moe.pre", "attention.v", "moe.up"]),
        pytest.param("gpt_oss", ["attention.pre", "moe.pre", "attention.v"], marks=pytest.mark.slow),  # cut, and + 1
        pytest.param("deepseek_v3", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"], marks=pytest.mark.slow),
        pytest.param("qwen3_next", ["delta.pre", "mlp.pre", "mlp.up"], marks=pytest.mark.slow),
        pytest.param("falcon_mamba", ["mamba.pre"], marks=pytest.mark.slow),
    ],
)
def test_scales_are_folded_where_nothing_changes(name: str, into: list[str]):
    golden = read_golden(name)
    ids = text(160)
    folds, scaled = found_folds(golden.spec, golden.params, ids)
    assert [fold.source for fold in folds[0]] == into
    expected = np.asarray(forward(golden.spec, golden.params, inputs(ids))[0])
    logits = np.asarray(forward(golden.spec, scaled, inputs(ids))[0])
    assert abs(logits - expected).max() < 1e-5 * abs(expected).max()
    old, new = dict(flatten(golden.params)), dict(flatten(scaled))
    changed = [f"layers.0.{path}" for fold in folds[0] for path in fold.into]
    assert all((np.asarray(new[path]) != np.asarray(old[path])).any() for path in changed)


def test_awq_is_nearer_than_the_nearest_numbers():
    params, ids, held_out = model(MIXED), text(rows=64), text(rows=8, seed=1)
    wild = jnp.asarray(np.random.default_rng(2).lognormal(0, 1.5, 16), jnp.float32)
    params["layers"]["0"]["mlp"]["pre"]["scale"] = wild  # a few inputs matter most
    grid = Grid(3, 8)
    found, report = calibration.awq(MIXED, params, [ids], grid)
    assert report.scaled["layers.1.moe.pre"] == tuple(
        f"layers.1.moe.{name}" for name in ("router", "gate", "up", "shared.gate", "shared.up")
    )
    assert not isinstance(found["layers"]["1"]["moe"]["router"], QTensor)
    for some in (ids, held_out):
        plain = divergence(MIXED, params, nearest(MIXED, params, grid), some)
        assert divergence(MIXED, params, found, some) < 0.8 * plain
