"""Every layout, codec, batch and number of devices gives the logits of dense slabs on one device, same codec."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from forge_jax import cache as caches
from forge_jax import parallel
from forge_jax.decoder import Inputs, forward, inputs
from forge_jax.generation import Session
from forge_jax.generation.layouts import Dense, Paged
from forge_jax.generation.programs import local_programs
from forge_jax.params import Tree, init
from forge_jax.sampling import SamplingParams
from forge_jax.spec import Attention, Block, Branch, DynamicNtk, Latent, LongRope, Mlp, ModelSpec, Norm, Rope

ATTENTION = Attention(4, 2, 16, 0.25, rope=Rope(16))
OPS = (ATTENTION, replace(ATTENTION, window=6), Latent(4, 16, 8, 8, 16, 0.25, Norm(), Rope(8), q_rank=None))
SPEC = ModelSpec(
    64,
    32,
    tuple(Block((Branch("attention", op, pre=Norm()), Branch("mlp", Mlp(64), pre=Norm()))) for op in OPS),
    512,
    Norm(),
    tied=True,
)
PARAMS = init(SPEC, jax.random.key(0))
LENGTHS = (29, 17, 29)
IDS = np.random.default_rng(0).integers(0, 64, (3, 29))
IDS[2, :16] = IDS[0, :16]
SLACK = 9
LAYOUTS: dict[str, Any] = {"dense": Dense, "paged": partial(Paged, page=4)}
CHUNKS = ((9, 9, 1, 1, 9), (9, 1, 1, 9, 9))
RUN = jax.jit(forward, static_argnums=0, compiler_options=QUICK)


def pieces(batch: int, sizes: tuple[int, ...]) -> Iterator[tuple[Inputs, list[int], list[int]]]:
    """The texts cut into calls; a row that has ended is padding. With the first and last place of each row."""
    at = 0
    for size in sizes:
        order = np.arange(at, at + size, dtype=np.int32)[None].repeat(batch, 0)
        order = np.where(order < np.array(LENGTHS[:batch])[:, None], order, -1)
        starts = [min(at, length) for length in LENGTHS[:batch]]
        yield (
            Inputs(jnp.asarray(IDS[:batch, at : at + size]), jnp.asarray(order)),
            starts,
            [min(at + size, length) for length in LENGTHS[:batch]],
        )
        at += size


def read(batch: int, kept: Any, how: str, shards: int, sizes: tuple[int, ...], params: Tree = PARAMS) -> np.ndarray:
    """Logits of all texts, piece by piece."""
    new: Any = caches.init
    run: Any = partial(RUN, SPEC)
    if shards > 1:
        mesh = parallel.make_mesh(shards)
        params, new = parallel.shard(SPEC, params, mesh), partial(parallel.init_cache, mesh=mesh)
        run = jax.jit(parallel.shard_mapped(forward, SPEC, mesh), compiler_options=QUICK)
    layout = LAYOUTS[how](SPEC, new, {"slack": SLACK, "dtype": caches.policy(kept)})
    cache = layout.empty(batch, 32)
    for rows in layout.rows.values() if isinstance(layout, Paged) else ():
        for page in np.random.default_rng(batch).permutation(list(rows.pool.free)).tolist():
            rows.pool.free.move_to_end(page)  # dealt out in no order
    cache = layout.admit(cache, [IDS[row, : min(sizes[0], LENGTHS[row])].tolist() for row in range(batch)], [0] * batch)
    out = []
    for call, starts, stops in pieces(batch, sizes):
        cache = layout.room(cache, starts if out else stops, stops)
        logits, cache = run(params, call, cache)
        out.append(np.asarray(logits))
    return np.concatenate(out, 1)


def assert_same(found: np.ndarray, expected: np.ndarray, batch: int, lossy: bool) -> None:
    """Compare where there are tokens. A number at the border of two codes falls to either side."""
    there = np.arange(29)[None] < np.array(LENGTHS[:batch])[:, None]
    apart = np.abs(found[:, :29] - expected[:, :29])[there] / np.abs(expected[:, :29][there]).max()
    assert np.quantile(apart, 0.5) < 5e-6
    assert apart.max() < (5e-3 if lossy else 1e-5)


CODECS = ("float32", "bfloat16", "fp8", "int8", "int4", "int2", {"*": "int8", "*.v": "int4", "layers.0": "bf16"})
CROSS = list(product(("dense", "paged"), CODECS, (1, 3), (1, 2)))
SHORT = [("paged", CODECS[-1], 3, 1)]


@pytest.mark.parametrize(
    ("layout", "kept", "batch", "shards"),
    [pytest.param(*case, marks=[] if case in SHORT else [pytest.mark.slow]) for case in CROSS],
    ids=lambda value: "mixed" if isinstance(value, dict) else str(value),
)
def test_all_combinations_are_the_plain_path(layout: str, kept: Any, batch: int, shards: int):
    expected = read(batch, kept, "dense", 1, CHUNKS[0])
    found = read(batch, kept, layout, shards, CHUNKS[1])
    assert_same(found, expected, batch, kept != "float32")


def by_token(cache: caches.Cache, place: Any, row: int) -> dict[int, list[bytes]]:
    """The bytes that a slab keeps of each token of a row."""
    slab, slots = cache.layers[place.layer][place.branch][place.name], np.asarray(cache.places[place.key].order_BS)
    parts = [np.asarray(part)[row] for part in slab.parts.values()]
    return {
        int(token): [part[:, slot].tobytes() for part in parts] for slot, token in enumerate(slots[row]) if token >= 0
    }


@pytest.mark.parametrize(
    "kept",
    [{"*": "int4", "*.v": "int2"}, *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "fp8"))],
    ids=["mixed", "float32", "fp8"],
)
def test_what_goes_from_one_layout_to_another_is_the_same_bits(kept: Any):
    """From slots to pages and back to slots of another number: rings that came round, rows of different lengths."""
    rng, order = np.random.default_rng(0), np.where(np.arange(29) < np.array(LENGTHS)[:, None], np.arange(29), -1)
    options = {"slack": SLACK, "dtype": caches.policy(kept)}
    empty = caches.init(SPEC, 3, 32, **options)
    slots = {key: caches.assign(places, jnp.asarray(order, jnp.int32), jnp.zeros((3, 29), jnp.int32))
             for key, places in empty.places.items()}  # fmt: skip
    noise = jax.tree.map(lambda x: jnp.asarray(100 * rng.random(x.shape), x.dtype), empty.layers)
    cache = caches.Cache({key: each.after for key, each in slots.items()}, noise)
    paged = Paged(SPEC, caches.init, options, page=4)
    texts = [[row] * length for row, length in enumerate(LENGTHS)]  # none shares a page
    back = paged.left(paged.begun(cache, texts, 48), 3, 40)
    assert back.places.keys() == cache.places.keys()
    for place in caches.slabs(SPEC):
        for row, length in enumerate(LENGTHS):
            expected = by_token(cache, place, row)
            assert by_token(back, place, row) == expected
            assert max(expected) == length - 1
            assert len(expected) == min(length, 15 if place.key != "full" else 29)


@pytest.mark.slow
def test_rows_of_a_session_share_the_pages_of_their_prompt():
    prompts = [IDS[0].tolist() * 3, (IDS[0].tolist() * 3)[:40] + [1, 2]]
    options: Any = {"n": 3, "max_new_tokens": 60, "seed": 3, "programs": local_programs(QUICK)}
    options["sampling"] = SamplingParams(temperature=1.0, logprobs=0)
    sessions = [Session(SPEC, PARAMS, prompts, layout=layout, **options) for layout in ("dense", "paged")]
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache.layers)) for session in sessions]
    assert size[1] < size[0]
    for session in sessions:
        session.advance(50)
        session.finish(1, 30)
        session.extend([[5, 6, 7]] * 6, max_new_tokens=[4, 20, 20, 20, 20, 20])
        session.advance()
    for dense, paged in zip(*(session.outputs() for session in sessions), strict=True):
        assert dense.ids == paged.ids
        np.testing.assert_allclose(paged.logprobs, dense.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    "kept", ["bfloat16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float16"))]
)
@pytest.mark.parametrize(
    "scaling",
    [DynamicNtk(4.0, 8), LongRope((1.0,) * 8, tuple(1.5 + i for i in range(8)), 8, 1.0, 1.2)],
    ids=lambda scaling: type(scaling).__name__,
)
def test_frequencies_that_change_as_a_text_grows_are_those_of_the_whole_text(scaling: Any, kept: str):
    """One layer: what later layers see of a token was made when the text was shorter, here and in a reference."""
    op = replace(ATTENTION, rope=Rope(16, scaling=scaling))
    spec = replace(SPEC, layers=(SPEC.layers[0].with_ops(lambda old: op if isinstance(old, Attention) else old),))
    params = {**PARAMS, "layers": {"0": PARAMS["layers"]["0"]}}
    new = partial(caches.init, spec, 1, 16, dtype=caches.policy(kept))
    text, cache = IDS[:1, :14], new()
    for at in range(14):
        found, cache = RUN(spec, params, inputs(text[:, at : at + 1], at), cache)
        if at in (6, 7, 8, 13):  # 8 tokens is the original length
            padded = np.where(np.arange(14) <= at, np.arange(14), -1).astype(np.int32)[None]
            expected = RUN(spec, params, Inputs(jnp.asarray(text), jnp.asarray(padded)), new())[0][:, at]
            np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_step_opens_one_layer_at_a_time():
    """Beside the cache, a step has room for one layer's keys and values, and none for those that need no opening."""
    op = replace(ATTENTION, kv_heads=4)
    layer = SPEC.layers[0].with_ops(lambda old: op if isinstance(old, Attention) else old)
    spec = replace(SPEC, layers=(layer,) * 3, max_seq_len=8192)
    layers = init(spec, jax.random.key(0))
    opened = 2 * 4 * 16 * 4 * 8192  # float32
    for kept, how, room in (("float32", "dense", 0.5), ("int8", "dense", 1.5)):
        cache = LAYOUTS[how](spec, caches.init, {"slack": 0, "dtype": caches.policy(kept)}).empty(1, 8192)
        run = (
            jax.jit(forward, static_argnums=0, donate_argnums=3).lower(spec, layers, inputs([[1]], 5), cache).compile()
        )
        memory = run.memory_analysis()
        assert memory.temp_size_in_bytes < room * opened
        assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
