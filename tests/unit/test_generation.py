"""Generation against its definition: the greedy continuation is the argmax of a plain forward pass, token by token."""

import dataclasses
import signal
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compilations

from forge_jax import SamplingParams, Session, generate, stream
from forge_jax import params as P
from forge_jax.cache import init
from forge_jax.decoder import Inputs, forward
from forge_jax.generation import bucket, capacity
from forge_jax.generation.sizes import chunks
from forge_jax.ops import Context
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

NORM = Norm(1e-5)


def layer(window: int | None) -> Block:
    attention = Attention(4, 2, 16, 0.25, Rope(16), window=window)
    return Block((Branch("attention", attention, NORM), Branch("mlp", Mlp(56), NORM)))


SPEC = ModelSpec(160, 48, (layer(None), layer(5)), 1024, NORM, tied=True)


@pytest.fixture(scope="module")
def params():
    return P.init(SPEC, jax.random.key(0))


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 160, length).tolist()


@lru_cache
def plain():
    return jax.jit(forward, static_argnums=0)


def reference(params, row: list[int], count: int, size: int = 128) -> list[int]:
    """Greedy continuation without any cache."""
    row = list(row)
    for _ in range(count):
        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(row)] = row
        order = np.where(np.arange(size) < len(row), np.arange(size), -1)[None].astype(np.int32)
        logits, _ = plain()(SPEC, params, Inputs(jnp.asarray(tokens), jnp.asarray(order)))
        row.append(int(logits[0, len(row) - 1].argmax()))
    return row[-count:]


def test_ragged_batch_equals_plain(params):
    rows = [prompt(3), prompt(24, 1), prompt(70, 2)]
    out = generate(SPEC, params, rows, max_new_tokens=30)
    assert [list(o.ids) for o in out] == [reference(params, row, 30) for row in rows]
    assert {o.finish_reason for o in out} == {"length"}


def test_stream_gives_the_same_tokens(params):
    rows = [prompt(3), prompt(24, 1)]
    out = generate(SPEC, params, rows, max_new_tokens=[12, 5])
    steps = list(stream(SPEC, params, rows, max_new_tokens=[12, 5]))
    assert len(steps) == 12
    for row, output in enumerate(out):
        assert [step[row] for step in steps if step[row] is not None] == list(output.ids)
    assert all(step[1] is None for step in steps[5:])


def test_prompt_longer_than_a_chunk(params):
    row = prompt(600)
    assert list(generate(SPEC, params, [row], max_new_tokens=5)[0].ids) == reference(params, row, 5, size=1024)


def test_stop_id_ends_a_row_and_is_reported(params):
    row = prompt(9)
    ids = reference(params, row, 10)
    stop = ids[4]
    first = ids.index(stop)
    out = generate(SPEC, params, [row, prompt(5, 3)], max_new_tokens=10, stop_ids=[stop])
    assert list(out[0].ids) == ids[: first + 1]
    assert out[0].finish_reason == "stop"


def test_resume_after_finish_equals_plain(params):
    rows, more = [prompt(3), prompt(24, 1)], [[1, 2], [3]]
    session = Session(SPEC, params, rows, max_new_tokens=10)
    session.advance()
    session.finish(0, 4)
    before = session.ids()
    assert list(map(len, before)) == [4, 10]
    session.extend(more, max_new_tokens=8)
    session.advance()
    for row in range(2):
        assert session.ids()[row] == reference(params, rows[row] + before[row] + more[row], 8)


def test_cache_grows_when_the_text_does(params):
    session = Session(SPEC, params, [prompt(8)], max_new_tokens=600)
    assert session.state.cache.length == 256
    session.advance()
    ids = session.ids()[0]
    assert len(ids) == 600
    assert session.state.cache.length == 768
    assert ids[500:510] == reference(params, prompt(8) + ids[:500], 10, size=1024)


def test_n_reads_the_prompt_once_and_draws_apart(params):
    out = generate(SPEC, params, [prompt(9)], max_new_tokens=20, n=3, sampling=SamplingParams(temperature=1.0), seed=1)
    assert len({o.ids for o in out}) == 3


def test_a_seeded_row_is_the_same_in_any_batch(params):
    seeded = SamplingParams(temperature=0.9, top_k=40, seed=7)
    alone = generate(SPEC, params, [prompt(9)], max_new_tokens=20, sampling=seeded)[0].ids
    other = SamplingParams(temperature=1.0, seed=8)
    rows, sampling = [prompt(30, 4), prompt(9), prompt(2, 5)], [other, seeded, other]
    assert generate(SPEC, params, rows, max_new_tokens=20, sampling=sampling)[1].ids == alone


def test_logprobs_are_those_of_the_model(params):
    row = prompt(9)
    out = generate(SPEC, params, [row], max_new_tokens=4, sampling=SamplingParams(temperature=0, logprobs=3))[0]
    tokens = jnp.asarray([row + list(out.ids)])
    order = jnp.arange(tokens.shape[1])[None]
    logits, _ = forward(SPEC, params, Inputs(tokens, order))
    want = jax.nn.log_softmax(logits[0, len(row) - 1 : -1])
    assert out.logprobs is not None
    assert out.top_logprobs is not None
    np.testing.assert_allclose(out.logprobs, [float(want[i, t]) for i, t in enumerate(out.ids)], atol=1e-5)
    for i, top in enumerate(out.top_logprobs):
        assert len(top) == 3
        assert next(iter(top)) == int(want[i].argmax())


# ------------------------------------------------------------------------------------------------ compilation
@pytest.mark.parametrize("bucket", [range(17, 33), range(33, 65)], ids=str)
def test_one_program_for_every_length(params, bucket):
    generate(SPEC, params, [prompt(bucket[0])], max_new_tokens=3)
    with compilations() as seen:
        for length in bucket:
            generate(SPEC, params, [prompt(length)], max_new_tokens=length % 7 + 2)
        for count in (1, 2, 31, 33, 64, 100):
            generate(SPEC, params, [prompt(bucket[3])], max_new_tokens=count)
    assert seen == []


def test_sampling_values_do_not_compile_again(params):
    generate(SPEC, params, [prompt(17)], max_new_tokens=3, sampling=SamplingParams(temperature=0.5, top_k=10))
    with compilations() as seen:
        for k, temperature in ((5, 0.7), (20, 1.3), (40, 0.1)):
            sampling = SamplingParams(temperature=temperature, top_k=k, seed=k)
            generate(SPEC, params, [prompt(18)], max_new_tokens=4, sampling=sampling)
    assert seen == []


def test_sizes():
    assert [bucket(n) for n in (1, 16, 17, 512, 513)] == [16, 16, 32, 512, 1024]
    assert capacity(10, 8192) == 256
    assert [capacity(n, 8192) for n in (256, 257, 384, 385, 512, 513, 768, 769)] == [
        256,
        384,
        384,
        512,
        512,
        768,
        768,
        1024,
    ]
    assert capacity(390, 400) == 400
    assert chunks(1100, 8192) == [512, 512, 128]
    with pytest.raises(ValueError, match="do not fit the model's context of 8192"):
        capacity(8193, 8192)


# ------------------------------------------------------------------------------------------------ bad input
def test_errors_name_what_is_wrong(params):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        Session(SPEC, params, [[1], []])
    with pytest.raises(ValueError, match="id 160, outside the model's vocabulary of 160"):
        Session(SPEC, params, [[160]])
    with pytest.raises(ValueError, match="1025 tokens is longer than the model's context of 1024"):
        Session(SPEC, params, [prompt(1025)])
    with pytest.raises(ValueError, match="1034 tokens .* do not fit"):
        Session(SPEC, params, [prompt(1000)], max_new_tokens=34)
    with pytest.raises(ValueError, match="expected 0 or more"):
        Session(SPEC, params, [[1]], max_new_tokens=-1)


def test_nan_weights_are_an_error(params):
    bad = params | {"final_norm": {"scale": params["final_norm"]["scale"].at[0].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"rows \[0\] gave NaN"):
        generate(SPEC, bad, [[1, 2]], max_new_tokens=3)


def test_an_interrupt_leaves_the_session_usable(params):
    session = Session(SPEC, params, [prompt(9)], max_new_tokens=200)
    calls = {"n": 0}
    real = session.programs.advance

    def interrupted(*args):
        calls["n"] += 1
        if calls["n"] == 2:
            signal.raise_signal(signal.SIGINT)  # between the call and the storing of its result
        return real(*args)

    session.programs = dataclasses.replace(session.programs, advance=interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.advance()
    made = session.ids()[0]
    assert 1 + 32 <= len(made) <= 1 + 64
    session.advance()
    assert session.ids()[0] == list(generate(SPEC, params, [prompt(9)], max_new_tokens=200)[0].ids)


# ------------------------------------------------------------------------------------------------ memory
def test_decoding_copies_neither_weights_nor_cache(params):
    """The program of the loop needs no room beyond one token's activations."""
    session = Session(SPEC, params, [prompt(9)], max_new_tokens=200)
    args = (SPEC, session.plan, params, session.values, session.state, np.int32(4))
    memory = session.programs.advance.lower(*args, Context()).compile().memory_analysis()
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert memory.alias_size_in_bytes >= cache
    assert memory.temp_size_in_bytes < 0.5 * min(cache, weights)


def test_ring_layers_hold_no_more_than_their_window():
    cache = init(SPEC, 2, 512)
    assert cache.layers[0]["attention"]["k"].shape == (2, 2, 512, 16)
    assert cache.layers[1]["attention"]["k"].shape == (2, 2, 5, 16)
