"""Rows computed apart: the same bits alone and in any batch, with a cache and without, loops and stacked layers."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from forge_jax import SamplingParams, Session, stack
from forge_jax import cache as caches
from forge_jax.decoder import Inputs, forward
from forge_jax.generation.speculation import Lookup
from forge_jax.ops import Context
from forge_jax.params import init
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope, ShortConv
from forge_jax.stacking import stack_cache

NORM = Norm(1e-5)
ATTENTION = Attention(4, 2, 32, 32**-0.5, Rope(32), window=16)
APART = Context(apart=True)


def layer(op: Any) -> Block:
    return Block((Branch("mixer", op, pre=NORM), Branch("mlp", Mlp(352), pre=NORM)))


SPEC = ModelSpec(
    300, 128, (layer(ATTENTION), layer(ShortConv(128, 3)), layer(ATTENTION), layer(ShortConv(128, 3))), 64, NORM
)
SHORT = replace(SPEC, layers=SPEC.layers[:2])  # where nothing is stacked
run = jax.jit(forward, static_argnames=("spec", "ctx", "driver"))


def two_passes(spec: ModelSpec, params: Any, ids: np.ndarray, ctx: Context, stacked: bool) -> tuple[Any, Any]:
    """Logits of a prompt, whose rows end in padding but for the first, and of a token after it."""
    batch, length = ids.shape
    count = length - np.arange(batch) % 4
    order = np.where(np.arange(length) < count[:, None], np.arange(length), -1).astype(np.int32)
    cache = caches.init(spec, batch, 64)
    cache = stack_cache(spec, cache) if stacked else cache
    first, cache = run(spec, params, Inputs(ids, order), cache, ctx)
    second, _ = run(spec, params, Inputs(ids[:, :1], count[:, None].astype(np.int32)), cache, ctx)
    return first, second


@pytest.mark.parametrize("stacked", [False, True])
def test_a_row_has_the_same_bits_in_any_company(stacked: bool) -> None:
    spec = SPEC if stacked else SHORT
    params = init(spec, jax.random.key(0))
    params = stack(spec, params) if stacked else params
    ids = np.random.default_rng(0).integers(0, 300, (7, 12)).astype(np.int32)
    alone = two_passes(spec, params, ids[:1], APART, stacked)
    found = two_passes(spec, params, ids, APART, stacked)
    for one, expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one[0], expected[0])
    together = two_passes(spec, params, ids, Context(), stacked)
    for one, expected in zip(found, together, strict=True):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_without_a_cache_too() -> None:
    params = init(SHORT, jax.random.key(1))
    ids = np.random.default_rng(1).integers(0, 300, (5, 9)).astype(np.int32)
    order = np.broadcast_to(np.arange(9, dtype=np.int32), ids.shape)
    logits = partial(run, SHORT, params, ctx=APART)
    whole = logits(Inputs(ids, order))[0]
    np.testing.assert_array_equal(whole[3], logits(Inputs(ids[3:4], order[:1]))[0][0])


def test_a_session_gives_the_same_text_and_the_same_bits_in_any_batch() -> None:
    """Other rows are longer, so that without `invariant` there would be other pieces and a larger cache."""
    params = init(SHORT, jax.random.key(2))
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 300, length).tolist() for length in (5, 11, 3)]
    spec = replace(SHORT, max_seq_len=600)
    long = rng.integers(0, 300, 300).tolist()
    sampling = [SamplingParams(seed=i, logprobs=3, temperature=0.0 if i == 0 else 0.9) for i in range(4)]

    def outputs(which: list[int], *more: list[int]) -> list[Any]:
        chosen = [sampling[i] for i in which] + [sampling[3] for _ in more]
        prompts = [rows[i] for i in which] + list(more)
        session = Session(spec, params, prompts, max_new_tokens=20, sampling=chosen, invariant=400)
        session.advance()
        return session.outputs()

    alone = [outputs([i])[0] for i in range(3)]
    assert outputs([0, 1, 2]) == alone  # log-probabilities too, every bit
    assert outputs([2, 0], long)[:2] == [alone[2], alone[0]]


def test_what_cannot_be_invariant_is_an_error() -> None:
    params = init(SPEC, jax.random.key(3))
    for asked, words in (
        ({"layout": "paged"}, "layout='dense'"),
        ({"draft": Lookup()}, "beside a drafter"),
        ({"max_new_tokens": 40}, "42 tokens .* invariant=32"),
    ):
        with pytest.raises(ValueError, match=words):
            Session(SPEC, params, [[1, 2]], **{"invariant": 32, "max_new_tokens": 4, **asked})
