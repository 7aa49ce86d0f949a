"""What `Forge` computes: forward with and without a cache, losses, generation, text, int8."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_chat_model

from forge_jax import Forge, ForgeConfig
from forge_jax.params import flatten, unflatten
from forge_jax.tensor import QTensor, dense

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = ForgeConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=48, dropout=0.1)
IDS = np.array([[5, 9, 2, 7, 11, 3], [1, 0, 59, 4, 8, 6]])


@pytest.fixture(scope="module")
def forge() -> Forge:
    return Forge(config=CONFIG)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A model with a tokenizer and a chat template."""
    return Forge.from_pretrained(write_chat_model(tmp_path_factory.mktemp("chat") / "model"), progress=False)


def continued(forge: Forge, ids: np.ndarray, count: int) -> np.ndarray:
    """Greedy ids from plain forward passes alone."""
    for _ in range(count):
        logits = np.asarray(plain(forge, ids))
        ids = np.concatenate([ids, logits[:, -1].argmax(-1)[:, None]], 1)
    return ids


def plain(forge: Forge, ids: Any) -> jax.Array:
    """Logits without a cache, padded so that few programs are compiled: later tokens cannot matter."""
    ids = np.asarray(ids)
    padded = np.zeros((ids.shape[0], CONFIG.max_seq_len), np.int32)
    padded[:, : ids.shape[1]] = ids
    logits = forge.forward(padded)
    assert isinstance(logits, jax.Array)
    return logits[:, : ids.shape[1]]


# ------------------------------------------------------------------------------------------------ forward
def test_forward_gives_float32_logits(forge: Forge):
    logits = forge.forward(IDS)
    assert isinstance(logits, jax.Array)
    assert (logits.shape, logits.dtype) == ((2, 6, 60), jnp.float32)
    np.testing.assert_array_equal(forge(IDS), logits)
    np.testing.assert_allclose(forge.forward(IDS[0].tolist())[0], logits[0], atol=1e-5)


def test_the_loss(forge: Forge):
    logits = np.asarray(forge.forward(IDS), np.float64)
    nll = -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    targets = np.array([[9, 2, 0, 11, 3, 0], [0, 59, 4, 8, 0, 1]])
    each = np.take_along_axis(nll, targets[..., None], -1)[..., 0]
    ours, loss = forge.forward(IDS, targets)
    np.testing.assert_array_equal(ours, forge.forward(IDS))
    np.testing.assert_allclose(loss, each[targets != 0].mean(), rtol=1e-5)  # index 0 is ignored, as it always was
    _, loss = forge.forward(IDS, targets, ignore_index=-100)
    np.testing.assert_allclose(loss, each.mean(), rtol=1e-5)
    masked = np.where(targets == 3, -100, targets)
    _, loss = forge.forward(IDS, masked, ignore_index=-100)
    np.testing.assert_allclose(loss, each[targets != 3].mean(), rtol=1e-5)
    _, loss = forge.forward(IDS, np.zeros_like(IDS))
    assert float(loss) == 0.0


def test_the_loss_without_targets_is_that_of_the_next_ids(forge: Forge):
    logits, loss = forge.forward(IDS, return_loss=True)
    assert logits.shape == (2, 6, 60)
    shifted = np.concatenate([IDS[:, 1:], np.zeros((2, 1), int)], 1)
    np.testing.assert_allclose(loss, forge.forward(IDS, shifted)[1], rtol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 5}, {"use_rope": False, "use_rms_norm": False}])
@pytest.mark.parametrize("chunks", [(20,), (7, 1, 1, 8, 3)])
def test_forward_in_chunks_is_forward(changes: dict[str, Any], chunks: tuple[int, ...]):
    """Any number of tokens at any start."""
    forge = small(ForgeConfig(**{**CONFIG.to_dict(), **changes}))
    ids = np.random.default_rng(0).integers(0, 60, (2, 20))
    whole, at = np.asarray(plain(forge, ids)), 0
    for size in chunks:
        logits = forge.forward(ids[:, at : at + size], use_cache=True, start_pos=at)
        np.testing.assert_allclose(logits, whole[:, at : at + size], atol=1e-5)
        at += size


MADE: dict[ForgeConfig, Forge] = {}


def small(config: ForgeConfig) -> Forge:
    """One model a config, so that its programs are compiled once."""
    MADE.setdefault(config, Forge(config=config)).clear_cache()
    return MADE[config]


@pytest.mark.parametrize("window", [None, 5])
def test_going_back_in_the_cache(window: int | None):
    forge = small(ForgeConfig(**{**CONFIG.to_dict(), "sliding_window": window}))
    ids = np.random.default_rng(1).integers(0, 60, (2, 20))
    forge.forward(ids, use_cache=True)
    again = np.concatenate([ids[:, :8], ids[:, :6][:, ::-1]], 1)
    logits = forge.forward(again[:, 8:], use_cache=True, start_pos=8)  # 12 tokens are taken back
    np.testing.assert_allclose(logits, plain(forge, again)[:, 8:], atol=1e-5)
    with pytest.raises(ValueError, match="start_pos = 15, but the cache holds 14 tokens"):
        forge.forward(ids[:, :1], use_cache=True, start_pos=15)
    with pytest.raises(ValueError, match="1 rows, but the cache holds 2"):
        forge.forward(ids[:1, :1], use_cache=True, start_pos=14)


def test_the_cache_grows_when_it_must():
    config = ForgeConfig(20, dim=8, n_layers=1, n_heads=2, max_seq_len=600, sliding_window=30)
    forge = Forge(config=config)
    ids = np.random.default_rng(0).integers(0, 20, (1, 600))
    whole = np.asarray(forge.forward(ids))
    forge.forward(ids[:, :200], use_cache=True)
    assert forge.cache is not None
    assert forge.cache.length == 256
    logits = forge.forward(ids[:, 200:590], use_cache=True, start_pos=200)
    np.testing.assert_allclose(logits, whole[:, 200:590], atol=1e-5)
    assert forge.cache is not None
    assert forge.cache.length == 600
    with pytest.raises(ValueError, match="601 tokens .* do not fit the model's context of 600"):
        forge.forward(ids[:, :11], use_cache=True, start_pos=590)


def test_clear_cache(forge: Forge):
    forge.forward(IDS, use_cache=True)
    forge.clear_cache()
    assert forge.cache is None
    with pytest.raises(ValueError, match="start_pos = 6, but the cache holds 0 tokens"):
        forge.forward(IDS, use_cache=True, start_pos=6)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.ones((1, 2, 3), int), {}, r"ids are int64\[1, 2, 3\]; expected integers of shape \[B, T\]"),
        (np.ones((1, 2)), {}, "ids are float64"),
        ([[60]], {}, "ids reach from 60 to 60; the vocabulary has 60"),
        ([[-1]], {}, "ids reach from -1"),
        ([[1] * 49], {}, "49 tokens .* do not fit the model's context of 48"),
        ([[1]], {"start_pos": 3}, "start_pos counts tokens in the cache; pass use_cache=True"),
        ([[1, 2]], {"targets": [[1]]}, r"targets are \[1, 1\], the ids \[1, 2\]"),
        ([[1, 2]], {"targets": [[1, 60]]}, "ids reach from 1 to 60"),
        ([[1, 2]], {"targets": [[1, -100]]}, "ids reach from -100"),
    ],
)
def test_wrong_ids(forge: Forge, ids: Any, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        forge.forward(ids, **options)


def test_multimodal(forge: Forge):
    np.testing.assert_array_equal(forge.forward_multimodal(IDS), forge.forward(IDS))
    with pytest.raises(ValueError, match="no inputs at all"):
        forge.forward_multimodal()
    for name in ("vision_features", "audio_features"):
        with pytest.raises(ValueError, match="no projection"):
            forge.forward_multimodal(IDS, **{name: np.zeros((2, 3, 16))})


def test_the_balance_loss_of_a_dense_model_is_zero(forge: Forge):
    assert float(forge.get_moe_aux_loss()) == 0.0


# ------------------------------------------------------------------------------------------------ generate
def test_temperature_0_is_the_argmax_of_forward(forge: Forge):
    out = forge.generate(IDS, 12, temperature=0, repetition_penalty=1.0)
    assert (out.shape, out.dtype) == ((2, 18), np.int32)
    np.testing.assert_array_equal(out, continued(forge, IDS, 12))
    np.testing.assert_array_equal(forge.generate(IDS, 12, temperature=0.0, repetition_penalty=1.0, seed=5), out)
    for row in (0, 1):
        np.testing.assert_array_equal(
            forge.generate(IDS[row : row + 1], 12, temperature=0, repetition_penalty=1.0)[0], out[row]
        )


def test_drawing_depends_on_the_seed_alone(forge: Forge):
    one = forge.generate(IDS, 20, seed=1)
    np.testing.assert_array_equal(forge.generate(IDS, 20, seed=1), one)
    assert not np.array_equal(forge.generate(IDS, 20, seed=2), one)
    assert (one[:, :6] == IDS).all()


def test_a_stream_gives_what_generate_gives(forge: Forge):
    for options in ({"temperature": 0}, {"seed": 3}):
        expected = forge.generate(IDS, 10, **options)[:, 6:]
        assert np.array(list(forge.generate_stream(IDS, 10, **options))).T.tolist() == expected.tolist()
        assert np.array(list(forge.generate(IDS, 10, stream=True, **options))).T.tolist() == expected.tolist()
    one = list(forge.generate_stream(IDS[:1], 5, temperature=0))
    assert all(isinstance(token, int) for token in one)
    assert one == forge.generate(IDS[:1], 5, temperature=0)[0, 6:].tolist()


def test_stop_tokens(forge: Forge):
    free = forge.generate(IDS, 12, temperature=0, stop_tokens=[])
    assert forge.generate(IDS, 12, temperature=0, stop_tokens=None).tolist() == free.tolist()  # there is no tokenizer
    stop = int(free[0, 9])
    first = [int(np.flatnonzero(np.append(row[6:], stop) == stop)[0]) for row in free]
    out = forge.generate(IDS, 12, temperature=0, stop_tokens=[stop], pad_token=1)
    assert out.shape[1] == 6 + min(12, max(first) + 1)
    for row in (0, 1):
        end = 6 + first[row] + 1
        assert out[row, :end].tolist() == free[row, :end].tolist()
        assert set(out[row, end:].tolist()) <= {1}
    streamed = list(forge.generate_stream(IDS, 12, temperature=0, stop_tokens=[stop]))
    assert [step[0] for step in streamed[: first[0] + 1]] == free[0, 6 : 7 + first[0]].tolist()
    assert all(step[0] is None for step in streamed[first[0] + 1 :])


def test_stop_tokens_of_the_tokenizer(chat: Forge):
    (eos,) = chat.tokenizer.eos_ids
    always = jnp.zeros_like(chat.params["embed"]).at[eos].set(1.0)  # after itself it has the only logit above 0
    forge = Forge.from_model(dataclasses.replace(chat.model, params={**chat.params, "embed": always}))
    assert forge.generate([[eos, eos]], 4, temperature=0, repetition_penalty=1.0).tolist() == [[eos, eos, eos]]
    assert forge.generate([[eos, eos]], 4, temperature=0, repetition_penalty=1.0, stop_tokens=[]).shape == (1, 6)


def test_return_logits(forge: Forge):
    out, logits = forge.generate(IDS, 7, temperature=0, repetition_penalty=1.0, return_logits=True)
    assert (logits.shape, logits.dtype) == ((2, 7, 60), jnp.float32)
    np.testing.assert_array_equal(np.asarray(logits).argmax(-1), out[:, 6:])
    np.testing.assert_allclose(logits, plain(forge, out)[:, 5:-1], atol=1e-5)
    assert out.tolist() == forge.generate(IDS, 7, temperature=0, repetition_penalty=1.0).tolist()


def test_the_ends_of_generate(forge: Forge):
    assert forge.generate(IDS, 0).tolist() == IDS.tolist()
    out, logits = forge.generate([[3]], 0, return_logits=True)
    assert (out.tolist(), logits.shape) == ([[3]], (1, 0, 60))
    assert forge.generate(IDS, 42, temperature=0).shape == (2, 48)  # the context to its last place
    with pytest.raises(ValueError, match="49 tokens .* do not fit the model's context of 48"):
        forge.generate(IDS, 43)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        forge.generate(np.zeros((1, 0), int))
    with pytest.raises(ValueError, match="temperature"):
        forge.generate(IDS, 3, temperature=-1)
    with pytest.raises(ValueError, match="top_p"):
        forge.generate(IDS, 3, top_p=1.5)


def test_the_repetition_penalty_lowers_every_seen_logit(forge: Forge):
    """Positive logits of what was said are divided, negative ones multiplied; the original divided them, too."""
    out = forge.generate(IDS, 20, temperature=0, repetition_penalty=1.5)
    logits = np.asarray(plain(forge, out))
    for row in (0, 1):
        for at in range(6, 26):
            z, seen = logits[row, at - 1].copy(), np.unique(out[row, :at])
            z[seen] = np.where(z[seen] > 0, z[seen] / 1.5, z[seen] * 1.5)
            assert out[row, at] == z.argmax()


@pytest.mark.parametrize(("name", "dtype"), [(None, "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_the_cache_has_the_dtype_asked_for(name: str | None, dtype: str):
    forge = small(ForgeConfig(**{**CONFIG.to_dict(), "kv_cache_dtype": name}))
    forge.forward(IDS[:, :2], use_cache=True)
    next(forge.generate_stream(IDS, 2))
    assert forge.cache is not None
    assert forge.session is not None
    for cache in (forge.cache, forge.session.state.cache):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache.layers)} == {dtype}


def test_options_of_the_cache_do_what_they_say():
    plain, quantised, paged = (
        small(ForgeConfig(**{**CONFIG.to_dict(), **given}))
        for given in ({}, {"kv_cache_dtype": "int4"}, {"use_paged_attn": True})
    )
    logits = [np.asarray(forge.forward(IDS, use_cache=True)) for forge in (plain, quantised)]
    assert 1e-3 < np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max() < 0.5
    ids = plain.generate(IDS, 6, temperature=0)
    np.testing.assert_array_equal(paged.generate(IDS, 6, temperature=0), ids)
    assert paged.session is not None
    assert all(places.table_BQ is not None for places in paged.session.state.cache.places.values())
    plain.generate(IDS, 2, cache_dtype="int8")
    assert plain.session is not None
    assert set(plain.session.state.cache.layers[0]["attention"]["k"].parts) == {"codes", "scale"}


# ------------------------------------------------------------------------------------------------ text
def test_text(chat: Forge, forge: Forge):
    text = chat.complete("Hello", max_new_tokens=5)
    assert isinstance(text, str)
    assert chat.complete(["Hello", "Hi"], max_new_tokens=5)[0] == text
    assert "".join(chat.stream("Hello", max_new_tokens=5)) == text
    assert isinstance(chat.chat("Hi", max_new_tokens=3), str)
    assert chat.chat([{"role": "user", "content": "Hi"}], max_new_tokens=3) == chat.chat("Hi", max_new_tokens=3)
    with pytest.raises(ValueError, match="has no tokenizer; put tokenizer.json"):
        forge.complete("Hello")


# ------------------------------------------------------------------------------------------------ quantize
def test_int8(forge: Forge):
    before = np.asarray(forge.forward(IDS))
    small = forge.quantize("int8")
    assert isinstance(small, Forge)
    assert isinstance(small.params["layers"]["0"]["attention"]["q"], QTensor)
    assert not isinstance(small.params["embed"], QTensor)
    np.testing.assert_array_equal(forge.forward(IDS), before)  # the model itself stays as it was
    whole = forge.quantize("int8", quantize_embedding=True)
    assert isinstance(whole.params["embed"], QTensor)
    for quantised in (small, whole):
        unpacked = dict(flatten(jax.tree.map(dense, quantised.params, is_leaf=lambda x: isinstance(x, QTensor))))
        for path, leaf in flatten(forge.params):  # half a step of 1 / 127 of the largest weight
            assert float(jnp.abs(unpacked[path] - leaf).max()) <= float(jnp.abs(leaf).max()) / 253
        same = Forge.from_model(dataclasses.replace(forge.model, params=unflatten(unpacked)))
        np.testing.assert_allclose(quantised.forward(IDS), same.forward(IDS), atol=1e-5)
    assert small.generate(IDS, 5, temperature=0).shape == (2, 11)


def test_none_and_unknown_modes(forge: Forge):
    np.testing.assert_array_equal(forge.quantize("none").forward(IDS), forge.forward(IDS))
    with pytest.raises(ValueError, match="there is no scheme 'int1'; did you mean int"):
        forge.quantize("int1")


@pytest.mark.parametrize(
    ("mode", "schemes", "error"),
    [("dynamic", {"int8-dynamic"}, 0.1), ("int4", {"int4-g32", "int4-g128"}, 0.6), ("mxfp4", {"mxfp4"}, 0.8)],
)
def test_other_modes(forge: Forge, mode: str, schemes: set[str], error: float):
    """Groups are as large as 128 allows. The logits of random weights are small sums of large numbers."""
    before, found = np.asarray(plain(forge, IDS)), forge.quantize(mode)
    packed = {path: leaf.scheme.name for path, leaf in flatten(found.params) if isinstance(leaf, QTensor)}
    assert set(packed.values()) == schemes
    assert "embed" not in packed
    after = np.asarray(plain(found, IDS))
    assert 1e-4 < np.abs(after - before).max() / np.abs(before).max() < error
    with pytest.raises(ValueError, match="parameters are packed already"):
        found.quantize(mode)
