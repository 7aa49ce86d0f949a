"""The names, defaults and behaviours of `Forge` that code written for the original relies on."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden
from tiny_checkpoint import write_chat_model, write_golden_directory

import forge_jax
from forge_jax import Forge, ForgeConfig, create_model, get_preset
from forge_jax.params import flatten, unflatten
from forge_jax.tensor import QTensor, dense

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


# ------------------------------------------------------------------------------------------------ names and defaults
SIGNATURES = {
    "__init__": "vocab_size=8000, dim=None, depth=None, heads=None, max_len=None, config=None",
    "forward": "input_ids, targets=None, use_cache=False, start_pos=0, return_loss=False",
    "forward_multimodal": "input_ids=None, vision_features=None, audio_features=None",
    "generate": "input_ids, max_new_tokens=100, temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, "
    "stop_tokens=None",
    "generate_stream": "input_ids, max_new_tokens=100, temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, "
    "stop_tokens=None",
    "clear_cache": "",
    "get_moe_aux_loss": "",
    "get_config": "",
    "from_config": "config",
    "from_pretrained": "path",
    "save_pretrained": "path",
    "quantize": "mode='dynamic'",
    "from_any": "path",
    "from_huggingface": "model_id",
    "from_safetensors": "path",
    "from_gguf": "path",
    "from_onnx": "path",
    "load_lora": "path, adapter_name='default', merge=False",
    "merge_lora": "adapter_name=None",
    "unmerge_lora": "adapter_name=None",
    "set_adapter": "adapter_name",
    "export_to_safetensors": "path",
    "export_to_onnx": "path",
    "export_to_huggingface": "directory",
    "export_to_gguf": "path, type='F16'",
    "enable_speculative_decoding": "draft_model, num_speculative_tokens=4",
    "disable_speculative_decoding": "",
    "generate_speculative": "input_ids, max_new_tokens=100",
}


def positional(function: Any) -> str:
    """The parameters that can be given by place, as they are written."""
    parameters = inspect.signature(function).parameters.values()
    kept = [p.replace(annotation=p.empty) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    return ", ".join(map(str, kept))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str):
    assert positional(inspect.getattr_static(Forge, name).__get__(None, Forge)) == SIGNATURES[name]
    assert inspect.getdoc(getattr(Forge, name))


def test_keywords_of_generate():
    parameters = inspect.signature(Forge.generate).parameters
    assert parameters["return_logits"].default is False
    assert parameters["stream"].default is False
    assert inspect.signature(create_model).parameters["size"].default == "small"
    assert positional(create_model) == "size='small', vocab_size=None"


def test_the_aliases_are_the_class():
    assert forge_jax.TinyForge is forge_jax.ForgeModel is forge_jax.Enigma is Forge


def test_public_names():
    names = {
        "Forge",
        "ForgeConfig",
        "QuantizationConfig",
        "MODEL_PRESETS",
        "create_model",
        "get_preset",
        "list_presets",
    }
    names |= {"estimate_parameters", "estimate_memory_usage", "TinyForge", "ForgeModel", "Enigma", "load", "generate"}
    assert names <= set(forge_jax.__all__)
    assert all(getattr(forge_jax, name) is not None for name in forge_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Froge'"):
        _ = forge_jax.Froge


def test_a_bare_forge(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("forge_jax.forge.init", lambda spec, key: {"embed": jnp.zeros(1)})  # sizes only
    forge = Forge()
    sizes = (forge.vocab_size, forge.dim, forge.depth, forge.heads, forge.max_len)
    assert sizes == (8000, 256, 6, 8, 2048)
    assert isinstance(forge.config, ForgeConfig)
    assert (forge.config.n_kv_heads, forge.config.hidden_dim) == (8, 704)


def test_sizes_by_place_and_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("forge_jax.forge.init", lambda spec, key: {"embed": jnp.zeros(1)})
    one = Forge(100, 32, 3, 4, 64)
    assert (one.vocab_size, one.dim, one.depth, one.heads, one.max_len) == (100, 32, 3, 4, 64)
    two = Forge(100, embed_dim=32, n_layers=3, n_heads=4, max_seq_len=64, use_bias=True)
    assert two.config == ForgeConfig(100, 32, 3, 4, max_seq_len=64, use_bias=True)
    assert Forge(100, 32, depth=2, heads=4, n_layers=3).depth == 2  # a given alias wins
    assert Forge(100, 32, 2, 4, max_len=64, config=None).max_len == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be a whole number > 0"),
        ({"depth": 0}, "n_layers must be"),
        ({"vocab_size": -1}, "vocab_size must be"),
        ({"n_layer": 3}, "'n_layer' is no field .the nearest is 'n_layers'"),
        ({"config": CONFIG, "dim": 64}, "either a config or sizes"),
        ({"config": CONFIG, "vocab_size": 61}, "either a config or sizes"),
        ({"config": CONFIG, "use_bias": True}, "either a config or sizes"),
    ],
)
def test_wrong_sizes(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Forge(**arguments)


def test_attributes(forge: Forge):
    assert (forge.vocab_size, forge.dim, forge.depth, forge.heads, forge.max_len) == (60, 32, 2, 4, 48)
    assert forge.config == CONFIG
    assert forge.num_parameters == forge_jax.estimate_parameters(CONFIG)
    assert forge.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(forge.params))
    assert repr(forge).startswith("Forge(forge, ")


def test_the_seed_gives_the_weights():
    one, two = Forge(config=CONFIG, seed=3), Forge(config=CONFIG, seed=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, one.params, two.params))
    assert not np.array_equal(one.params["embed"], Forge(config=CONFIG).params["embed"])


def test_configs_come_back(forge: Forge):
    assert Forge.from_config(forge.get_config()).config == CONFIG
    assert Forge.from_config(CONFIG.to_dict()).config == CONFIG
    assert Forge.from_config(CONFIG).config == CONFIG
    assert forge.get_config() == {"model_type": "forge", **CONFIG.to_dict()}
    with pytest.raises(ValueError, match="'dimm' is no field .the nearest is 'dim'"):
        Forge.from_config({"dimm": 3})


def test_a_config_of_another_architecture_makes_a_new_model(tmp_path: Path):
    golden = read_golden("gpt2")
    loaded = Forge.from_any(write_golden_directory("gpt2", tmp_path / "hf"), progress=False)
    fresh = Forge.from_config(loaded.get_config())
    assert fresh.spec == loaded.spec == golden.spec
    shapes = jax.tree.map(lambda leaf: leaf.shape, fresh.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, loaded.params)
    with pytest.raises(ValueError, match="'gpt3' is not a known architecture; nearest are"):
        Forge.from_config({"model_type": "gpt3"})
    with pytest.raises(ValueError, match="1 config keys are not understood.*odd=3"):
        Forge.from_config({**loaded.get_config(), "odd": 3})


# ------------------------------------------------------------------------------------------------ presets
def test_presets():
    names = "pi_zero nano pi_4 micro pi_5 tiny mini small medium base large xl xxl huge giant colossal titan omega"
    assert list(forge_jax.MODEL_PRESETS) == list(forge_jax.list_presets()) == names.split()
    for name, entry in forge_jax.list_presets().items():
        assert list(entry) == ["description", "estimated_params", "dim", "layers", "heads", "max_seq_len"]
        assert entry["estimated_params"] == forge_jax.estimate_parameters(get_preset(name))


def test_create_model():
    model = create_model("pi_zero", 100, dim=32, n_heads=4, n_kv_heads=2)
    assert isinstance(model, Forge)
    assert (model.vocab_size, model.dim, model.depth, model.heads, model.max_len) == (100, 32, 2, 4, 256)
    assert model.config == dataclasses.replace(
        get_preset("pi_zero", 100), dim=32, n_heads=4, n_kv_heads=2, hidden_dim=None
    )
    with pytest.raises(TypeError, match="preset size must be a str"):
        create_model(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found 'pi_zer' .nearest: 'pi_zero'"):
        create_model("pi_zer")
    with pytest.raises(ValueError, match="'layers' is no field"):
        create_model("pi_zero", layers=3)


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
    with pytest.raises(ValueError, match="is a QTensor; export the model as it was before"):
        small.save_pretrained("nowhere")


def test_none_and_unknown_modes(forge: Forge):
    np.testing.assert_array_equal(forge.quantize("none").forward(IDS), forge.forward(IDS))
    with pytest.raises(ValueError, match="mode 'int2' is unknown; expected one of none, dynamic, int8, int4"):
        forge.quantize("int2")


# ------------------------------------------------------------------------------------------------ files
def assert_same(one: Forge, two: Forge) -> None:
    assert one.spec == two.spec
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one.params, two.params))


def test_save_and_load(forge: Forge, tmp_path: Path):
    forge.save_pretrained(tmp_path / "model")
    back = Forge.from_pretrained(tmp_path / "model", progress=False)
    assert_same(forge, back)
    assert back.config == CONFIG
    np.testing.assert_array_equal(back.forward(IDS), forge.forward(IDS))
    np.testing.assert_array_equal(back.generate(IDS, 9, seed=4), forge.generate(IDS, 9, seed=4))
    with pytest.raises(FileExistsError, match="not empty"):
        forge.save_pretrained(tmp_path / "model")
    forge.save_pretrained(tmp_path / "model", overwrite=True)
    assert_same(forge, Forge.from_huggingface(str(tmp_path / "model"), progress=False))
    assert_same(forge, Forge.from_safetensors(tmp_path / "model", progress=False))
    assert_same(forge, forge_jax.load(tmp_path / "model", progress=False))


def test_exports(forge: Forge, tmp_path: Path):
    forge.export_to_safetensors(tmp_path / "m.safetensors")
    assert_same(forge, Forge.from_safetensors(tmp_path / "m.safetensors", progress=False))
    forge.export_to_huggingface(tmp_path / "hf", max_shard_bytes=10_000)
    assert_same(forge, Forge.from_any(tmp_path / "hf", progress=False))
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 3


def test_gguf(tmp_path: Path):
    forge = Forge.from_any(write_golden_directory("llama", tmp_path / "hf"), progress=False)
    forge.export_to_gguf(tmp_path / "m.gguf", "F32")
    back = Forge.from_gguf(tmp_path / "m.gguf", progress=False)
    assert_same(forge, back)
    half = Forge.from_gguf(forge.export_to_gguf(tmp_path / "h.gguf"), progress=False)
    assert set(half.model.stored.values()) == {"F16", "F32"}
    with pytest.raises(ValueError, match="is gguf, not safetensors; use Forge.from_any"):
        Forge.from_safetensors(tmp_path / "m.gguf", progress=False)
    with pytest.raises(ValueError, match="is safetensors, not gguf"):
        Forge.from_gguf(tmp_path / "hf", progress=False)


def test_a_model_of_our_own_is_a_llama_to_gguf(forge: Forge, tmp_path: Path):
    back = Forge.from_gguf(forge.export_to_gguf(tmp_path / "m.gguf", "F32"), progress=False)
    assert_same(forge, back)
    assert (back.dim, back.depth, back.heads, back.max_len, back.vocab_size) == (32, 2, 4, 48, 60)
    biased = Forge(config=ForgeConfig(20, dim=8, n_layers=1, n_heads=2, max_seq_len=16, use_rms_norm=False))
    with pytest.raises(ValueError, match="cannot be said in a GGUF"):
        biased.export_to_gguf(tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("name", ["from_any", "from_pretrained", "from_huggingface", "from_safetensors", "from_gguf"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        getattr(Forge, name)(tmp_path / "model.gguf")


def test_an_unknown_format(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Forge.from_any(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Forge.from_onnx(tmp_path / "m.onnx")


# ------------------------------------------------------------------------------------------------ later
@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda forge, here: forge.quantize(), "use mode='int8'"),
        (lambda forge, here: forge.quantize("int4"), "use mode='int8'"),
        (lambda forge, here: Forge.from_onnx(here), "load the checkpoint that the graph was exported from"),
        (lambda forge, here: forge.export_to_onnx("m.onnx"), "export_to_huggingface and convert that"),
        (lambda forge, here: forge.load_lora(here), "merge the adapter before loading"),
        (lambda forge, here: forge.merge_lora(), "no adapter"),
        (lambda forge, here: forge.unmerge_lora(), "no adapter"),
        (lambda forge, here: forge.set_adapter("default"), "no adapter"),
        (lambda forge, here: forge.enable_speculative_decoding(forge), "use generate, which gives the same tokens"),
        (lambda forge, here: forge.generate_speculative(IDS), "use generate, which gives the same tokens"),
        (lambda forge, here: Forge(use_moe=True), "set use_moe=False"),
        (lambda forge, here: Forge(use_paged_attn=True), "set use_paged_attn=False"),
        (lambda forge, here: Forge(kv_cache_dtype="int8"), "use None, 'fp16' or 'bf16'"),
        (lambda forge, here: Forge(vision_hidden_size=8), "set vision_hidden_size=None"),
        (lambda forge, here: create_model("tiny", use_gradient_checkpointing=True), "set it to False"),
    ],
)
def test_what_is_planned_says_so_and_what_to_do_instead(forge: Forge, call: Any, advice: str):
    with pytest.raises(NotImplementedError, match=f"not implemented yet; .*{advice}"):
        call(forge, Path(__file__))


def test_missing_adapters_and_stopping_what_was_not_started(forge: Forge):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        forge.load_lora("no/where")
    forge.disable_speculative_decoding()
