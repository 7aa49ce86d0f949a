"""Small formulas against float64."""

import jax.numpy as jnp
import numpy as np

from forge_jax.ops import sinusoids
from forge_jax.ops.mlp import xielu


def test_xielu_is_the_formula_of_its_paper() -> None:
    x = np.concatenate([np.linspace(-6, 6, 25), [-1e-7, 0.0, 1e-7]])
    p, n, beta, eps = 0.3, -0.7, 0.45, -1e-6
    alpha_p, alpha_n = np.log1p(np.exp(p)), beta + np.log1p(np.exp(n))
    above = alpha_p * x * x + beta * x
    below = alpha_n * (np.expm1(np.minimum(x, eps)) - x) + beta * x
    params = {
        "alpha_p": jnp.asarray([p]),
        "alpha_n": jnp.asarray([n]),
        "beta": jnp.asarray(beta),
        "eps": jnp.asarray(eps),
    }
    found = xielu(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, np.where(x > 0, above, below), rtol=2e-6, atol=2e-7)


def test_sinusoids_are_sines_and_then_cosines() -> None:
    position = np.array([[0, 3, 100]])
    angle = position[..., None] / 500.0 ** (np.arange(0, 8, 2) / 8)
    found = sinusoids(jnp.asarray(position), 8, 500.0)
    np.testing.assert_allclose(found, np.concatenate([np.sin(angle), np.cos(angle)], -1), rtol=0, atol=1e-5)
