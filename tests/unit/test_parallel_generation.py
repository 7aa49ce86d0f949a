"""A session on a mesh makes the tokens of a session on one device."""

import numpy as np
import pytest

from forge_jax import parallel
from forge_jax.generation.session import Session
from forge_jax.params import Tree, map_params
from forge_jax.sampling import SamplingParams
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]


def model() -> ModelSpec:
    """Two layers, one of them a ring; 6:2 heads."""

    def layer(window: int | None) -> Block:
        attention = Attention(6, 2, 8, 0.35, rope=Rope(8), window=window)
        return Block((Branch("attention", attention, pre=Norm()), Branch("mlp", Mlp(20), pre=Norm())))

    return ModelSpec(37, 16, (layer(None), layer(16)), 400, final_norm=Norm())


def numbers(spec: ModelSpec) -> Tree:
    """Host parameters."""
    rng = np.random.default_rng(0)
    return map_params(lambda p: rng.normal(size=p.shape).astype(np.float32) * np.float32(0.5), spec)


@pytest.mark.parametrize("shards", [2, 8])
def test_tokens_of_a_session(shards: int) -> None:
    """Greedy and sampled rows, logprobs, two continuations a prompt, a cache that grows, and a second turn."""
    spec, mesh = model(), parallel.make_mesh(shards)
    params = numbers(spec)
    sampling = [SamplingParams(temperature=0), SamplingParams(top_k=9, repetition_penalty=1.2, seed=1)] * 2
    options = {"max_new_tokens": 270, "sampling": sampling, "n": 2}
    plain = Session(spec, params, PROMPTS, **options)
    mapped = Session(spec, parallel.shard(spec, params, mesh), PROMPTS, programs=parallel.programs(mesh), **options)
    for _ in range(2):
        for session in (plain, mapped):
            session.advance()
        for ours, theirs in zip(mapped.outputs(), plain.outputs(), strict=True):
            assert len(ours.ids) > 5
            assert ours.ids == theirs.ids
            assert ours.finish_reason == theirs.finish_reason
        for session in (plain, mapped):
            session.extend([[1], [2, 3], [4], [5, 6, 7]], max_new_tokens=6)
    slab = mapped.state.cache.layers[0]["attention"]["k"]
    assert slab.sharding.spec[1] == "model"
    assert slab.addressable_shards[0].data.shape[1] == 2 * -(-4 // shards) // 2
