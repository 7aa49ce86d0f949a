"""Weights whose inputs are put in the order of their groups: the same weights, and products that kernels take."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.calibration.rounding import round_leaf
from forge_jax.params import Param
from forge_jax.products import rounded_runs, tiled
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid
from forge_jax.quantization.ordered import Ordered, in_order
from forge_jax.quantization.swift import plain_rows, swift
from forge_jax.quantization.tiles import tiled as in_tiles
from forge_jax.tensor import QTensor, contract, contract_all, dense, pick, take

pytestmark = pytest.mark.usefixtures("quick_compiles", "kernels_built")
EQ = "BTD,DNH->BTNH"
K, N, H = 512, 2, 16
SHAPE = (K, N, H)
SCHEMES = ["int8-g64", "int8-g32-asym", "int4-g32", "int4-g128-asym"]


def stored(scheme: str, seed: int = 0) -> QTensor:
    """A host leaf as GPTQ stores it: any input may be of any group."""
    rng = np.random.default_rng(seed)
    w = encode_leaf(rng.standard_normal(SHAPE, dtype=np.float32), Param(SHAPE, (None,) * 3, inputs=1), packer(scheme))
    index = rng.permutation(np.arange(K) // w.scheme.group).astype(np.int32).reshape(1, 1, K)
    return replace(w, parts=w.parts | {"index": index})


def laid(scheme: str, rounds: bool = False, seed: int = 0) -> QTensor:
    host = in_order(stored(scheme, seed), in_tiles) if rounds else in_order(stored(scheme, seed))
    assert isinstance(host.scheme, Ordered)
    return jax.tree.map(jnp.asarray, host)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(3).standard_normal(shape), jnp.float32)


def exact(x: jax.Array, w: QTensor) -> np.ndarray:
    return np.einsum(EQ, np.asarray(x, np.float64), np.asarray(w.dense(), np.float64))


def close(y: jax.Array, want: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(y), want, rtol=0, atol=4e-7 * np.abs(want).max() * K**0.5)


def calls(run, *args, kernel: str = "") -> int:
    return jax.jit(run).lower(*args).as_text().count(f"@forge_jax.{kernel}")


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_the_same_weight(scheme: str, rounds: bool):
    """Its shape, its numbers, its parts, whole, by rows and one of several: bit for bit, on host and device."""
    was, now = stored(scheme), laid(scheme, rounds)
    assert (now.shape, now.outputs, now.summed) == (was.shape, was.outputs, was.summed)
    assert now.scheme.name == was.scheme.name
    want = was.dense()
    for leaf in (now, jax.tree.map(np.asarray, now)):
        np.testing.assert_array_equal(leaf.dense(), want)
        values, factor = leaf.scheme.factors(leaf.parts)
        np.testing.assert_array_equal(values, was.rows())
        assert factor is None
        back = plain_rows(leaf)
        assert back.scheme == was.scheme
        assert back.parts.keys() == was.parts.keys()
        for name, part in was.parts.items():
            part = was.every_row(name) if rounds and name != "index" else part
            np.testing.assert_array_equal(back.parts[name], part, strict=True)
    table = QTensor({name: part.reshape(-1, part.shape[-1]) for name, part in now.parts.items()}, now.scheme)
    ids = jnp.asarray([[0, 31, 17], [16, 3, 8]])
    np.testing.assert_array_equal(take(table, ids), was.rows().reshape(-1, K)[ids])
    two = jax.tree.map(lambda *parts: jnp.stack(parts), now, laid(scheme, rounds, seed=1))
    np.testing.assert_array_equal(dense(pick(two, jnp.int32(1))), stored(scheme, 1).dense())
    if not rounds:  # tiles are no stack of rows
        np.testing.assert_array_equal(two.dense(), np.stack([want, stored(scheme, 1).dense()]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_is_that_of_the_weight_by_a_kernel(scheme: str):
    was, now = stored(scheme), laid(scheme)
    run = functools.partial(contract, EQ)
    for rows in (1, 13, 40):
        x = normal(rows, 1, K)
        assert calls(run, x, now, kernel="product") == 1
        assert calls(run, x, jax.tree.map(jnp.asarray, was)) == 0
        y = jax.jit(run)(x, now)
        close(y, exact(x, was))
        close(y, np.asarray(tiled(was.scheme, was.parts, was.outputs, x.reshape(-1, K)), np.float64)[:, None])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rounded_product_is_that_of_inputs_rounded_in_the_order_of_groups(scheme: str):
    was, now = stored(scheme), laid(scheme, rounds=True)
    run = functools.partial(contract, EQ)
    order = np.argsort(was.parts["index"].reshape(-1), kind="stable")
    for rows in (1, 15, 40):
        x = normal(rows, 1, K)
        assert calls(run, x, now, kernel="rounded") == 1
        rounded = np.empty((rows, K))
        rounded[:, order] = rounded_runs(x.reshape(rows, K)[:, order])
        want = np.einsum(EQ, rounded.reshape(rows, 1, K), was.dense().astype(np.float64))
        y = np.asarray(jax.jit(run)(x, now))
        # a number in the middle between two codes may go to either
        np.testing.assert_allclose(y, want, rtol=0, atol=float(np.abs(x).max() / 127 * np.abs(was.dense()).max()))
        assert np.median(np.abs(y - want)) < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("rounds", [False, True])
def test_weights_with_the_same_inputs_keep_their_own_orders(rounds: bool):
    weights = [laid("int4-g32", rounds, seed) for seed in range(3)]
    x = normal(2, 1, K)
    one_by_one = [jax.jit(functools.partial(contract, EQ))(x, w) for w in weights]
    for got, want in zip(jax.jit(functools.partial(contract_all, EQ))(x, weights), one_by_one, strict=True):
        np.testing.assert_array_equal(got, want)


def test_derivatives_and_maps_are_those_of_the_weight():
    was, now, x = stored("int4-g32"), laid("int4-g32"), normal(2, 1, K)
    plain = jnp.asarray(was.dense())
    want = jax.grad(lambda x: (jnp.einsum(EQ, x, plain) ** 2).sum())(x)
    found = jax.grad(lambda x: (contract(EQ, x, now) ** 2).sum())(x)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))
    two = jax.tree.map(lambda *parts: jnp.stack(parts), now, laid("int4-g32", seed=1))
    run = functools.partial(contract, EQ)
    both = [exact(x, was), exact(x, stored("int4-g32", 1))]
    close(jax.vmap(run, (None, 0))(x, two), np.stack(both))
    _, scanned = jax.lax.scan(lambda x, w: (x, run(x, w)), x, two)  # as layers that are stacked
    close(scanned, np.stack(both))


def test_a_weight_that_is_rounded_here_is_in_order_at_once():
    x = np.random.default_rng(1).standard_normal((200, 64)) * np.random.default_rng(2).uniform(0.1, 3, 64)
    w, how = np.asarray(normal(64, 16)), Gptq(Grid(4, 32), act_order=True)
    found = round_leaf(w, Param(w.shape, (None, None), inputs=1), x.T @ x, how.round, how.grid)
    assert isinstance(found.scheme, Ordered)
    want = how.round(np.ascontiguousarray(w.T), x.T @ x)
    assert want.index is not None
    scale, zero = (part[:, want.index] for part in want.lines)
    np.testing.assert_array_equal(found.dense(), ((want.codes - zero) * scale).T.astype(np.float32))


def test_what_has_no_kernel_then_stays_as_it_is():
    """Groups of more or fewer members, rows with groups of their own, groups that are no runs, other bits, experts."""
    usual = stored("int4-g32")
    index = usual.parts["index"]
    more = index.copy()
    more[..., 0] = (more[..., 0] + 1) % 16
    own = np.stack([np.roll(index[0], i, -1) for i in range(N)])
    odd = [replace(usual, parts=usual.parts | {"index": other}) for other in (more, own)]
    odd += [stored("int4-g16"), stored("int3-g32"), stored("int2-g64")]
    for w in odd:
        assert in_order(w) is w
        x = normal(1, 1, K)
        close(contract(EQ, x, jax.tree.map(jnp.asarray, w)), exact(x, w))
    assert swift(usual, Param(SHAPE, (None,) * 3, inputs=1, stacked=1), "rounded") is usual
