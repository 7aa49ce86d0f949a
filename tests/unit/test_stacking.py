"""Stacked layers: the same numbers and the same tokens, and a program whose length does not grow with the depth."""

import jax
import numpy as np
import pytest

from forge_jax import Session, generate, stack, unstack
from forge_jax import cache as caches
from forge_jax.decoder import forward, inputs
from forge_jax.generation import loop
from forge_jax.ops import Context
from forge_jax.params import flatten, init
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope
from forge_jax.stacking import stack_cache

pytestmark = pytest.mark.usefixtures("quick_compiles")

NORM = Norm(1e-5)
MLP = Branch("mlp", Mlp(24), pre=NORM)


def layer(window: int | None) -> Block:
    attention = Attention(2, 1, 8, 8**-0.5, Rope(8), window=window)
    return Block((Branch("attention", attention, pre=NORM), MLP))


def model(depth: int) -> ModelSpec:
    """A layer of its own, then pairs of a windowed and a full one."""
    layers = (Block((MLP,)), *(layer(8 if i % 2 == 0 else None) for i in range(depth)))
    return ModelSpec(40, 16, layers, 512, NORM)


SPEC = model(4)
run = jax.jit(forward, static_argnums=0)


def test_round_trip() -> None:
    params = init(SPEC, jax.random.key(0))
    found = unstack(SPEC, stack(SPEC, params))
    expected = dict(flatten(params))
    assert dict(flatten(found)).keys() == expected.keys()
    for path, leaf in flatten(found):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_logits_and_tokens_are_those_of_the_loop() -> None:
    params = init(SPEC, jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, 40, (2, 12)).astype(np.int32)
    expected, _ = run(SPEC, params, inputs(ids))
    found, _ = run(SPEC, stack(SPEC, params), inputs(ids))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
    prompts = [ids[0].tolist(), ids[1, :5].tolist()]
    options = {"max_new_tokens": 20, "n": 2}
    assert generate(SPEC, stack(SPEC, params), prompts, **options) == generate(SPEC, params, prompts, **options)


def test_a_stacked_session_grows_and_goes_on() -> None:
    params = init(SPEC, jax.random.key(1))
    found, expected = (Session(SPEC, p, [[1, 2, 3]], max_new_tokens=300) for p in (stack(SPEC, params), params))
    for session in (found, expected):
        session.advance()
        session.extend([[7, 8]], 20)
        session.advance()
    assert found.ids() == expected.ids()


@pytest.mark.parametrize("what", ["prefill", "step"])
def test_the_program_does_not_grow_with_the_depth(what: str) -> None:
    sizes = []
    for depth in (8, 80):
        spec = model(depth)
        params = jax.eval_shape(lambda spec=spec: stack(spec, init(spec, jax.random.key(0))))
        cache = jax.eval_shape(lambda spec=spec: stack_cache(spec, caches.init(spec, 1, 64)))
        length = 32 if what == "prefill" else 1
        tokens = jax.ShapeDtypeStruct((1, length), np.int32)
        logits = jax.ShapeDtypeStruct((1, 40), np.float32)
        run = jax.jit(loop.prefill, static_argnames=("spec", "ctx"))
        lowered = run.lower(spec, params, cache, tokens, tokens, logits, Context(fresh=what == "prefill"))
        sizes.append(len(lowered.as_text()))
    assert sizes[1] < 1.1 * sizes[0]
