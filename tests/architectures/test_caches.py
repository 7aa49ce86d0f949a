"""Every architecture through caches: cut into any calls, in every layout, it gives the logits that it gives without."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from test_parity import NAMES, ROUNDED, assert_close, distinct, length_of, load, logits_of, loop

from forge_jax import cache as caches
from forge_jax.decoder import Inputs
from forge_jax.generation.layouts import Dense, Paged

SHORT = {
    "dense": (),
    "paged": ("gemma3_bare",),
}  # test_parity takes every kind of branch through a dense cache
WIDTH, SLACK, TIMES, FEW = 6, 8, 20, 6


def cut(tokens: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Calls of WIDTH places, each row with as many tokens as chance will have, or of one; their ids and orders."""
    chance, at = np.random.default_rng(seed), np.zeros(len(tokens), np.int32)
    while (left := tokens.shape[1] - at).any():
        width = 1 if chance.random() < 0.25 else WIDTH
        place = np.arange(width, dtype=np.int32)[None]
        count = np.minimum(chance.integers(0 if width > 1 else 1, width + 1, len(tokens)), left)
        yield (
            np.take_along_axis(tokens, np.minimum(at[:, None] + place, tokens.shape[1] - 1), 1),
            np.where(place < count[:, None], at[:, None] + place, -1).astype(np.int32),
        )
        at = at + count.astype(np.int32)


def through(golden: Any, tokens: np.ndarray, how: str, seed: int) -> np.ndarray:
    """The logits of every token, by its place."""
    options = {"slack": SLACK}
    layout = Dense(golden.spec, caches.init, options) if how == "dense" else Paged(golden.spec, caches.init, options, 4)
    cache = layout.admit(layout.empty(*tokens.shape), [[]] * len(tokens), [0] * len(tokens))
    out = np.zeros((*tokens.shape, golden.spec.logits), np.float32)
    for ids, order in cut(tokens, seed):
        there = order >= 0
        first = np.where(there, order, tokens.shape[1]).min(1)
        cache = layout.room(cache, first.tolist(), (first + there.sum(1)).tolist())
        logits, cache = loop(golden.spec, golden.params, Inputs(jnp.asarray(ids), jnp.asarray(order)), cache)
        rows, places = np.nonzero(there)
        out[rows, order[rows, places]] = np.asarray(logits)[rows, places]
    return out


@pytest.mark.parametrize(
    ("how", "name", "times"),
    [pytest.param(how, name, FEW, id=f"{how}-{name}-few") for how, some in SHORT.items() for name in some]
    + [
        pytest.param(how, name, TIMES, id=f"{how}-{name}", marks=pytest.mark.slow)
        for name in NAMES
        if name in distinct()
        for how in SHORT
    ],
)
def test_however_a_text_is_cut_and_laid_out_it_is_the_text(how: str, name: str, times: int):
    golden = load(name)
    tokens = golden.tokens[:, : length_of(golden)]
    expected = logits_of(golden.spec, golden.params, tokens)
    for seed in range(times):
        assert_close(through(golden, tokens, how, seed), expected, ROUNDED.get(name, 1.0))
