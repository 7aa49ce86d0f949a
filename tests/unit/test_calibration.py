"""What calibration sees of a model, and what it makes of it: sums against NumPy, folds that change nothing, KLD."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden

from forge_jax import calibration
from forge_jax.calibration.folds import Fold, holding
from forge_jax.calibration.observed import Observed
from forge_jax.calibration.observing import advanced, entries, matrices, observe, paths
from forge_jax.calibration.rounding import round_leaf
from forge_jax.decoder import forward, inputs, share, unshared, whole
from forge_jax.params import Param, Tree, abstract, flatten, map_params, unflatten
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid, Rounded
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Moe, Norm, Rope, Router
from forge_jax.tensor import QTensor, contract, pick, take

pytestmark = pytest.mark.usefixtures("quick_compiles")

RMS = Norm(1e-3)
ATTENTION = Branch("attention", Attention(4, 2, 8, 0.4, rope=Rope(8)), pre=Norm(1e-3, offset=1.0))
EXPERTS = Block((Branch("moe", Moe(Router(4, 2, renorm=1.0), 24, shared=Mlp(16)), pre=RMS),))
MIXED = ModelSpec(64, 16, (EXPERTS, Block((ATTENTION, Branch("mlp", Mlp(24), pre=RMS)))), 64, RMS)
run = jax.jit(forward, static_argnums=0)


def model(spec: ModelSpec, seed: int = 0) -> Tree:
    """Random weights; those of norms are not all ones."""
    rng = np.random.default_rng(seed)

    def draw(param: Param) -> jax.Array:
        size = 0.2 if param.fill is not None else param.fan_in**-0.5
        return jnp.asarray(rng.normal(param.fill or 0.0, size, param.shape), jnp.float32)

    return map_params(draw, spec)


def text(vocabulary: int = 64, rows: int = 48, length: int = 24, seed: int = 0) -> np.ndarray:
    """Ids, some far more often than others."""
    rng = np.random.default_rng(seed)
    return (rng.exponential(0.2, (rows, length)).clip(max=0.999) * vocabulary).astype(np.int32)


IDS, HELD_OUT = text(), text(seed=1)


def plain(tree: Tree) -> Tree:
    """The same with packed leaves decoded, by NumPy."""

    def decoded(leaf: Any) -> jax.Array:
        if not isinstance(leaf, QTensor):
            return leaf
        return jnp.asarray(replace(leaf, parts={name: np.asarray(part) for name, part in leaf.parts.items()}).dense())

    return unflatten({path: decoded(leaf) for path, leaf in flatten(tree)})


def divergence(spec: ModelSpec, params: Tree, other: Tree, ids: np.ndarray) -> float:
    """The mean KL divergence of a model from another."""
    logits = (run(spec, plain(tree), inputs(ids))[0] for tree in (params, other))
    p, q = (np.asarray(jax.nn.log_softmax(z), np.float64) for z in logits)
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


def check_sums(found: dict[str, np.ndarray], rows: np.ndarray, rtol: float = 1e-5):
    """rows: [R, n], or [stacked, R, n]."""
    rows = rows.astype(np.float64)
    np.testing.assert_allclose(found["gram"], np.swapaxes(rows, -1, -2) @ rows, rtol=rtol, atol=100 * rtol)
    np.testing.assert_allclose(found["square"], (rows**2).sum(-2), rtol=rtol)
    np.testing.assert_allclose(found["absolute"], abs(rows).sum(-2), rtol=rtol)
    np.testing.assert_array_equal(found["count"], (rows != 0).any(-1).sum(-1))


@pytest.mark.parametrize(
    ("eq", "x", "w", "stacked", "ends", "rows"),
    [
        ("BTD,DNH->BTNH", (2, 3, 5), (5, 2, 4), 0, 1, "all"),
        ("BTNH,NHD->BTD", (2, 3, 2, 4), (2, 4, 5), 0, 2, "all"),
        ("BTNI,NIO->BTNO", (2, 3, 2, 4), (2, 4, 5), 1, 1, "stacked"),
        ("ND,EDF->NEF", (6, 5), (3, 5, 4), 1, 1, "each"),
    ],
)
def test_products_tell_their_inputs(eq: str, x: tuple, w: tuple, stacked: int, ends: int, rows: str):
    rng = np.random.default_rng(0)
    values, weight = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))
    values = values.at[0].multiply(0)
    seen_x, n = np.asarray(values), int(np.prod(w[stacked : stacked + ends]))
    expected = {
        "stacked": lambda: seen_x.transpose(2, 0, 1, 3).reshape(2, 6, 4),
        "each": lambda: np.stack([seen_x] * 3),
    }
    check_sums(seen(eq, values, weight, stacked, ends), expected.get(rows, lambda: seen_x.reshape(-1, n))())


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
    params = model(MIXED)
    states = entries(MIXED, params, [IDS[:24], IDS[24:]])
    sums, _ = observe(MIXED, params, 0, states, matrices, ("gram", "absolute", "square"))
    p = {path: np.asarray(x, np.float64) for path, x in flatten(params["layers"]["0"]["moe"])}
    x = np.asarray(params["embed"], np.float64)[IDS].reshape(-1, 16)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * p["pre.scale"]
    chosen = np.argsort(-(x @ p["router"]), axis=1)[:, :2]
    assert set(sums) == {f"layers.0.moe.{name}" for name in p if name not in ("router", "pre.scale")}
    for e in range(4):
        rows = x[(chosen == e).any(1)]
        gate = rows @ p["gate"][e]
        hidden = gate / (1 + np.exp(-gate)) * (rows @ p["up"][e])
        for name, expected in (("gate", rows), ("up", rows), ("down", hidden)):
            check_sums({tap: value[e] for tap, value in sums[f"layers.0.moe.{name}"].items()}, expected, 1e-4)


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
    params, grid = model(MIXED), Grid(3, 8)
    found, report = calibration.gptq(MIXED, params, [IDS], Gptq(grid, act_order=True))
    rounded = {path for path, leaf in flatten(found) if isinstance(leaf, QTensor)}
    assert rounded == {path for path, param in flatten(abstract(MIXED)) if matrices(path, param)} == report.seen.keys()
    assert report.seen["layers.0.moe.up"].sum() == 2 * IDS.size
    plainest = nearest(MIXED, params, grid)
    for ids in (IDS, HELD_OUT):
        assert divergence(MIXED, params, found, ids) < 0.8 * divergence(MIXED, params, plainest, ids)


def test_a_layer_sees_what_the_rounded_ones_before_it_make():
    params, how = model(MIXED), Gptq(Grid(2, 8))
    found, _ = calibration.gptq(MIXED, params, [IDS], how)
    before = params | {"layers": {"0": found["layers"]["0"], "1": params["layers"]["1"]}}
    states = advanced(MIXED, before, 0, entries(MIXED, before, [IDS]))
    sums, _ = observe(MIXED, before, 1, states, matrices, ("gram",))
    described, floats, leaves = (dict(flatten(tree)) for tree in (abstract(MIXED), params, found))
    assert len(sums) == 7
    for path, seen in sums.items():
        expected = round_leaf(floats[path], described[path], seen["gram"], how.round, how.grid)
        np.testing.assert_array_equal(leaves[path].parts["codes"], expected.parts["codes"], err_msg=path)
        assert leaves[path].shape == described[path].shape


def test_what_layers_share_is_rounded_for_all_of_them():
    shared = Branch("mlp", Mlp(24), pre=RMS, shared="common")
    spec, grid = replace(MIXED, layers=(Block((ATTENTION, shared)), Block((shared,)))), Grid(4, 8)
    params = model(spec)
    found, report = calibration.gptq(spec, params, [IDS], Gptq(grid))
    assert report.seen["shared.common.up"] == 2 * IDS.size
    assert isinstance(found["shared"]["common"]["down"], QTensor)
    assert divergence(spec, params, found, IDS) < divergence(spec, params, nearest(spec, params, grid), IDS)


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
        ("gpt2", ["attention.pre", "mlp.pre", "attention.v"]),  # what enters "down" has gone through GELU
        ("cohere", ["pre", "attention.v", "mlp.up"]),  # one norm for both branches
        *(
            pytest.param(name, into, marks=pytest.mark.slow)
            for name, into in (
                ("llama_bias", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]),
                ("gemma2", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]),  # norms that add 1, two a branch
                ("gpt_neox", ["attention.pre", "mlp.pre", "attention.v"]),  # branches beside each other
                ("olmo2", ["attention.v", "mlp.up"]),  # no norm before a branch
                ("phimoe", ["attention.pre", "moe.pre", "attention.v", "moe.up"]),
                ("gpt_oss", ["attention.pre", "moe.pre", "attention.v"]),  # what enters "down" is cut, and has 1 added
                ("deepseek_v3", ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]),
                ("qwen3_next", ["delta.pre", "mlp.pre", "mlp.up"]),  # a norm behind "v"
                ("falcon_mamba", ["mamba.pre"]),
            )
        ),
    ],
)
def test_scales_are_folded_where_nothing_changes(name: str, into: list[str]):
    golden = read_golden(name)
    ids = text(160, rows=2)
    folds, scaled = found_folds(golden.spec, golden.params, ids)
    assert [fold.source for fold in folds[0]] == into
    expected = np.asarray(run(golden.spec, golden.params, inputs(ids))[0])
    logits = np.asarray(run(golden.spec, scaled, inputs(ids))[0])
    assert abs(logits - expected).max() < 1e-5 * abs(expected).max()
    old, new = dict(flatten(golden.params)), dict(flatten(scaled))
    changed = [f"layers.0.{path}" for fold in folds[0] for path in fold.into]
    assert all((np.asarray(new[path]) != np.asarray(old[path])).any() for path in changed)


def test_folds_are_found_whatever_weights_are_kept_in():
    """What bfloat16 rounds is not taken for a change."""
    spec = replace(MIXED, layers=MIXED.layers[1:])
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model(spec))
    mine = {path.removeprefix("layers.0."): param for path, param in flatten(abstract(spec)) if "layers" in path}
    found = holding(spec.layers[0], mine, dict(flatten(half["layers"]["0"])), entries(spec, half, [IDS[:2]])[0])
    assert [fold.source for fold in found] == ["attention.pre", "mlp.pre", "attention.v", "mlp.up"]


def test_awq_is_nearer_than_the_nearest_numbers():
    params, grid = model(MIXED), Grid(3, 8)
    wild = jnp.asarray(np.random.default_rng(2).lognormal(0, 1.5, 16), jnp.float32)
    params["layers"]["1"]["mlp"]["pre"]["scale"] = wild  # a few inputs matter most
    found, report = calibration.awq(MIXED, params, [IDS], grid)
    scaled = {source.removeprefix("layers."): len(into) for source, into in report.scaled.items()}
    # what reads each: all experts, the one that every token goes to, and the router
    experts = {"0.moe.pre": 5, "0.moe.up": 1, "0.moe.shared.up": 1}
    assert scaled == experts | {"1.attention.pre": 3, "1.attention.v": 1, "1.mlp.pre": 2, "1.mlp.up": 1}
    assert not isinstance(found["layers"]["0"]["moe"]["router"], QTensor)
    plainest = nearest(MIXED, params, grid)
    for ids in (IDS, HELD_OUT):
        assert divergence(MIXED, params, found, ids) < 0.8 * divergence(MIXED, params, plainest, ids)
