"""A session on a mesh makes the tokens of a session on one device."""

import numpy as np
import pytest

from forge_jax import parallel
from forge_jax.decoder import inputs
from forge_jax.generation.session import Session
from forge_jax.params import Tree, map_params
from forge_jax.sampling import SamplingParams
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


@pytest.mark.parametrize("shards", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_tokens_of_a_session(shards: int) -> None:
    """Greedy and sampled rows, logprobs, two continuations a prompt, a second turn, and a cache that grows in it."""
    spec, mesh = model(), parallel.make_mesh(shards)
    params = numbers(spec)
    greedy = SamplingParams(temperature=0, logprobs=2)
    sampling = [greedy, SamplingParams(top_k=9, repetition_penalty=1.2, seed=1, logprobs=2)] * 2
    options = {"max_new_tokens": 12, "sampling": sampling, "n": 2}
    plain = Session(spec, params, PROMPTS, **options)
    mapped = Session(spec, parallel.shard(spec, params, mesh), PROMPTS, programs=parallel.programs(mesh), **options)
    lengths: list[int] = []
    for turn in range(2):
        for session in (plain, mapped):
            if turn:
                session.extend([[1] * 250, [2, 3], [4] * 100, [5, 6, 7]], max_new_tokens=6)
            session.advance()
        for ours, theirs in zip(mapped.outputs(), plain.outputs(), strict=True):
            assert len(ours.ids) == (6 if turn else 12)
            assert ours.ids == theirs.ids
            assert ours.finish_reason == theirs.finish_reason
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)  # logits are as large as 10
        lengths.append(mapped.state.cache.length)
    assert lengths[0] < lengths[1]
    texts = np.asarray(plain.state.history.tokens_BS)[:, :8]
    whole, _ = plain.programs.forward(spec, params, inputs(texts), None)
    logits, _ = mapped.programs.forward(spec, mapped.params, inputs(texts), None)
    np.testing.assert_allclose(logits, whole, atol=1e-4)
    slab = mapped.state.cache.layers[0]["attention"]["k"].parts["values"]
    assert slab.sharding.spec[1] == "model"
    assert slab.addressable_shards[0].data.shape[1] == 1  # of 2 kv heads on 2 devices, of 6 and 2 of padding on 8
