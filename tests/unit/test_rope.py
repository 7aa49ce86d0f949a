"""Rotary positions against the papers' formulas in float64, and against transformers where torch is installed."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.rope import explain, frequencies, rotate
from forge_jax.spec import DynamicNtk, Linear, Llama3, LongRope, Proportional, Rope, Yarn

DIM, THETA, ORIGINAL, LENGTH = 32, 10000.0, 64, 256
LONG = tuple(1 + 0.3 * i for i in range(DIM // 2))
SHORT = tuple(1 + 0.05 * i for i in range(DIM // 2))
LONGROPE = LongRope(SHORT, LONG, ORIGINAL, math.sqrt(1 + math.log(4) / math.log(ORIGINAL)))

CASES = {
    "default": (None, {"rope_type": "default"}),
    "linear": (Linear(3.5), {"rope_type": "linear", "factor": 3.5}),
    "dynamic": (DynamicNtk(2.0, LENGTH), {"rope_type": "dynamic", "factor": 2.0}),
    "yarn": (
        Yarn(4.0, ORIGINAL, 0.1 * math.log(4) + 1),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    ),
    "yarn_no_truncate": (
        Yarn(4.0, ORIGINAL, 1.25, 24.0, 2.0, truncate=False),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
            "attention_factor": 1.25,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
    "llama3": (
        Llama3(8.0, 1.0, 4.0, ORIGINAL),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "longrope": (
        LONGROPE,
        {
            "rope_type": "longrope",
            "short_factor": list(SHORT),
            "long_factor": list(LONG),
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "proportional": (
        Proportional(DIM // 8, 2.0),
        {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.25},
    ),
}


def derived(scaling, length: int = 1) -> np.ndarray:
    freq = np.asarray(frequencies(Rope(DIM, THETA, scaling=scaling), jnp.asarray([length])))
    return freq[0] if freq.ndim == 2 else freq


@pytest.mark.torch
@pytest.mark.parametrize("length", [1, ORIGINAL, LENGTH, 2 * LENGTH])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, length: int):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, params = CASES[name]
    config = LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        head_dim=DIM,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_theta": THETA, **params},
    )
    if name == "default":
        import torch

        want, factor = 1.0 / (THETA ** (torch.arange(0, DIM, 2).float() / DIM)), 1.0
    else:
        want, factor = ROPE_INIT_FUNCTIONS[params["rope_type"]](config, "cpu", seq_len=length)
    # transformers computes powers in float32, two units in the last place apart
    np.testing.assert_allclose(derived(scaling, length), want.numpy(), rtol=3e-7)
    assert explain(Rope(DIM, THETA, scaling=scaling), length).attention_factor == pytest.approx(factor, rel=1e-7)


def test_frequencies_by_their_formulas():
    pair = np.arange(DIM // 2)
    base = THETA ** (-2.0 * pair / DIM)
    np.testing.assert_allclose(derived(None), base, rtol=3e-7)
    np.testing.assert_allclose(derived(Linear(3.5)), base / 3.5, rtol=3e-7)
    theta = THETA * (2.0 * 512 / 256 - 1.0) ** (DIM / (DIM - 2))
    np.testing.assert_allclose(derived(DynamicNtk(2.0, 256), 512), theta ** (-2.0 * pair / DIM), rtol=1e-6)
    np.testing.assert_allclose(derived(DynamicNtk(2.0, 256), 100), base, rtol=1e-6)
    np.testing.assert_allclose(derived(LONGROPE, ORIGINAL), base / np.array(SHORT), rtol=3e-7)
    np.testing.assert_allclose(derived(LONGROPE, ORIGINAL + 1), base / np.array(LONG), rtol=3e-7)
    np.testing.assert_allclose(derived(Proportional(4, 2.0)), np.where(pair < 4, base / 2, 0), rtol=3e-7)


def test_yarn_keeps_fast_features_and_interpolates_slow_ones():
    freq, base = derived(Yarn(4.0, ORIGINAL, 1.0)), derived(None)
    assert freq[0] == base[0]
    assert freq[-1] == pytest.approx(base[-1] / 4)
    assert np.all(np.diff(freq / base) <= 1e-7)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [DIM, 12])
def test_rotation_by_complex_numbers(interleaved: bool, dim: int):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, DIM)).astype(np.float32)
    position = rng.integers(0, 1000, (2, 5))
    freq = np.asarray(frequencies(Rope(dim, THETA)), np.float64)
    turn = np.exp(1j * position[..., None, None] * freq)
    part = x[..., :dim].astype(np.float64)
    a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else (part[..., : dim // 2], part[..., dim // 2 :])
    z = (a + 1j * b) * turn
    want = np.stack([z.real, z.imag], -1).reshape(part.shape) if interleaved else np.concatenate([z.real, z.imag], -1)
    got = np.asarray(rotate(Rope(dim, THETA, interleaved), jnp.asarray(x), jnp.asarray(position)))
    # the angle is a float32: at position 1000 it is known to 6e-5
    np.testing.assert_allclose(got[..., :dim], want, atol=5e-4)
    np.testing.assert_array_equal(got[..., dim:], x[..., dim:])


def test_length_is_asked_for_where_it_matters():
    with pytest.raises(ValueError, match="pass length_B"):
        frequencies(Rope(DIM, THETA, scaling=DynamicNtk(2.0, 64)))
    with pytest.raises(ValueError, match="3 factors for 16 feature pairs"):
        frequencies(Rope(DIM, THETA, scaling=LongRope((1.0,) * 3, (1.0,) * 3, 64, 1.0)))
