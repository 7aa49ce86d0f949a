"""Tensor parallelism gives the numbers of one device, for every field of the spec and every kind of leaf."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from parallel_check import assert_sharded_equals_plain, distance

from forge_jax import parallel
from forge_jax.decoder import forward, inputs
from forge_jax.lora import Lora
from forge_jax.ops import Context
from forge_jax.parallel.prepare import arrange_packed
from forge_jax.params import Param, Tree, flatten, map_params, unflatten
from forge_jax.quantization import encode_leaf, packer, rows_of
from forge_jax.quantization.schemes import Integers
from forge_jax.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    DynamicNtk,
    Mlp,
    ModelSpec,
    Norm,
    Positions,
    QueryScaling,
    Rope,
    Sinusoids,
)
from forge_jax.tensor import QTensor

pytestmark = pytest.mark.usefixtures("quick_compiles")

RMS = Norm(1e-3)
LAYER = Norm(1e-3, "layer", bias=True)
SHARDS = [
    pytest.param(2, marks=pytest.mark.slow),
    4,
    pytest.param(8, marks=pytest.mark.slow),
]  # 4: heads are rearranged
IDS = np.random.default_rng(0).integers(0, 37, (2, 11)).astype(np.int32)


def attention(heads: int, kv_heads: int, *, head_dim: int = 8, **options) -> Attention:
    """An attention op with a scale of its own."""
    return Attention(heads, kv_heads, head_dim, 0.4, **options)


def slopes(heads: int) -> Alibi:
    """One slope a head, all different."""
    return Alibi(tuple(0.05 * (i + 1) for i in range(heads)), scale=0.7)


def layer(op: Attention, mlp: Mlp, norm: Norm = RMS, **options) -> Block:
    """A pre-norm layer."""
    return Block((Branch("attention", op, pre=norm), Branch("mlp", mlp, pre=norm)), **options)


def model(*layers: Block, **options) -> ModelSpec:
    """A model whose vocabulary no number of shards divides."""
    return ModelSpec(
        **({"vocab_size": 37, "dim": 16, "layers": layers, "max_seq_len": 64, "final_norm": RMS} | options)
    )


ROPE = Rope(8, 1234.5)
GATED, PLAIN = Mlp(20), Mlp(22, "gelu_tanh", gated=False, bias=True)

SPECS = {
    "grouped": model(
        layer(attention(4, 2, rope=ROPE), GATED),
        layer(attention(4, 2, rope=Rope(4, interleaved=True), window=4), Mlp(24, "gelu")),
    ),
    "one_kv_head_learned_positions": model(
        layer(attention(4, 1, qkv_bias=True, o_bias=True), PLAIN, LAYER),
        layer(attention(5, 1, qkv_bias=True), Mlp(9, "sigmoid", gated=False), LAYER),  # 5 query heads on 2 devices
        final_norm=LAYER,
        tied=True,
        positions=Positions(64, offset=2),
        head_bias=True,
    ),
    "alibi": model(
        layer(attention(6, 6, alibi=slopes(6), o_bias=True), PLAIN, LAYER),
        layer(attention(6, 2, alibi=replace(slopes(6), rounded=True)), GATED),  # padding between heads
        layer(attention(6, 3, alibi=slopes(6), sinks=True), GATED),  # padding after them
        embed_norm=LAYER,
        tied=True,
    ),
    "softcaps_and_sandwich": model(
        Block(
            (
                Branch("attention", attention(12, 3, rope=ROPE, softcap=2.0, window=4), pre=RMS, post=RMS),
                Branch("mlp", GATED, pre=RMS, post=RMS, scale=0.7),
            )
        ),
        layer(attention(12, 3, rope=ROPE, softcap=2.0, qk_norm=Norm(1e-3, offset=1.0)), GATED),
        embed_scale=4.0,
        logit_softcap=3.0,
        tied=True,
    ),
    "parallel": model(
        Block(
            (Branch("attention", attention(6, 2, rope=ROPE, qkv_bias=True, o_bias=True)), Branch("mlp", PLAIN)),
            parallel=True,
            pre=LAYER,
        ),
        layer(attention(4, 4, qk_norm=LAYER, qk_norm_over="heads"), GATED, LAYER, parallel=True),
        layer(attention(9, 3, qk_norm=LAYER, qk_norm_over="heads"), GATED, LAYER, parallel=True),
        logit_scale=0.3,
        head_bias=True,
    ),
    "norm_over_all_heads": model(
        layer(attention(4, 1, rope=ROPE, qk_norm=RMS, qk_norm_over="all"), GATED),
        layer(attention(6, 2, qk_norm=LAYER, qk_norm_over="all", qkv_bias=True), GATED),
        layer(attention(12, 3, qk_norm=RMS, qk_norm_over="all"), GATED),
        layer(attention(9, 3, qk_norm=LAYER, qk_norm_over="all"), GATED),
    ),
    "norms_inside": model(
        layer(attention(6, 2, out_norm=RMS, clip=0.9), Mlp(20, norm=RMS)),
        layer(attention(9, 3, out_norm=LAYER), Mlp(22, "xielu", gated=False, norm=LAYER)),
        layer(attention(4, 1, rope=ROPE, qk_norm=RMS, qk_norm_late=True, qk_norm_over="all"), Mlp(20, "xielu")),
        positions=Sinusoids(),
    ),
    "normed_residual": model(
        Block(
            (
                Branch("attention", attention(6, 3, sinks=True, query_scaling=QueryScaling(0.3, 4)), after=LAYER),
                Branch("mlp", PLAIN, after=LAYER),
            )
        ),
        layer(attention(4, 2, rope=Rope(8, scaling=DynamicNtk(2.0, 8))), PLAIN, LAYER, residual="normed"),
        embed_dim=12,
    ),
    "tied_narrow_embedding": model(layer(attention(4, 2), GATED), embed_dim=12, tied=True, head_bias=True),
}


def numbers(spec: ModelSpec, seed: int = 0) -> Tree:
    """Parameters on the host in which every number differs from every other, biases and norms too."""
    rng = np.random.default_rng(seed)

    def draw(param: Param) -> np.ndarray:
        x = rng.normal(size=param.shape).astype(np.float32)
        if param.fill is not None:
            return x * np.float32(0.3) + np.float32(param.fill)
        return x * np.float32(np.prod(param.shape[: max(param.inputs, 1)]) ** -0.5 if param.inputs else 0.5)

    return map_params(draw, spec)


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", SPECS)
def test_every_spec(name: str, shards: int) -> None:
    """1e-5 relative: the sum over devices runs in another order, nothing else differs."""
    assert_sharded_equals_plain(SPECS[name], numbers(SPECS[name]), IDS, shards)


def test_scan_driver() -> None:
    """The other driver runs on a mesh too."""
    spec = model(*[layer(attention(6, 2, rope=ROPE), GATED)] * 3)
    assert_sharded_equals_plain(spec, numbers(spec), IDS, 4, driver="scan")


def test_bfloat16() -> None:
    """Half precision on a mesh is as near to float32 as half precision on one device."""
    spec, mesh = SPECS["grouped"], parallel.make_mesh(4)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), numbers(spec))
    run = jax.jit(forward, static_argnums=0)
    exact, _ = run(spec, jax.tree.map(lambda x: x.astype(np.float32), half), inputs(IDS))
    plain, _ = run(spec, half, inputs(IDS))
    cache = parallel.init_cache(spec, *IDS.shape, mesh=mesh, dtype=jnp.bfloat16)
    mapped, _ = parallel.sharded_forward(spec, mesh)(parallel.shard(spec, half, mesh), inputs(IDS), cache)
    assert distance(mapped, exact) < 2 * distance(plain, exact)


# ------------------------------------------------------------------------------------------------ kinds of leaves
def quantised(leaf: np.ndarray, inputs: int, group: int, seed: int) -> QTensor:
    """Codes and scales of no meaning but of the right size; a table if nothing is summed over but its last axis."""
    rng = np.random.default_rng(seed)
    rows, inner, trailing = rows_of(leaf, Param(leaf.shape, (None,) * leaf.ndim, inputs=inputs))
    codes = rng.integers(-127, 128, rows.shape).astype(np.int8)
    groups = rows.shape[-1] // group if group else 1
    scale = rng.uniform(0.5, 1.5, (*rows.shape[:-1], groups)).astype(np.float32) * (leaf.std() / np.float32(70))
    return QTensor({"codes": codes, "scale": scale}, Integers(8, group=group), inner, trailing)


def low_rank(leaf: QTensor | np.ndarray, inputs: int, seed: int) -> Lora:
    """An update about as large as the weight."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(*leaf.shape[:inputs], 3)).astype(np.float32) * np.float32(0.3)
    b = rng.normal(size=(3, *leaf.shape[inputs:])).astype(np.float32) * np.float32(0.3)
    return Lora(leaf, a, b)


# by the last part of a path: how many axes are summed over, and how many numbers share a scale
GROUPS = {
    "embed": (0, 4),
    "head": (1, 0),
    "q": (1, 0),
    "k": (1, 8),
    "v": (1, 4),
    "o": (2, 16),
    "gate": (1, 4),
    "up": (1, 0),
    "down": (1, 4),
}


def mixed(spec: ModelSpec) -> Tree:
    """Layer 0 quantised, layer 1 with updates on its weights, layer 2 with updates on quantised weights."""
    leaves = dict(flatten(numbers(spec)))
    for seed, (path, leaf) in enumerate(leaves.items()):
        name, index = path.split(".")[-1], path.split(".")[1:2]
        if name not in GROUPS:
            continue
        if index != ["1"]:
            leaf = quantised(leaf, *GROUPS[name], seed)
        if index in (["1"], ["2"]):
            leaf = low_rank(leaf, 2 if name == "o" else 1, seed)
        leaves[path] = leaf
    return unflatten(leaves)


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_and_low_rank_leaves(shards: int, tied: bool) -> None:
    """Groups of a scale that would lie on two devices included: 24 features in groups of 4 or 8, on 8 devices."""
    spec = model(*[layer(attention(6, 3, rope=ROPE), Mlp(24))] * 3, tied=tied)
    assert_sharded_equals_plain(spec, mixed(spec), IDS, shards)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_last_group_that_is_cut_off(shards: int) -> None:
    """Blocks of 128 of rows of 320: each device has its share of the numbers, under finer scales."""
    w, param = np.random.default_rng(0).standard_normal((320, 8)).astype(np.float32), Param((320, 8), ("ff", "embed"))
    leaf = encode_leaf(w, param, packer("fp8-block"))
    found = arrange_packed(leaf, param, {"ff": np.arange(320)}, shards)
    assert found is not None
    pieces = [
        replace(found, parts={name: np.split(part, shards, -1)[i] for name, part in found.parts.items()}).dense()
        for i in range(shards)
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), leaf.dense())


# ------------------------------------------------------------------------------------------------ what is compiled
def bytes_on(device: jax.Device, tree: Tree) -> int:
    """What the arrays of a tree occupy on one device."""
    parts = [part for leaf in jax.tree.leaves(tree) for part in leaf.addressable_shards if part.device == device]
    return sum(part.data.nbytes for part in parts)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_weights_are_split(shards: int) -> None:
    """A device holds 1/shards of what has a split axis, the whole of the rest, and the program reads just that."""
    spec = model(layer(attention(8, 8, rope=ROPE, qkv_bias=True), Mlp(32)), vocab_size=40)
    params = numbers(spec)
    mesh = parallel.make_mesh(shards)
    placed = parallel.shard(spec, params, mesh)
    split = {path for path, p in flatten(parallel.partition_specs(spec, params)) if "model" in p}
    sizes = {path: leaf.nbytes for path, leaf in flatten(params)}
    expected = sum(size // shards if path in split else size for path, size in sizes.items())
    assert {path.split(".")[-1] for path in sizes.keys() - split} == {"scale"}
    assert {bytes_on(device, placed) for device in mesh.devices.flat} == {expected}
    compiled = jax.jit(parallel.shard_mapped(forward, spec, mesh)).lower(placed, inputs(IDS)).compile()
    read = compiled.memory_analysis().argument_size_in_bytes
    assert 0 <= read - expected <= 2 * IDS.nbytes + 64  # ids and orders
    cache = parallel.init_cache(spec, 2, 16, mesh=mesh)
    assert (
        bytes_on(mesh.devices.flat[0], cache.layers) == sum(x.nbytes for x in jax.tree.leaves(cache.layers)) // shards
    )


def collectives(spec: ModelSpec) -> dict[str, int]:
    """How many instructions of the compiled program talk to other devices."""
    mesh = parallel.make_mesh(4)
    placed = parallel.shard(spec, numbers(spec), mesh)
    text = jax.jit(parallel.shard_mapped(forward, spec, mesh)).lower(placed, inputs(IDS)).compile().as_text()
    return {name: text.count(f" {name}(") for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute")}


@pytest.mark.parametrize(
    ("block", "sums"),
    [
        (SPECS["grouped"].layers[0], 2),  # one after the heads and one after the features
        (SPECS["parallel"].layers[0], 1),  # XLA joins the two, because neither waits for the other
        (SPECS["norm_over_all_heads"].layers[0], 3),  # one more for the moments of queries and keys
    ],
)
def test_sums_a_layer(block: Block, sums: int) -> None:
    """A layer talks as often as it must. The ends of the model add one sum (embedding) and one gather (logits)."""
    one, three = collectives(model(block)), collectives(model(block, block, block))
    assert one == {"all-reduce": 1 + sums, "all-gather": 1, "all-to-all": 0, "collective-permute": 0}
    assert three == one | {"all-reduce": 1 + 3 * sums}


# ------------------------------------------------------------------------------------------------ meshes
@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_other_meshes(kind: jax.sharding.AxisType) -> None:
    """A mesh of the user's own, with another axis and another name for ours; data runs whole along the other."""
    spec = SPECS["grouped"]
    params = numbers(spec)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), (kind, kind))
    placed = parallel.shard(spec, params, mesh, axis="tensor")
    cache = parallel.init_cache(spec, 2, 16, mesh=mesh, axis="tensor")
    run = parallel.sharded_forward(spec, mesh, axis="tensor")
    logits, cache = run(placed, inputs(IDS), cache)
    expected, _ = jax.jit(forward, static_argnums=0)(spec, params, inputs(IDS))
    assert distance(logits, expected) < 1e-5
    assert logits.sharding.is_fully_replicated
    assert cache.layers[0]["attention"]["k"].parts["values"].sharding.spec[1] == "tensor"
    assert cache.places["full"].order_BS.sharding.is_fully_replicated


def test_fresh_cache() -> None:
    """The context of the caller is kept, but for the axis."""
    spec = SPECS["grouped"]
    mesh = parallel.make_mesh(2)
    placed, cache = parallel.shard(spec, numbers(spec), mesh), parallel.init_cache(spec, 2, 16, mesh=mesh)
    fresh = parallel.sharded_forward(spec, mesh, ctx=Context(fresh=True))
    logits, _ = fresh(placed, inputs(IDS), cache)
    assert distance(logits, parallel.sharded_forward(spec, mesh)(placed, inputs(IDS))[0]) < 1e-5


def test_placer_splits_each_tensor() -> None:
    """What a loader hands over lies on the mesh like the leaves of `shard`."""
    spec = SPECS["alibi"]
    params, mesh = numbers(spec), parallel.make_mesh(4)
    place = parallel.placer(spec, mesh)
    placed = dict(flatten(parallel.shard(spec, params, mesh)))
    for path, leaf in flatten(params):
        array = place(path, leaf)
        assert isinstance(array.sharding, NamedSharding)
        assert array.sharding == placed[path].sharding
        assert bool((array == placed[path]).all())
