"""Preparing parameters for a mesh: which head goes where, shapes, rules, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from forge_jax import parallel
from forge_jax.decoder import inputs
from forge_jax.lora import Lora
from forge_jax.ops.call import head_slots
from forge_jax.parallel.axes import lora_axes
from forge_jax.parallel.prepare import pieces_of
from forge_jax.params import Param, abstract, flatten, map_params
from forge_jax.quantization.schemes import Integers
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm
from forge_jax.tensor import QTensor


def model(heads: int = 6, kv_heads: int = 2, **options) -> ModelSpec:
    """One layer; nothing in it is divisible by 4."""
    branches = (
        Branch("attention", Attention(heads, kv_heads, 8, 0.3, qkv_bias=True, sinks=True, **options), pre=Norm()),
        Branch("mlp", Mlp(22), pre=Norm()),
    )
    return ModelSpec(37, 16, (Block(branches),), 64, final_norm=Norm())


def numbers(spec: ModelSpec) -> dict:
    """Host parameters without a zero."""
    rng = np.random.default_rng(0)
    return map_params(lambda p: rng.uniform(0.5, 1.5, p.shape).astype(np.float32), spec)


# ------------------------------------------------------------------------------------------------ heads
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 71])
def test_every_query_finds_its_own_kv_head_on_its_device(kv_heads: int, group: int) -> None:
    """Each head is there once, beside a copy of the kv head it had; every kv head has equally many copies."""
    heads = kv_heads * group
    for shards in (1, 2, 3, 4, 8, 16):
        slots = head_slots(heads, kv_heads, shards)
        queries, kvs = np.array(slots.queries), np.array(slots.kvs)
        assert sorted(queries[queries >= 0]) == list(range(heads))
        assert len(queries) % shards == len(kvs) % shards == len(queries) % len(kvs) == 0
        beside = kvs[np.arange(len(queries)) // (len(queries) // len(kvs))]
        assert (beside == queries // group)[queries >= 0].all()
        copies = np.bincount(kvs[kvs >= 0], minlength=kv_heads)
        assert len(set(copies.tolist())) == 1
        # never more than a kv head for each query head, filled up
        assert len(queries) + len(kvs) <= 2 * -(-heads // shards) * shards


@pytest.mark.parametrize(
    ("heads", "kv_heads", "shards", "queries", "kvs"),
    [
        (32, 8, 8, 32, 8),  # nothing to do
        (32, 8, 16, 32, 16),  # each kv head twice
        (4, 2, 8, 8, 8),  # a kv head for each query head, and half the devices with padding only
        (6, 2, 4, 8, 4),  # kv heads twice, for 2 and 1 query heads
        (6, 3, 2, 8, 4),  # padding is cheaper than copies
        (9, 3, 2, 12, 4),
        (71, 1, 8, 72, 8),  # one kv head a device, 8 or 9 query heads
    ],
)
def test_the_fewest_slots(heads: int, kv_heads: int, shards: int, queries: int, kvs: int) -> None:
    """Worked out by hand."""
    slots = head_slots(heads, kv_heads, shards)
    assert (len(slots.queries), len(slots.kvs)) == (queries, kvs)


def test_one_shard_is_the_model_itself() -> None:
    """No copy is made."""
    spec = model()
    params = numbers(spec)
    assert head_slots(6, 2, 1).queries == tuple(range(6))
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (params, parallel.prepare(spec, params, 1))), strict=True))
    assert parallel.widened(spec, 1) == spec


# ------------------------------------------------------------------------------------------------ leaves
def test_prepared_values() -> None:
    """Heads of 6:2 on 4 devices: kv heads 0 0 1 1, query heads 0 1, 2 -, 3 4, 5 -. Padding is zero everywhere."""
    spec = model()
    params = numbers(spec)
    ready = parallel.prepare(spec, params, 4)
    old, new = params["layers"]["0"]["attention"], ready["layers"]["0"]["attention"]
    assert isinstance(new["q"], np.ndarray)
    real, queries, kvs = [0, 1, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1]
    for name, axis in (("q", 1), ("q_bias", 0), ("sinks", 0), ("o", 0)):
        np.testing.assert_array_equal(new[name].take(real, axis), old[name].take(queries, axis))
        assert not new[name].take([3, 7], axis).any()
    for name, axis in (("k", 1), ("v", 1), ("k_bias", 0)):
        np.testing.assert_array_equal(new[name], old[name].take(kvs, axis))
    for path, axis, size in (("gate", 1, 22), ("up", 1, 22), ("down", 0, 22)):
        old, new = params["layers"]["0"]["mlp"][path], ready["layers"]["0"]["mlp"][path]
        np.testing.assert_array_equal(new.take(range(size), axis), old)
        assert new.shape[axis] == 24
        assert not new.take([22, 23], axis).any()
    assert ready["embed"].shape == (40, 16)
    assert not ready["embed"][37:].any()
    assert ready["final_norm"]["scale"] is params["final_norm"]["scale"]


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_shapes_without_numbers(shards: int) -> None:
    """Abstract leaves give the shapes of `widened`, which are those of real leaves; all of them divide."""
    spec = model(qk_norm=Norm(), qk_norm_over="all")
    shapes = map_params(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), spec)
    ready = dict(flatten(parallel.prepare(spec, shapes, shards)))
    expected = {path: p.shape for path, p in flatten(abstract(parallel.widened(spec, shards)))}
    assert {path: leaf.shape for path, leaf in ready.items()} == expected
    assert {leaf.dtype for leaf in ready.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {p: x.shape for p, x in flatten(parallel.prepare(spec, numbers(spec), shards))} == expected
    for path, parts in flatten(parallel.partition_specs(spec, shapes)):
        sizes = ready[path].shape
        assert all(size % shards == 0 for size, part in zip(sizes, parts, strict=True) if part == "model"), path


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_device_arrays_are_prepared_like_host_arrays(dtype: jnp.dtype) -> None:
    """Bit for bit, in their own dtype."""
    spec = model()
    host = jax.tree.map(lambda x: (x * 60).astype(dtype), numbers(spec))
    ready = parallel.prepare(spec, jax.tree.map(jnp.asarray, host), 4)
    for (path, found), (_, expected) in zip(flatten(ready), flatten(parallel.prepare(spec, host, 4)), strict=True):
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(np.asarray(found), expected, err_msg=path, strict=True)


def packed(codes: tuple[int, ...], scale: tuple[int, ...], group: int, **where: int) -> QTensor:
    """A leaf of int8 codes, of shapes only."""
    parts = {"codes": jax.ShapeDtypeStruct(codes, jnp.int8), "scale": jax.ShapeDtypeStruct(scale, jnp.float32)}
    return QTensor(parts, Integers(8, group=group), **where)


def test_abstract_quantised_leaf() -> None:
    """Codes and scales alike."""
    spec, described = model(), dict(flatten(abstract(model())))
    path = "layers.0.mlp.down"
    ready = parallel.prepare_leaf(spec, path, described[path], packed((16, 22), (16, 11), 2, trailing=1), 4)
    assert ready.shape == (24, 16)
    assert ready.parts["codes"].shape == (16, 24)
    assert ready.parts["scale"].shape == (16, 12)  # groups of 2, and 6 features a device


def test_groups_that_would_be_cut() -> None:
    """A group that lies on two devices is cut into groups that do not; codes of half a byte cannot be."""
    spec, described = model(), dict(flatten(abstract(model())))
    path = "layers.0.mlp.down"
    rng = np.random.default_rng(1)
    codes, scale = rng.integers(-9, 9, (16, 22)).astype(np.int8), rng.normal(size=(16, 2)).astype(np.float32)
    leaf = QTensor({"codes": codes, "scale": scale}, Integers(8, group=11), trailing=1)
    ready = parallel.prepare_leaf(spec, path, described[path], leaf, 4)
    assert ready.parts["scale"].shape == (16, 24)
    np.testing.assert_array_equal(ready.dense()[:22], leaf.dense())
    assert not ready.dense()[22:].any()
    nibbles = QTensor({"codes": codes[:, :11].view(np.uint8), "scale": scale}, Integers(4, group=11), trailing=1)
    halves = parallel.prepare_leaf(spec, path, described[path], nibbles, 4)  # 6 features a device
    np.testing.assert_array_equal(halves.dense()[:22], nibbles.dense())
    with pytest.warns(UserWarning, match="int4-g11 of shape .* cannot be cut for 8 devices .* it is decoded"):
        plain = parallel.prepare_leaf(spec, path, described[path], nibbles, 8)  # 3 features a device
    np.testing.assert_array_equal(plain[:22], nibbles.dense())


def test_pieces_are_moved_whole() -> None:
    """Slots of several entries that are packed together."""
    assert pieces_of(np.arange(12), 4).tolist() == [0, 1, 2]
    assert pieces_of(np.array([2, 3, 0, 1, -1, -1]), 2).tolist() == [1, 0, -1]
    assert pieces_of(np.array([0, 1, 2, -1]), 2) is None
    assert pieces_of(np.array([1, 2, 3, 4]), 2) is None


# ------------------------------------------------------------------------------------------------ rules
def test_specs_of_each_kind_of_leaf() -> None:
    """Arrays by their axes, a scale where it has entries, updates beside their weight with a whole rank."""
    spec = model()
    params = numbers(spec)
    attention = params["layers"]["0"]["attention"]
    attention["q"] = packed((6, 8, 16), (6, 1, 1), 0, trailing=2)
    attention["k"] = packed((2, 8, 16), (1, 8, 4), 4, trailing=2)
    attention["o"] = Lora(attention["o"], np.zeros((6, 8, 3)), np.zeros((3, 16)))
    specs = parallel.partition_specs(spec, params, parallel.tensor_rules("tp"))
    assert specs["embed"] == P("tp", None)
    assert specs["head"] == P(None, "tp")
    found = specs["layers"]["0"]["attention"]
    assert found["q"].parts == {"codes": P("tp", None, None), "scale": P("tp", None, None)}
    assert found["k"].parts == {"codes": P("tp", None, None), "scale": P(None, None, None)}
    assert found["o"] == Lora(P("tp", None, None), P("tp", None, None), P(None, None))
    assert found["sinks"] == P("tp")
    assert specs["layers"]["0"]["mlp"]["down"] == P("tp", None)
    assert specs["final_norm"]["scale"] == P(None)
    axes = lora_axes(Param((37, 16), ("vocab", "embed"), inputs=0))
    assert (axes.a, axes.b) == (("vocab", None), (None, "embed"))


def test_rules_are_data() -> None:
    """They print, the first match wins, and an axis without a rule is an error."""
    rules = parallel.Rules((("heads", "a"), ("heads", "b"), (None, None)))
    assert rules.mesh_axis("heads") == "a"
    assert str(rules) == "heads -> a\nheads -> b\nNone  -> replicated"
    with pytest.raises(ValueError, match="no rule for the logical axis 'ff'"):
        rules.mesh_axis("ff")
    assert "kv_heads  -> model" in str(parallel.tensor_rules())


# ------------------------------------------------------------------------------------------------ refusals
def test_more_shards_than_devices() -> None:
    """The way out is in the message."""
    with pytest.raises(ValueError, match=r"9 shards asked, 8 devices found.*xla_force_host_platform_device_count"):
        parallel.make_mesh(9)
    with pytest.raises(ValueError, match="0 shards asked"):
        parallel.make_mesh(0)
    with pytest.raises(ValueError, match="0 shards; expected at least 1"):
        parallel.prepare(model(), numbers(model()), 0)


def test_mesh_without_the_axis() -> None:
    """Every door says the same."""
    spec, mesh = model(), parallel.make_mesh(2, axis="x")
    for door in (
        lambda: parallel.shard(spec, numbers(spec), mesh),
        lambda: parallel.init_cache(spec, 1, 8, mesh=mesh),
        lambda: parallel.sharded_forward(spec, mesh),
        lambda: parallel.programs(mesh),
    ):
        with pytest.raises(ValueError, match=r"found the axes \('x',\), expected 'model'.*make_mesh"):
            door()


def test_parameters_that_do_not_fit() -> None:
    """Unprepared, prepared twice, of another spec: each names the leaf."""
    spec, mesh = model(), parallel.make_mesh(4)
    params = numbers(spec)
    with pytest.raises(
        ValueError, match=r"embed: found shape \(37, 16\), expected \(40, 16\) on 4 shards.*parallel.shard"
    ):
        parallel.sharded_forward(spec, mesh)(params, inputs(np.ones((1, 3), np.int32)))
    with pytest.raises(
        ValueError, match=r"embed: found shape \(40, 16\), the spec asks \(37, 16\); it is prepared for 4"
    ):
        parallel.prepare(spec, parallel.prepare(spec, params, 4), 4)
    del params["head"]
    with pytest.raises(ValueError, match=r"1 leaves are missing \['head'\], 0 are not in the spec"):
        parallel.shard(spec, params, mesh)
