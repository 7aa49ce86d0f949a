"""One small real model through every format and back: the same spec, the same numbers, the same ids."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_chat_model, write_golden_directory

from converters.safetensors_file import open_safetensors
from forge_jax import generate, inputs, loading
from forge_jax.decoder import forward
from forge_jax.exporting import export_gguf, export_huggingface, export_orbax, export_safetensors
from forge_jax.loading import Model
from forge_jax.params import flatten
from forge_jax.tensor import dense

pytestmark = pytest.mark.usefixtures("quick_compiles")

# what the tokenizer's exporter says of this vocabulary: GGUF has one rule for the space before a text
GGUF_SPACE = pytest.mark.filterwarnings("ignore:GGUF cannot say that a space is put in front:UserWarning")


def load(path: Path, dtype: str = "auto", **options: str) -> Model:
    return loading.load(path, dtype=dtype, progress=False, **options)  # pyright: ignore[reportArgumentType]


def assert_same(one: Model, two: Model) -> None:
    """The same spec, and every leaf bit for bit."""
    assert one.spec == two.spec
    ours, theirs = dict(flatten(one.params)), dict(flatten(two.params))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        other = theirs[path]
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape), path
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), path


def dtypes(model: Model) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)}


def greedy(model: Model, ids: list[int], count: int) -> list[int]:
    return [*ids, *generate(model.spec, model.params, [ids], max_new_tokens=count)[0].ids]


# ------------------------------------------------------------------------------------------------ a real model
@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """stories260K: a real model of 260,032 parameters, as a HuggingFace directory, .bin and GGUF."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def model(stories: Path) -> Model:
    return load(stories / "hf")


@pytest.fixture
def bin_file(stories: Path, tmp_path: Path) -> Path:
    """The .bin with its config and tokenizer beside it, and no safetensors."""
    shutil.copytree(stories / "hf", tmp_path / "bin", ignore=shutil.ignore_patterns("*.safetensors"))
    return Path(shutil.copy(stories / "pytorch_model.bin", tmp_path / "bin"))


def test_the_formats_agree(model: Model, stories: Path, bin_file: Path):
    found = {
        "safetensors": load(stories / "hf" / "model.safetensors"),
        "torch": load(bin_file),
        "gguf": load(stories / "stories260K-f32.gguf"),
    }
    for kind, other in found.items():
        assert other.format == kind
        assert_same(model, other)
        assert other.tokenizer is not None
        assert other.tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert_same(model, load(bin_file.parent))


def test_the_reference_ids(model: Model, stories: Path):
    reference = json.loads((stories / "reference.json").read_text())
    for one in (model, load(stories / "stories260K-f32.gguf")):
        assert greedy(one, reference["prompt_ids"], 120) == reference["greedy120"]  # the prompt and 120 new ids
        assert one.tokenizer is not None
        assert one.tokenizer.decode(reference["greedy120"]).strip() == reference["text"].strip()


def test_huggingface_and_back(model: Model, stories: Path, tmp_path: Path):
    back = load(export_huggingface(model, tmp_path / "out"))
    assert_same(model, back)
    assert back.config == model.config
    assert back.generation == model.generation
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (stories / "hf" / "config.json").read_text()
    )
    theirs = {n: t.tobytes() for n, t in tensors(stories / "hf").items()}
    assert {n: t.tobytes() for n, t in tensors(tmp_path / "out").items()} == theirs


def tensors(directory: Path) -> dict[str, np.ndarray]:
    source = open_safetensors(directory)
    try:
        return {name: source.read(name) for name in source.tensors}
    finally:
        source.close()


def test_the_tokenizer_survives(model: Model, tmp_path: Path):
    texts = ["Once upon a time", " two  spaces ", "ünïcode 🙂\n", "<s>", ""]
    ways: list[tuple[str, Callable[[Model, Path], Path]]] = [("hf", export_huggingface), ("orbax", export_orbax)]
    for name, export in ways:
        back = load(export(model, tmp_path / name))
        assert model.tokenizer is not None
        assert back.tokenizer is not None
        for text in texts:
            ids = model.tokenizer.encode(text)
            assert back.tokenizer.encode(text) == ids
            assert back.tokenizer.decode(ids) == model.tokenizer.decode(ids)
        assert back.tokenizer.eos_ids == model.tokenizer.eos_ids


def test_shards(model: Model, tmp_path: Path):
    export_huggingface(model, tmp_path / "out", max_shard_bytes=100_000)
    files = sorted(item.name for item in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) >= 10
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    whole = [file for file in files if (tmp_path / "out" / file).stat().st_size > 110_000]
    assert len(whole) == 1  # the embedding alone is over the limit
    assert_same(model, load(tmp_path / "out"))


def test_one_safetensors_file_needs_nothing_beside_it(model: Model, tmp_path: Path):
    back = load(export_safetensors(model, tmp_path / "alone.safetensors"))
    assert_same(model, back)
    assert back.config == model.config
    assert back.tokenizer is None
    assert [item.name for item in tmp_path.iterdir()] == ["alone.safetensors"]


@GGUF_SPACE
def test_gguf_and_back(model: Model, stories: Path, tmp_path: Path):
    ours = load(export_gguf(model, tmp_path / "a.gguf", type="F32"))
    assert_same(model, ours)
    assert ours.tokenizer is not None
    assert ours.tokenizer.encode("Once upon a time") == [1, 403, 407, 261, 378]
    theirs = load(stories / "stories260K-f32.gguf")
    again = load(export_gguf(theirs, tmp_path / "b.gguf", type="F32"))
    assert_same(theirs, again)
    assert again.tokenizer is not None
    assert theirs.tokenizer is not None
    for text in ("Once upon a time", " two  spaces ", "ünïcode 🙂\n"):
        assert again.tokenizer.encode(text) == theirs.tokenizer.encode(text)


@GGUF_SPACE
@pytest.mark.parametrize(("type", "error"), [("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 2**-7), ("Q4_0", 2**-3)])
def test_narrower_gguf_loses_no_more_than_it_must(model: Model, tmp_path: Path, type: str, error: float):
    """The error of a value is at most its type's step: of the value for floats, of the row's largest for blocks."""
    back = load(export_gguf(model, tmp_path / "a.gguf", type=type))
    for path, leaf in flatten(model.params):
        found = dense(dict(flatten(back.params))[path])
        assert float(jnp.abs(found - leaf).max()) <= error * float(jnp.abs(leaf).max()), path
    assert back.spec == model.spec


def test_from_gguf_to_huggingface_and_back_again(stories: Path, tmp_path: Path):
    """A config and a tokenizer that were never in JSON."""
    gguf = load(stories / "stories260K-f32.gguf")
    back = load(export_huggingface(gguf, tmp_path / "out"))
    assert_same(gguf, back)
    assert gguf.tokenizer is not None
    assert back.tokenizer is not None
    for text in ("Once upon a time", " two  spaces ", "ünïcode 🙂\n"):
        assert back.tokenizer.encode(text) == gguf.tokenizer.encode(text)
    assert back.tokenizer.eos_ids == gguf.tokenizer.eos_ids
    assert_same(gguf, load(export_orbax(gguf, tmp_path / "orbax")))


def test_every_format_in_a_row(model: Model, tmp_path: Path):
    one = load(export_orbax(model, tmp_path / "1"))
    two = load(export_safetensors(one, tmp_path / "2.safetensors"))
    three = load(export_gguf(two, tmp_path / "3.gguf", type="F32"))
    four = load(export_huggingface(three, tmp_path / "4"))
    assert_same(model, four)


@pytest.mark.torch
def test_transformers_reads_our_export(model: Model, stories: Path, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ids = np.array([json.loads((stories / "reference.json").read_text())["greedy120"][:32]])
    export_huggingface(model, tmp_path / "f32", max_shard_bytes=300_000)
    export_huggingface(load(stories / "stories260K-f32.gguf"), tmp_path / "gguf")
    export_huggingface(model, tmp_path / "bf16", dtype="bfloat16")

    def theirs(path: Path) -> np.ndarray:
        net = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with torch.no_grad():
            return net(torch.from_numpy(ids)).logits.numpy()

    def ours(path: Path) -> np.ndarray:
        one = load(path)
        return np.asarray(forward(one.spec, one.params, inputs(jnp.asarray(ids, jnp.int32)))[0])

    original = theirs(stories / "hf")
    for name in ("f32", "gguf"):
        np.testing.assert_array_equal(theirs(tmp_path / name), original)
    for name in ("f32", "bf16"):
        # logits reach 22, and float32 of either is up to 2e-5 from float64
        np.testing.assert_allclose(ours(tmp_path / name), theirs(tmp_path / name), atol=3e-5, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "f32")
    assert tokenizer("Once upon a time")["input_ids"] == [1, 403, 407, 261, 378]


# ------------------------------------------------------------------------------------------------ dtypes
def test_dtypes_of_a_load(tmp_path: Path):
    write_golden_directory("llama", tmp_path / "hf")
    half = export_huggingface(load(tmp_path / "hf"), tmp_path / "bf16", dtype="bfloat16")
    assert dtypes(load(half)) == {"float32"}  # on a CPU
    assert dtypes(load(half, "stored")) == {"bfloat16"}
    assert dtypes(load(half, "float32")) == {"float32"}
    assert dtypes(load(half, "float16")) == {"float16"}
    assert dtypes(load(tmp_path / "hf", "bfloat16")) == {"bfloat16"}
    assert_same(load(half, "bfloat16"), load(tmp_path / "hf", "bfloat16"))
    for dtype in (jnp.float16, np.dtype(np.float16)):
        assert dtypes(loading.load(half, dtype=dtype, progress=False)) == {"float16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_of_an_export(tmp_path: Path, dtype: str):
    model = load(write_golden_directory("llama", tmp_path / "hf"))
    name = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    export_huggingface(model, tmp_path / "out", dtype=dtype)
    export_safetensors(model, tmp_path / "out.safetensors", dtype=dtype)
    for path in (tmp_path / "out", tmp_path / "out.safetensors"):
        back = load(path, "stored")
        assert set(back.stored.values()) == {name}
        assert back.config["dtype"] == dtype
        assert_same(back, load(tmp_path / "hf", dtype))


def test_stored_goes_back_to_what_the_checkpoint_had(tmp_path: Path):
    """A model loaded wider than it was stored is exported as it was stored, mixed types included."""
    model = load(write_golden_directory("llama", tmp_path / "hf"))
    model.params["final_norm"]["scale"] = model.params["final_norm"]["scale"].astype(jnp.bfloat16)
    mixed = loading.Model(model.spec, model.params, None, model.config)  # says of no leaf how it was stored
    export_huggingface(mixed, tmp_path / "mixed")
    wide = load(tmp_path / "mixed", "float32")
    assert dtypes(wide) == {"float32"}
    export_huggingface(wide, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "mixed" / "model.safetensors"
    ).read_bytes()
    assert load(tmp_path / "again", "stored").stored["final_norm.scale"] == "BF16"


def test_packed_weights_are_exported_in_the_dtype_they_have(tmp_path: Path):
    golden = load(write_golden_directory("llama", tmp_path / "hf"))
    packed = load(export_gguf(golden, tmp_path / "q8.gguf", type="Q8_0"), "bfloat16")
    assert "Q8_0" in packed.stored.values()
    back = load(export_huggingface(packed, tmp_path / "out"), "stored")
    assert {back.stored[path] for path, kind in packed.stored.items() if kind == "Q8_0"} == {"BF16"}
    for path, leaf in flatten(packed.unpacked().params):
        np.testing.assert_array_equal(leaf.astype(jnp.float32), dict(flatten(back.params))[path].astype(jnp.float32))


# ------------------------------------------------------------------------------------------------ every naming
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_bigcode", "falcon_new", "phi3", "gpt_neox", "bloom", "gemma2"])
def test_families_come_back_bit_for_bit(tmp_path: Path, name: str):
    model = load(write_golden_directory(name, tmp_path / "hf"))
    assert_same(model, load(export_huggingface(model, tmp_path / "out", max_shard_bytes=4000)))
    theirs = {n: (t.dtype, t.shape, t.tobytes()) for n, t in tensors(tmp_path / "hf").items()}
    assert {n: (t.dtype, t.shape, t.tobytes()) for n, t in tensors(tmp_path / "out").items()} == theirs


def test_every_id_that_ends_a_text_comes_back(tmp_path: Path):
    """From a GGUF they are known to the tokenizer alone."""
    chat = write_chat_model(tmp_path / "hf")
    (chat / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    model = dataclasses.replace(load(chat), generation={})
    assert model.tokenizer is not None
    assert model.tokenizer.eos_ids == (1, 7)
    for back in (load(export_huggingface(model, tmp_path / "a")), load(export_orbax(model, tmp_path / "b"))):
        assert back.tokenizer is not None
        assert back.tokenizer.eos_ids == (1, 7)


def test_a_model_of_our_own_comes_back(tmp_path: Path):
    model = load(write_chat_model(tmp_path / "hf"))
    for back in (
        load(export_huggingface(model, tmp_path / "a", max_shard_bytes=5000)),
        load(export_safetensors(model, tmp_path / "b.safetensors")),
        load(export_orbax(model, tmp_path / "c")),
    ):
        assert_same(model, back)
