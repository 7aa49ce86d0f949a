"""State space recurrences against a loop in float64: in one piece, in chunks, token by token."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.chunks import over_chunks
from forge_jax.ops.mamba import recur as selective
from forge_jax.ops.mamba2 import recur as dual
from forge_jax.ops.mamba2 import step
from forge_jax.ops.wkv import NOTHING, average

pytestmark = pytest.mark.usefixtures("quick_compiles")

BATCH, LENGTH, HEADS, SIZE, STATE = 2, 23, 3, 4, 5
CUTS = ([23], [7, 1, 9, 6], [1] * 23, [12, 11])

Inputs = Sequence[np.ndarray]


def draw(step_axes: tuple[int, ...], rate_axes: tuple[int, ...]) -> tuple[np.ndarray, Inputs]:
    """A and (dt, x, B, C); some steps are 0, as those of padding are, and some so large that the state is forgotten."""
    random = np.random.default_rng(0)
    lead = (BATCH, LENGTH)
    dt = random.uniform(0, 2, (*lead, *step_axes)) * random.choice([0, 1, 20], (*lead, *step_axes), p=[0.2, 0.7, 0.1])
    x = random.normal(size=(*lead, HEADS, SIZE))
    b, c = random.normal(size=(2, *lead, HEADS, STATE))
    return -random.uniform(0.1, 3, rate_axes), (dt, x, b, c)


def plain(a: np.ndarray, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence, a token at a time; dt is [B, T, N, H or 1] and a [N, H or 1, S or 1]."""
    h = np.zeros((BATCH, HEADS, SIZE, STATE))
    out = []
    for t in range(LENGTH):
        dt, x, b, c = (part[:, t] for part in inputs)
        h = np.exp(dt[..., None] * a) * h + (dt * x)[..., None] * b[:, :, None]
        out.append((h * c[:, :, None]).sum(-1))
    return h, np.stack(out, 1)


def check(run: Callable[..., Any], inputs: Inputs, expected: tuple[np.ndarray, np.ndarray], cut: list[int]) -> None:
    """Hand the state from piece to piece; pieces are themselves cut into chunks of 4 tokens."""
    state, found = jnp.zeros(expected[0].shape, jnp.float32), []
    piecewise = jax.jit(lambda state, piece: over_chunks(run, state, piece, 4))
    for stop, length in zip(np.cumsum(cut), cut, strict=True):
        piece = tuple(jnp.asarray(part[:, stop - length : stop], jnp.float32) for part in inputs)
        state, y = piecewise(state, piece)
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), expected[1], rtol=0, atol=1e-5 * np.abs(expected[1]).max())
    np.testing.assert_allclose(state, expected[0], rtol=0, atol=1e-5 * np.abs(expected[0]).max())


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_selective_state_space(cut: list[int]) -> None:
    a, inputs = draw((HEADS, SIZE), (HEADS, SIZE, STATE))
    check(partial(selective, jnp.asarray(a, jnp.float32)), inputs, plain(a, inputs), cut)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_state_space_duality(cut: list[int]) -> None:
    a, inputs = draw((HEADS,), (HEADS,))
    run = partial(dual, jnp.asarray(a, jnp.float32))
    check(run, inputs, plain(a[:, None, None], (inputs[0][..., None], *inputs[1:])), cut)


def test_one_token_of_state_space_duality() -> None:
    a, inputs = draw((HEADS,), (HEADS,))
    run = partial(step, jnp.asarray(a, jnp.float32))
    check(run, inputs, plain(a[:, None, None], (inputs[0][..., None], *inputs[1:])), [1] * LENGTH)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_decaying_average(cut: list[int]) -> None:
    random = np.random.default_rng(0)
    # keys so far apart that their exponentials overflow; some tokens are padding
    k, v = 60 * random.normal(size=(BATCH, LENGTH, SIZE)), random.normal(size=(BATCH, LENGTH, SIZE))
    decay, bonus = random.normal(size=(2, SIZE))
    real = (random.uniform(size=(BATCH, LENGTH)) < 0.8).astype(np.float64)
    num, den = np.zeros((2, BATCH, SIZE), np.longdouble)
    expected = np.zeros(v.shape)
    for t in range(LENGTH):
        now = np.exp((k[:, t] + bonus).astype(np.longdouble))
        expected[:, t] = (num + now * v[:, t]) / (den + now)
        kept = np.where(real[:, t, None] > 0, np.exp(-np.exp(decay)), 1)
        now = real[:, t, None] * np.exp(k[:, t].astype(np.longdouble))
        num, den = kept * num + now * v[:, t], kept * den + now

    run = partial(average, *(jnp.asarray(x, jnp.float32) for x in (decay, bonus)))
    zeros = jnp.zeros((BATCH, SIZE), jnp.float32)
    state, found = (zeros, zeros, zeros + NOTHING), []
    piecewise = jax.jit(lambda state, piece: over_chunks(run, state, piece, 4))
    for stop, length in zip(np.cumsum(cut), cut, strict=True):
        piece = tuple(jnp.asarray(part[:, stop - length : stop], jnp.float32) for part in (k, v, real))
        state, y = piecewise(state, piece)
        found.append(y)
    # a key of 200 is rounded to 1e-5, and so is the logarithm of its weight
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state[0] / state[1], (num / den).astype(np.float64), rtol=0, atol=1e-4)
