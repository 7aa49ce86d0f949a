"""Products with the weights that blocks of rows choose from stacks, in one call, against einsum in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from forge_jax.kernels.formats import FORMATS, STEPPED
from forge_jax.ops import Call, Context
from forge_jax.ops.moe import moe
from forge_jax.params import Param, Tree, flatten, op_params, unflatten
from forge_jax.products import rounded_runs
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.swift import Kernels, swift
from forge_jax.spec import Moe, Router
from forge_jax.tensor import QTensor, chosen_in_place, contract_chosen, dense, take

pytestmark = pytest.mark.usefixtures("quick_compiles", "kernels_built")
E, I, O = 5, 512, 32  # noqa: E741
HALVES = {"BF16": "bfloat16", "F16": "float16"}
INTEGERS = ["int8-g64", "int8-g32-asym", "int4-g32", "int4-g128-asym"]
SCHEMES = [name for name in FORMATS if name not in STEPPED]
STACK = Param((E, I, O), ("experts", "embed", "ff"), stacked=1)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(w: np.ndarray, param: Param, scheme: str, kernels: Kernels) -> QTensor:
    leaf = w.astype(HALVES[scheme]) if scheme in HALVES else encode_leaf(w, param, packer(scheme))
    return jax.tree.map(jnp.asarray, swift(leaf, param, kernels))


@functools.cache
def stack(scheme: str, kernels: Kernels, seed: int = 1) -> QTensor:
    return packed(normal(E, I, O, seed=seed), STACK, scheme, kernels)


def blocks(size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Some that choose the same expert, one that is not used, one whose number is past the last expert."""
    expert = jnp.asarray([3, 0, 3, 4, 1, 9, 2])
    return jnp.asarray(normal(7, size, I, seed=2)), expert, jnp.asarray([1, 1, 1, 1, 1, 0, 1], bool)


def wanted(x: jax.Array, expert: jax.Array, used: jax.Array, w: QTensor) -> np.ndarray:
    chosen = np.asarray(w.dense(), np.float64)[np.minimum(expert, E - 1)]
    return np.einsum("CMI,CIO->CMO", np.asarray(x, np.float64), chosen) * np.asarray(used)[:, None, None]


def calls(run, *args, kernel: str) -> int:
    return jax.jit(run).lower(*args).as_text().count(f"@forge_jax.{kernel}_chosen_")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_block_is_multiplied_by_its_expert(scheme: str) -> None:
    stacks = [stack(scheme, "exact"), stack(scheme, "exact", 5)]
    for size in (1, 32):
        x, expert, used = blocks(size)
        assert chosen_in_place(x, stacks)
        assert calls(contract_chosen, x, stacks, expert, used, kernel="product") == 1
        for y, w in zip(jax.jit(contract_chosen)(x, stacks, expert, used), stacks, strict=True):
            want = wanted(x, expert, used, w)
            # as in test_kernels: float32 sums of I products
            np.testing.assert_allclose(y, want, rtol=0, atol=4e-7 * np.abs(want).max() * I**0.5)
            assert not y[5].any()


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in HALVES] + INTEGERS)
def test_rounded_ones_are_those_of_rounded_inputs(scheme: str) -> None:
    w = stack(scheme, "rounded")
    for size in (2, 16):
        x, expert, used = blocks(size)
        assert chosen_in_place(x, [w])
        assert calls(contract_chosen, x, [w], expert, used, kernel="rounded") == 1
        want = wanted(rounded_runs(x.reshape(-1, I)).reshape(x.shape), expert, used, w)
        (y,) = jax.jit(contract_chosen)(x, [w], expert, used)
        # a number in the middle between two codes may go to either, as in test_kernels
        step = float(jnp.abs(x).max()) / 127 * float(jnp.abs(w.dense()).max())
        np.testing.assert_allclose(y, want, rtol=0, atol=step)
        assert np.median(np.abs(y - want)) < 1e-6 * np.abs(want).max()


def test_experts_of_tiles_are_the_same_weights() -> None:
    for scheme in ("Q4_K", "Q5_1", "int4-g32"):
        rows, tiles = stack(scheme, "exact"), stack(scheme, "rounded")
        np.testing.assert_array_equal(tiles.dense(), rows.dense())
        ids = jnp.asarray([4, 0, 4])
        np.testing.assert_array_equal(take(tiles, ids), take(rows, ids))


def test_what_cannot_be_read_where_it_lies() -> None:
    x, w = blocks(4)[0], stack("Q8_0", "exact")
    assert not chosen_in_place(x.astype(jnp.int32), [w])
    assert not chosen_in_place(x[:, :3], [w])  # blocks are of a power of two
    assert not chosen_in_place(x, [w, stack("Q4_0", "exact")])
    assert not chosen_in_place(x, [w.dense()])
    assert not chosen_in_place(x, [stack("int4-g32", "exact")])


def test_derivatives_vmap_and_meshes() -> None:
    x, expert, used = blocks(2)
    w = stack("Q4_1", "exact")
    chosen = w.dense()[jnp.minimum(expert, E - 1)]
    plain = jnp.einsum("CMI,CIO->CMO", x, chosen) * used[:, None, None].astype(jnp.float32)
    tolerance = 1e-5 * float(jnp.abs(plain).max())
    run = lambda x, expert: contract_chosen(x, [w], expert, used)[0]  # noqa: E731
    grad = jax.grad(lambda x: run(x, expert).sum())(x)
    expected = jnp.where(used[:, None], chosen.sum(-1), 0)[:, None]
    np.testing.assert_allclose(grad, jnp.broadcast_to(expected, x.shape), rtol=0, atol=1e-5 * 32)
    both = jax.vmap(run)(jnp.stack([x, 2 * x]), jnp.stack([expert, expert]))
    np.testing.assert_allclose(both, jnp.stack([plain, 2 * plain]), rtol=0, atol=2 * tolerance)
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",))
    split = jax.shard_map(
        lambda x, w: contract_chosen(x, [w], expert, used)[0],
        mesh=mesh,
        in_specs=(PartitionSpec(), jax.tree.map(lambda _: PartitionSpec(None, "m"), w)),
        out_specs=PartitionSpec(None, None, "m"),
    )
    np.testing.assert_allclose(jax.jit(split)(x, w), plain, rtol=0, atol=tolerance)


def layer(op: Moe, width: int, scheme: str, kernels: Kernels | None) -> Tree:
    """A mixture whose experts are packed, for kernels or in floats."""
    params = {}
    for seed, (path, param) in enumerate(flatten(op_params(op, width))):
        w = normal(*param.shape, seed=seed) * max(param.fan_in, 1) ** -0.5
        experts = param.stacked and path != "router"
        leaf = packed(w, param, scheme, kernels or "exact") if experts else jnp.asarray(w)
        params[path] = dense(leaf) if kernels is None else leaf
    return unflatten(params)


@pytest.mark.parametrize(("kernels", "kernel"), [("exact", "product"), ("rounded", "rounded")])
@pytest.mark.parametrize("op", [Moe(Router(8, 3, renorm=1.0), 64), Moe(Router(8, 2), 64, gated=False, bias=True)])
def test_a_mixture_reads_its_experts_in_two_calls(op: Moe, kernels: Kernels, kernel: str) -> None:
    """Decoding and a prompt, whose blocks have several rows; the same as with decoded experts."""
    params, plain = layer(op, 96, "Q8_0", kernels), layer(op, 96, "Q8_0", None)

    def run(params: Tree, x: jax.Array) -> jax.Array:
        order = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        return moe(op, params, x, None, Call(order, order[..., None], jnp.zeros_like(order), {}), Context())[0]

    for length in (1, 21):
        x = jnp.asarray(normal(2, length, 96, seed=9))
        assert calls(run, params, x, kernel=kernel) == 2
        want = np.asarray(jax.jit(run)(plain, x))
        # rounded inputs: half of a 127th of the largest in each of some 100 numbers, twice
        tolerance = 1e-5 if kernels == "exact" else 3e-2
        np.testing.assert_allclose(jax.jit(run)(params, x), want, rtol=0, atol=tolerance * np.abs(want).max())
