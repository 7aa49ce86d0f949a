"""Where JAX counts in 64 bits (`jax_enable_x64`), texts are what they are elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import EarlyExit, Lookup, ModelSpec, SamplingParams, Session
from forge_jax.params import map_params
from forge_jax.spec import Attention, Block, Branch, Mlp, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

LAYER = Block(
    (
        Branch("attention", Attention(4, 2, 8, 8**-0.5, rope=Rope(8), window=6), pre=Norm()),
        Branch("mlp", Mlp(24), pre=Norm()),
    )
)
SPEC = ModelSpec(30, 16, (LAYER, LAYER), 256, final_norm=Norm(), tied=True)
PROMPTS = [[1, 2, 3, 1, 2, 3, 1, 2], [7, 5]]
GREEDY = SamplingParams(temperature=0, repetition_penalty=1.2, logprobs=1)


def texts(dtype: Any, **options: Any) -> list[list[int]]:
    rng = np.random.default_rng(0)
    params = map_params(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.5, dtype), SPEC)
    session = Session(SPEC, params, PROMPTS, max_new_tokens=10, sampling=GREEDY, **options)
    session.advance()
    return session.ids()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "paged", "cache_dtype": "int8"},
        {"draft": Lookup(shortest=1), "draft_always": True},
        {"draft": EarlyExit(layers=1), "draft_always": True},
    ],
    ids=["plain", "paged", "lookup", "early exit"],
)
def test_texts_are_the_same(options: dict[str, Any]) -> None:
    expected = texts(jnp.float32, **options)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # as users have it
        assert texts(jnp.float32, **options) == expected
        if not options:
            assert texts(jnp.float64) == expected
