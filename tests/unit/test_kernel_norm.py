"""The kernel of root-mean-square norms, against the formula in float64 and the plain path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.norm import norm, normalise
from forge_jax.spec import Norm

pytestmark = pytest.mark.usefixtures("kernels_built")


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def in_float64(spec: Norm, x: Any, scale: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.eps) * (spec.offset + np.asarray(scale, np.float64))


def calls(run: Any, *args: Any) -> int:
    return jax.jit(run).lower(*args).as_text().count("@forge_jax.norm")


@pytest.mark.parametrize("shape", [(1, 1, 576), (2, 7, 577), (3, 129, 1024), (2, 5, 9, 64), (40, 3), (1, 1)])
@pytest.mark.parametrize("spec", [Norm(1e-5), Norm(1e-6, offset=1.0)], ids=["weight", "weight less one"])
def test_rows_are_those_of_the_formula(shape, spec):
    x, scale = normal(*shape) * 3, normal(shape[-1], seed=1)

    def run(x: jax.Array, scale: jax.Array) -> jax.Array:
        return norm(spec, {"scale": scale}, x)

    assert calls(run, x, scale) == 1
    np.testing.assert_allclose(jax.jit(run)(x, scale), in_float64(spec, x, scale), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_a_mapped_norm_is_that_of_each(axes):
    spec, x, scale = Norm(1e-5), normal(4, 5, 24), normal(4, 24, seed=1)
    x, scale = (array if axis == 0 else array[0] for axis, array in zip(axes, (x, scale), strict=True))
    found = jax.jit(jax.vmap(lambda x, scale: norm(spec, {"scale": scale}, x), axes))(x, scale)
    for i in range(4):
        one = in_float64(spec, x[i] if axes[0] == 0 else x, scale[i] if axes[1] == 0 else scale)
        np.testing.assert_allclose(found[i], one, rtol=1e-6, atol=1e-6)


def test_derivatives_are_those_of_the_plain_path():
    spec, x, scale = Norm(1e-5, offset=1.0), normal(2, 3, 40), normal(40, seed=1)
    ways = (norm, normalise)
    slopes = [jax.grad(lambda x, w, f=f: (f(spec, {"scale": w}, x) ** 3).sum(), (0, 1))(x, scale) for f in ways]
    for found, want in zip(*slopes, strict=True):
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (Norm(kind="layer"), "float32"),
        (Norm(kind="unit"), "float32"),
        (Norm(bias=True), "float32"),
        (Norm(), "bfloat16"),
    ],
)
def test_what_the_kernel_has_not_takes_the_plain_path(spec, dtype):
    x, params = normal(3, 32).astype(dtype), {"scale": normal(32, seed=1), "bias": normal(32, seed=2)}
    assert calls(lambda x: norm(spec, params, x), x) == 0


def test_rows_without_numbers():
    assert norm(Norm(), {"scale": jnp.ones(8)}, jnp.zeros((0, 8))).shape == (0, 8)
