"""A window and anchors put on a model without: reading and writing without end, in memory that does not grow."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from forge_jax import cache as caches
from forge_jax.decoder import forward, inputs
from forge_jax.generation import Session
from forge_jax.generation.programs import local_programs
from forge_jax.ops import Context
from forge_jax.params import Tree, init
from forge_jax.spec import (
    Alibi,
    Attention,
    Block,
    Branch,
    DynamicNtk,
    Latent,
    Mlp,
    ModelSpec,
    Norm,
    Positions,
    Rope,
    windowed,
)

ATTENTION = Attention(4, 2, 8, 0.35, rope=Rope(8, 10000.0))
WINDOW, ANCHORS = 7, 3


def model(op: Attention | Latent, layers: int = 1, length: int = 64) -> ModelSpec:
    block = Block((Branch("attention", op, pre=Norm()), Branch("mlp", Mlp(48), pre=Norm())))
    return ModelSpec(50, 32, (block,) * layers, length, Norm(), tied=True)


def seen(ids: np.ndarray, at: int, window: int = WINDOW, anchors: int = ANCHORS) -> np.ndarray:
    """The tokens that the one at a place sees, itself the last."""
    return np.concatenate(
        [ids[:, : min(anchors, max(0, at + 1 - window))], ids[:, max(0, at + 1 - window) : at + 1]], 1
    )


def chunked(spec: ModelSpec, params: Tree, ids: np.ndarray, sizes: list[int], **options: object) -> np.ndarray:
    """Logits of a text read piece by piece into a ring with a slack of 2."""
    run = jax.jit(forward, static_argnums=(0, 4), compiler_options=QUICK)
    cache, out, at = caches.init(spec, len(ids), ids.shape[1], slack=2, **options), [], 0
    for size in sizes:
        logits, cache = run(spec, params, inputs(ids[:, at : at + size], at), cache, Context(fresh=not at))
        out.append(np.asarray(logits))
        at += size
    return np.concatenate(out, 1)


def test_every_token_is_computed_from_what_it_sees_alone():
    """One layer: the plain model on the visible tokens, numbered from 0, is an oracle that knows no window."""
    plain = model(ATTENTION)
    spec, params = windowed(plain, WINDOW, ANCHORS), init(plain, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 50, (2, 31))
    run = jax.jit(forward, static_argnums=0, compiler_options=QUICK)
    places = [0, 6, 8, 9, 10, 11, 20, 30]  # windows begin to move at 7 and to be apart from the anchors at 10
    expected = np.stack([np.asarray(run(plain, params, inputs(seen(ids, at)))[0])[:, -1] for at in places], 1)
    for found in (
        chunked(spec, params, ids, [31]),
        chunked(spec, params, ids, [13, *[1] * 18]),
        np.asarray(run(spec, params, inputs(ids))[0]),
    ):
        np.testing.assert_allclose(found[:, places], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_layers_upon_layers_through_a_ring_are_the_whole_text():
    plain = model(replace(ATTENTION, qk_norm=Norm()), 3)
    spec, params = windowed(plain, WINDOW, ANCHORS), init(plain, jax.random.key(1))
    ids = np.random.default_rng(1).integers(0, 50, (2, 40))
    expected = np.asarray(forward(spec, params, inputs(ids))[0])
    cache = caches.init(spec, 2, 40, slack=2)
    assert cache.layers[0]["attention"]["k"].shape[2] == WINDOW + ANCHORS + 2
    found = chunked(spec, params, ids, [5, 5, 5, 5, 5, 5, 5, 5])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(forward(plain, params, inputs(ids))[0] - expected).max() > 1e-2 * np.abs(expected).max()


def test_distances_are_exact_however_far_a_text_has_come():
    """Far from its beginning, a text gives the logits that it gives at it; float32 angles would be 0.1 off there."""
    spec = windowed(model(ATTENTION), WINDOW, 0)
    params = init(spec, jax.random.key(0))
    ids = np.random.default_rng(2).integers(0, 50, (1, 12))
    near, far = (np.asarray(forward(spec, params, inputs(ids, start))[0]) for start in (0, 10_000_000))
    np.testing.assert_allclose(far, near, rtol=0, atol=2e-6 * np.abs(near).max())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "paged"])
def test_a_session_goes_on_beyond_the_context(layout: str):
    plain = model(ATTENTION)
    spec, params = windowed(plain, 20, 4), init(plain, jax.random.key(0))
    session = Session(spec, params, [[1, 2, 3]], max_new_tokens=150, layout=layout, programs=local_programs(QUICK))
    session.advance()
    (ids,) = session.ids()
    text = np.array([[1, 2, 3, *ids]])
    assert len(ids) == 150 > plain.max_seq_len
    for at in (100, 151):
        logits = forward(plain, params, inputs(seen(text, at, 20, 4)))[0][0, -1]
        assert float(logits[text[0, at + 1]]) >= float(logits.max()) - 1e-4


@pytest.mark.slow
def test_64k_tokens_in_a_window_of_4k():
    plain = model(replace(ATTENTION, heads=2, kv_heads=1), length=8192)
    spec, params = windowed(plain, 4096, 4), init(plain, jax.random.key(0))
    session = Session(spec, params, [[1, 2, 3]], max_new_tokens=65536)
    session.advance(6000)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache))
    session.advance()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache)) == held
    assert held < 2 * 8 * 4 * (4096 + 4 + 32) + 3 * 8 * 4200
    text = np.array([[1, 2, 3, *session.ids()[0]]])
    assert text.shape[1] == 65539
    # the pending token through the cache, and the visible tokens through the model without a window
    (found, _), last = forward(spec, params, inputs(text[:, -1:], 65538), session.state.cache), text.shape[1] - 1
    expected = forward(plain, params, inputs(seen(text, last, 4096, 4)))[0][:, -1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (model(replace(ATTENTION, rope=None, alibi=Alibi((0.1,) * 4))), "attention with alibi says by itself how far"),
        (model(replace(ATTENTION, rope=Rope(8, scaling=DynamicNtk(2.0, 8)))), "frequencies of the rope depend on"),
        (model(Latent(4, 16, 8, 8, 16, 0.25, Norm(), Rope(8), q_rank=None)), "Latent has no form with a window"),
        (replace(model(ATTENTION), positions=Positions(64)), "adds positions to its embeddings"),
    ],
)
def test_what_has_no_distances_is_an_error(spec: ModelSpec, said: str):
    with pytest.raises(ValueError, match=said):
        windowed(spec, 8)


@pytest.mark.parametrize(("window", "anchors"), [(0, 4), (8, -1), (64, 4)])
def test_sizes_that_cannot_be(window: int, anchors: int):
    with pytest.raises(ValueError, match="together at most 64"):
        windowed(model(ATTENTION), window, anchors)


def test_a_window_of_its_own_stays():
    own = replace(ATTENTION, window=5)
    spec = windowed(replace(model(own), layers=(*model(own).layers, *model(ATTENTION).layers)), 8, 2)
    first, second = (layer.branches[0].op for layer in spec.layers)
    assert (first.window, first.anchors, second.window, second.anchors) == (5, 0, 8, 2)
    assert first.rope.endless
    assert second.rope.endless
