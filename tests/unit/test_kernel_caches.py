"""Kernels that read and write caches, against the plain path and softmax in float64: every codec, dense and paged."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.cache import codec, keep, put, put_all, view
from forge_jax.cache.codecs import hadamard, turn_in_pairs
from forge_jax.cache.stored import Stored, write_plainly
from forge_jax.ops.found import Keys, attend, attend_plainly
from forge_jax.ops.packed import Held

pytestmark = pytest.mark.usefixtures("quick_compiles", "kernels_built")
CODECS = ["float32", "bfloat16", "float16", "fp8", "int8", "int4", "int2"]
PAGE = 16


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def calls(run: Callable, *args: Any, kernel: str) -> int:
    return jax.jit(run).lower(*args).as_text().count(f"@forge_jax.{kernel}")


@pytest.mark.parametrize(
    ("heads", "slots", "size", "width", "softcap", "sinks"),
    [((9, 3), 600, 64, 64, None, False), ((8, 2), 300, 128, 96, 20.0, True), ((4, 4), 1, 16, 80, None, True)],
)
def test_attention_is_that_of_the_plain_path(heads, slots, size, width, softcap, sinks):
    queries, kvs = heads
    q, seen = normal(2, 1, queries, size) * 3, jnp.asarray(np.random.default_rng(3).random((2, 1, slots)) < 0.7)
    cached = Keys(normal(2, kvs, slots, size, seed=1), normal(2, kvs, slots, width, seed=2), seen)
    new = Keys(normal(2, kvs, 1, size, seed=4), normal(2, kvs, 1, width, seed=5), jnp.ones((2, 1, 1), bool))
    options = {"scale": size**-0.5, "softcap": softcap, "sinks_N": normal(queries) if sinks else None}

    def by_kernel(q: jax.Array) -> jax.Array:
        return attend(q, [cached, new], **options)

    def plainly(q: jax.Array) -> jax.Array:
        return attend_plainly(q, [cached, new], **options)

    assert calls(by_kernel, q, kernel="attention") == 1
    np.testing.assert_allclose(jax.jit(by_kernel)(q), jax.jit(plainly)(q), rtol=2e-5, atol=5e-6)
    if sinks:
        slope, want = (jax.jit(jax.grad(lambda q, way=way: (way(q) ** 2).sum()))(q) for way in (by_kernel, plainly))
        np.testing.assert_allclose(slope, want, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_finds_nothing():
    k, q = normal(1, 2, 40, 16), normal(1, 1, 4, 16)
    np.testing.assert_array_equal(attend(q, [Keys(k, k, jnp.zeros((1, 1, 40), bool))], scale=1.0), 0)


def test_hidden_slots_are_not_read():
    """What a slot holds that nobody sees does not matter, be it no number at all."""
    k, q = normal(1, 2, 40, 16), normal(1, 1, 4, 16)
    seen = jnp.arange(40)[None, None] < 30
    spoilt = jnp.where(jnp.arange(40)[None, None, :, None] < 30, k, jnp.nan)
    want = attend(q, [Keys(k, k, seen)], scale=1.0)
    np.testing.assert_array_equal(attend(q, [Keys(spoilt, spoilt, seen)], scale=1.0), want)


def in_pages(slab: Stored, table: np.ndarray) -> Stored:
    """The rows of a slab on the pages that a table names."""
    parts = {}
    for name, part in slab.parts.items():
        b, k, s, x = part.shape
        pages = np.zeros((table.max() + 2, k, PAGE, x), part.dtype)
        pages[table] = np.asarray(part).reshape(b, k, s // PAGE, PAGE, x).swapaxes(1, 2)
        parts[name] = jnp.asarray(pages)
    return Stored(parts, slab.codec, paged=True)


def held(
    names: tuple[str, str],
    heads: int,
    slots: int,
    sizes: tuple[int, int],
    *,
    paged: bool,
    tokens: int = 1,
    seed: int = 0,
) -> Keys:
    """Random tokens of two rows in a cache, of which each new token sees some."""
    k = keep(normal(2, heads, slots, sizes[0], seed=seed), codec(names[0]))
    v = keep(normal(2, heads, slots, sizes[1], seed=seed + 1), codec(names[1]))
    seen = jnp.asarray(np.random.default_rng(seed).random((2, tokens, slots)) < 0.7)
    plain, table = (view(k, "float32"), view(v, "float32")), None
    if paged:
        table = np.random.default_rng(seed).permutation(3 * slots // PAGE)[: 2 * slots // PAGE].reshape(2, -1)
        k, v, table = in_pages(k, table), in_pages(v, table), jnp.asarray(table, jnp.int32)
    return Keys(*plain, seen, held=Held(k, v, table))


def exactly(
    q: jax.Array, parts: list[Keys], scale: float, softcap: float | None = None, sinks: jax.Array | None = None
) -> np.ndarray:
    """Softmax in float64."""
    wide = [[np.asarray(x, np.float64) for x in (part.k_BKSH, part.v_BKSH, part.seen_BTS)] for part in parts]
    k, v, seen = (np.concatenate(part, 2) for part in zip(*wide, strict=True))
    batch, tokens, queries, size = q.shape
    grouped = np.asarray(q, np.float64).reshape(batch, tokens, k.shape[1], -1, size)
    z = np.einsum("btkgh,bksh->btkgs", grouped, k) * scale
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    weight = np.exp(z) * seen[:, :, None, None]
    total = weight.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(np.asarray(sinks, np.float64)).reshape(*grouped.shape[2:4], 1)
    return (np.einsum("btkgs,bksh->btkgh", weight, v) / total).reshape(batch, tokens, queries, -1)


def causal(tokens: int) -> jax.Array:
    """What new tokens see of each other [2, T, T]."""
    return jnp.broadcast_to(jnp.tril(jnp.ones((tokens, tokens), bool)), (2, tokens, tokens))


SMALL, WIDE = ((9, 3), (64, 64)), ((5, 1), (128, 192))


@pytest.mark.parametrize(
    ("tokens", "paged", "heads", "sizes"),
    [
        (1, False, *SMALL),
        (1, True, *WIDE),
        (2, True, *SMALL),
        (5, False, *WIDE),
        (16, False, *SMALL),
        (16, True, *WIDE),
        (50, False, *SMALL),
        (40, True, *WIDE),
    ],
)
@pytest.mark.parametrize("names", [*((name, name) for name in CODECS), ("int8", "int4"), ("fp8", "int2")], ids="-".join)
def test_attention_over_every_codec(names: tuple[str, str], tokens: int, paged: bool, heads, sizes):
    queries, kvs = heads
    q = normal(2, tokens, queries, sizes[0]) * 3
    new = replace(held(names, kvs, tokens, sizes, paged=False, tokens=tokens, seed=9), seen_BTS=causal(tokens))
    parts = [held(names, kvs, 400, sizes, paged=paged, tokens=tokens), new]

    def run(q: jax.Array) -> jax.Array:
        return attend(q, parts, scale=sizes[0] ** -0.5)

    assert calls(run, q, kernel="attention") == 1
    np.testing.assert_allclose(jax.jit(run)(q), exactly(q, parts, sizes[0] ** -0.5), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("tokens", [2, 16, 90])
@pytest.mark.parametrize("paged", [False, True])
def test_several_tokens_with_a_window_sinks_and_a_cap(tokens: int, paged: bool):
    """Stretches that all tokens see, some see and none sees; tokens that see nothing but a sink find nothing."""
    part, scale = held(("int8", "float32"), 2, 640, (64, 64), paged=paged, tokens=tokens), 0.3
    order, key = np.arange(250, 250 + tokens)[:, None], np.arange(640)
    seen = np.broadcast_to((key > order - 140) & (key <= order), (2, tokens, 640)).copy()
    seen[1, -1] = False
    part = replace(part, seen_BTS=jnp.asarray(seen))
    q, sinks = normal(2, tokens, 8, 64) * 3, normal(8, seed=3)
    found = attend(q, [part], scale=scale, softcap=15.0, sinks_N=sinks)
    np.testing.assert_allclose(found, exactly(q, [part], scale, 15.0, sinks), rtol=3e-5, atol=5e-6)
    np.testing.assert_array_equal(found[1, -1], 0)
    np.testing.assert_array_equal(attend(q, [part], scale=scale)[1, -1], 0)


@pytest.mark.parametrize("name", ["float32", "int4"])
def test_what_a_token_finds_hardly_depends_on_the_others(name: str):
    """Where keys have other lanes, their products are added up in another order."""
    part, q = held((name, name), 3, 400, (64, 64), paged=False, tokens=16), normal(2, 16, 9, 64)
    together = attend(q, [part], scale=0.125)
    for t in range(0, 16, 5):
        alone = attend(q[:, t : t + 1], [replace(part, seen_BTS=part.seen_BTS[:, t : t + 1])], scale=0.125)
        np.testing.assert_allclose(alone, together[:, t : t + 1], rtol=1e-6, atol=1e-6)


def test_several_tokens_under_grad_and_vmap():
    part, q = held(("int8", "fp8"), 2, 60, (32, 32), paged=False, tokens=3), normal(2, 3, 4, 32)
    sinks, weight = normal(4), normal(2, 3, 4, 32, seed=7)

    def slopes(way: Callable) -> tuple[jax.Array, ...]:
        def loss(q: jax.Array, v: jax.Array, sinks: jax.Array) -> jax.Array:
            return (way(q, [replace(part, v_BKSH=v)], scale=0.2, softcap=None, sinks_N=sinks) * weight).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(q, part.v_BKSH, sinks)

    for slope, want in zip(slopes(attend), slopes(attend_plainly), strict=True):
        np.testing.assert_allclose(slope, want, rtol=1e-5, atol=1e-6)

    def run(q: jax.Array, seen: jax.Array) -> jax.Array:
        return attend(q, [replace(part, seen_BTS=seen)], scale=0.2)

    many, views = jnp.stack([q, -q]), jnp.stack([part.seen_BTS, ~part.seen_BTS])
    want = jnp.stack([run(q, seen) for q, seen in zip(many, views, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(many, views), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 300])
def test_a_prompt_that_meets_itself_and_thousands_of_slots(heads: tuple[int, int], window: int | None):
    """Blocks of queries look at runs of stretches, of which only some hold what a window shows."""
    (queries, kvs), slots, tokens, scale = heads, 2600, 200, 0.3
    q, parts = normal(2, tokens, queries, 32) * 3, []
    for first, count in ((0, slots), (slots, tokens)):
        part = held(("float32", "int8"), kvs, count, (32, 32), paged=False, tokens=tokens, seed=first)
        order, key = np.arange(slots, slots + tokens)[:, None], np.arange(first, first + count)
        seen = (key <= order) & (window is None or key > order - (window or 0))
        parts.append(replace(part, seen_BTS=jnp.broadcast_to(jnp.asarray(seen), (2, tokens, count))))
    found = attend(q, parts, scale=scale)
    np.testing.assert_allclose(found, exactly(q, parts, scale), rtol=2e-5, atol=5e-6)


def test_the_smallest_halves_are_no_zeros():
    """Subnormal numbers of float16, which the threads that run kernels would take for 0 as floats."""
    part, v = (
        held(("float16", "float16"), 2, 40, (32, 32), paged=False),
        keep(normal(2, 2, 40, 32) * 1e-5, codec("float16")),
    )
    assert part.held is not None
    part, q = replace(part, v_BKSH=view(v, "float32"), held=part.held._replace(v=v)), normal(2, 1, 4, 32)
    found = attend(q, [part], scale=1.0)
    np.testing.assert_allclose(found, exactly(q, [part], 1.0), rtol=2e-5, atol=1e-11)
    assert np.abs(found).min() > 0


def test_no_scores_are_kept():
    """What a program allocates for a prompt does not grow with new tokens times slots."""
    tokens, slots = 128, 2048
    part, q = held(("int8", "int8"), 2, slots, (32, 32), paged=False, tokens=tokens), normal(2, tokens, 4, 32)
    memory = jax.jit(lambda q: attend(q, [part], scale=1.0)).lower(q).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < tokens * slots * 4


@pytest.mark.parametrize("size", [24, 32])
def test_attention_of_codes_that_fill_no_vectors_is_plain(size: int):
    name, tokens = ("float32", 3) if size == 24 else ("int2", 1)
    part, q = held((name, name), 2, 40, (size, size), paged=False, tokens=tokens), normal(2, tokens, 4, size)
    assert calls(lambda q: attend(q, [part], scale=1.0), q, kernel="attention") == 0
    want = attend_plainly(q, [part], scale=1.0, softcap=None, sinks_N=None)
    np.testing.assert_array_equal(attend(q, [part], scale=1.0), want)


def test_a_table_that_names_no_page_reads_none_elsewhere():
    """Numbers that are out of range mean the nearest page, as where a program gathers pages."""
    part = held(("float32", "float32"), 2, 4 * PAGE, (32, 32), paged=True)
    assert part.held is not None
    k, v, table = part.held
    assert table is not None
    nothing, q = jnp.zeros_like(part.k_BKSH), normal(2, 1, 4, 32)

    def found(page: int) -> jax.Array:
        keys = Keys(nothing, nothing, part.seen_BTS, held=Held(k, v, table.at[0, 0].set(page)))
        return attend(q, [keys], scale=1.0)

    np.testing.assert_array_equal(found(10**6), found(k.shape[0] - 1))


# ------------------------------------------------------------------------------------------------ writing
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 5), (20, 1)])
def test_written_in_place_it_is_what_is_written_plainly(name: str, batch: int, tokens: int):
    slab = keep(normal(batch, 2, 24, 32), codec(name))
    new = keep(normal(batch, 2, tokens, 32, seed=1), slab.codec)
    slot = np.random.default_rng(2).permuted(np.tile(np.arange(26), (batch, 1)), axis=1)[:, :tokens]  # 24, 25: dropped
    slot_BT, row_BT = (
        jnp.asarray(slot, jnp.int32),
        jnp.broadcast_to(jnp.arange(batch, dtype=jnp.int32)[:, None], slot.shape),
    )
    assert calls(lambda slab: put(slab, slot_BT, new), slab, kernel="write_slots") == 1
    found = jax.jit(put)(slab, slot_BT, new)
    want = write_plainly(slab.parts, new.parts, row_BT, slot_BT)
    for part, expected in ((found.parts[name], want[name]) for name in slab.parts):
        np.testing.assert_array_equal(np.asarray(part).view(np.uint8), np.asarray(expected).view(np.uint8))


def test_several_slabs_are_written_in_one_call():
    names = {"k": "bfloat16", "v": "int4"}
    slabs = {name: keep(normal(2, 3, 24, 32, seed=i), codec(how)) for i, (name, how) in enumerate(names.items())}
    new = {name: keep(normal(2, 3, 5, 32, seed=i + 2), slabs[name].codec) for i, name in enumerate(names)}
    slot_BT = jnp.asarray([[0, 1, 2, 3, 4], [0, 1, 2, 24, 24]], jnp.int32)

    def run(slabs: dict[str, Stored]) -> dict[str, Stored]:
        return put_all(slabs, slot_BT, new)

    assert calls(run, slabs, kernel="write_slots") == 1
    found = jax.jit(run)(slabs)
    for name, slab in slabs.items():
        alone = write_plainly(slab.parts, new[name].parts, jnp.asarray([[0] * 5, [1] * 5]), slot_BT)
        for part, want in alone.items():
            np.testing.assert_array_equal(np.asarray(found[name].parts[part]), np.asarray(want))


def test_what_is_donated_is_not_copied():
    """A loop that writes into a slab holds it once."""
    slab, new = keep(normal(2, 2, 4096, 32), codec("bfloat16")), keep(normal(2, 2, 1, 32), codec("bfloat16"))

    def run(slab: Stored, new: Stored) -> Stored:
        return jax.lax.fori_loop(0, 9, lambda i, slab: put(slab, jnp.full((2, 1), i), new), slab)

    made = jax.jit(run, donate_argnums=0).lower(slab, new).compile()
    memory = made.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < slab.nbytes / 8
    found = made(slab, new).parts["values"]
    np.testing.assert_array_equal(found[:, :, :9], jnp.repeat(new.parts["values"], 9, 2))


def test_writing_under_grad_and_vmap():
    part, new, slot = normal(3, 2, 2, 6, 8), normal(3, 2, 2, 1, 8, seed=1), jnp.asarray([[2], [5]])

    def run(part: jax.Array, new: jax.Array) -> jax.Array:
        return put(keep(part), slot, keep(new)).parts["values"]

    want = np.array(part)
    for row, at in enumerate((2, 5)):
        want[:, row, :, at] = np.asarray(new)[:, row, :, 0]
    np.testing.assert_array_equal(jax.jit(jax.vmap(run))(part, new), want)
    weight = normal(2, 2, 6, 8, seed=3)
    along_part, along_new = jax.grad(lambda *x: (run(*x) * weight).sum(), argnums=(0, 1))(part[0], new[0])
    np.testing.assert_array_equal(along_new[:, :, 0], jnp.stack([weight[0, :, 2], weight[1, :, 5]]))
    np.testing.assert_array_equal(along_part, weight.at[0, :, 2].set(0).at[1, :, 5].set(0))


# ------------------------------------------------------------------------------------------------ turning
@pytest.mark.parametrize("size", [1, 8, 64, 96, 256])
def test_turned_in_one_call_it_has_the_same_bits(size: int):
    x = normal(2, 3, 5, size)
    power = size & -size
    assert calls(hadamard, x, kernel="hadamard") == 1
    np.testing.assert_array_equal(jax.jit(hadamard)(x), jax.jit(turn_in_pairs, static_argnums=1)(x, power))
    want = np.ones((1, 1))
    while len(want) < power:
        want = np.block([[want, want], [want, -want]])
    exact = (np.asarray(x, np.float64).reshape(2, 3, 5, -1, power) @ want / power**0.5).reshape(x.shape)
    np.testing.assert_allclose(hadamard(x), exact, rtol=0, atol=1e-5)


def test_turning_under_grad_and_vmap():
    x, weight = normal(3, 4, 32), normal(3, 4, 32, seed=1)
    np.testing.assert_array_equal(jax.jit(jax.vmap(hadamard))(x), hadamard(x))
    slope = jax.grad(lambda x: (hadamard(x) * weight).sum())(x)
    np.testing.assert_allclose(slope, hadamard(weight), rtol=0, atol=2e-6)  # the matrix is its own transpose
