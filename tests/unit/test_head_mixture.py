"""Rows through the experts that they chose, by either path; and what a mixture of heads refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops.head_mixture import grouped, ragged
from forge_jax.spec import Attention, Gate, HeadMixture, Router

pytestmark = pytest.mark.usefixtures("quick_compiles")

SHAPES = {"MD,DKH->MKH": ((6,), (6, 2, 3)), "MKH,KHD->MD": ((2, 3), (2, 3, 6))}


@pytest.mark.parametrize("rows", [1, 5, 40, 700])
@pytest.mark.parametrize("split", SHAPES)
def test_each_row_goes_through_its_expert(split: str, rows: int) -> None:
    random, (inputs, weights) = np.random.default_rng(rows), SHAPES[split]
    x, w = random.normal(size=(rows, *inputs)), random.normal(size=(5, *weights))
    ids = random.choice([0, 1, 4], rows)  # two experts are chosen by none
    expected = np.stack([np.tensordot(row, w[i], len(inputs)) for row, i in zip(x, ids, strict=True)])
    given = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), jnp.asarray(ids, jnp.int32)
    for found in (jax.jit(grouped, static_argnums=3)(*given, split), jax.jit(ragged)(*given)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("attention", [Attention(4, 2, 8, 1.0), Attention(2, 2, 8, 1.0, gate=Gate())])
def test_options_that_experts_do_not_have_are_refused(attention: Attention) -> None:
    with pytest.raises(ValueError, match="expected as many heads as kv heads, and no other options"):
        HeadMixture(attention, Router(4, 2))
