"""The names, defaults and files of `Forge` that code written for the original relies on."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden
from tiny_checkpoint import write_golden_directory

import forge_jax
from forge_jax import Forge, ForgeConfig, create_model, get_preset

pytestmark = pytest.mark.usefixtures("quick_compiles")

CONFIG = ForgeConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=48, dropout=0.1)
IDS = np.array([[5, 9, 2, 7, 11, 3], [1, 0, 59, 4, 8, 6]])


@pytest.fixture(scope="module")
def forge() -> Forge:
    return Forge(config=CONFIG)


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


def test_onnx(forge: Forge, tmp_path: Path):
    assert_same(forge, Forge.from_onnx(forge.export_to_onnx(tmp_path / "m.onnx"), progress=False))


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
        (lambda forge, here: Forge(vision_hidden_size=8), "set vision_hidden_size=None"),
        (lambda forge, here: create_model("tiny", use_gradient_checkpointing=True), "set it to False"),
    ],
)
def test_what_is_planned_says_so_and_what_to_do_instead(forge: Forge, call: Any, advice: str):
    with pytest.raises(NotImplementedError, match=f"not implemented yet; .*{advice}"):
        call(forge, Path(__file__))


def test_missing_adapters(forge: Forge):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        forge.load_lora("no/where")
    for call in (forge.merge_lora, forge.unmerge_lora, lambda: forge.set_adapter("default")):
        with pytest.raises(ValueError, match="no adapter"):
            call()


# ------------------------------------------------------------------------------------------------ speculative decoding
def test_speculative_decoding_gives_the_tokens_of_generate():
    forge = Forge(config=CONFIG)
    with pytest.raises(ValueError, match="nothing drafts; call enable_speculative_decoding"):
        forge.generate_speculative(IDS)
    plain = forge.generate(IDS, 12, seed=4)
    forge.enable_speculative_decoding(forge, num_speculative_tokens=3)
    np.testing.assert_array_equal(forge.generate_speculative(IDS, 12, seed=4), plain)
    assert forge.session is not None
    assert forge.session.speculation is not None
    assert forge.session.speculation.accepted > 0
    other = Forge(vocab_size=37, dim=16, depth=1, heads=2, max_len=forge.max_len)
    with pytest.raises(ValueError, match="it knows 37 tokens, the model 60"):
        forge.enable_speculative_decoding(other)
    with pytest.raises(ValueError, match="tokens = 40; expected 1 to 31"):
        forge.enable_speculative_decoding(forge, num_speculative_tokens=40)
    forge.disable_speculative_decoding()
    forge.generate(IDS, 2, seed=4)
    assert forge.session.speculation is None
