"""Loading: which files a name means, what comes out, in what dtype, and how much memory it takes."""

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_checkpoint import write_chat_model, write_golden_directory

from converters.checkpoint import open_checkpoint
from forge_jax import Forge, Session, loading, parallel, text
from forge_jax.exporting import export_gguf, export_huggingface, export_orbax
from forge_jax.loading import Model, read_model
from forge_jax.params import flatten


def load(path: Path | str, **options: Any) -> Model:
    return loading.load(path, progress=False, **options)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_golden_directory("llama", tmp_path / "llama")


def same(one: Model, two: Model) -> bool:
    return one.spec == two.spec and jax.tree.all(jax.tree.map(np.array_equal, one.params, two.params))


# ------------------------------------------------------------------------------------------------ names
def test_ways_to_name_the_same_files(llama: Path, monkeypatch: pytest.MonkeyPatch):
    model = load(llama)
    monkeypatch.chdir(llama.parent)
    monkeypatch.setenv("HOME", str(llama.parent))
    for name in (str(llama), llama / "model.safetensors", "./llama", Path("llama"), "~/llama"):
        assert same(load(name), model)
    assert same(load(llama.parent, subfolder="llama"), model)
    assert same(load(llama, file="model.safetensors"), model)


def test_a_directory_with_several_formats(llama: Path):
    model = load(llama)
    export_gguf(model, llama / "model-F16.gguf", type="F16")
    with pytest.raises(
        ValueError, match=r"several formats \(GGUF: model-F16.gguf; .*: model.safetensors\); name the file"
    ):
        load(llama)
    assert load(f"{llama}:model.safetensors").format == "safetensors"
    assert load(llama, file="model-F16.gguf").format == "gguf"
    assert load(f"{llama}:f16").stored["embed"] == "F16"
    with pytest.raises(FileNotFoundError, match="no file or GGUF type 'Q4_K_M'; choose one of model-F16.gguf"):
        load(llama, file="Q4_K_M")


def test_the_content_decides_not_the_name(llama: Path):
    export_gguf(load(llama), llama / "model.pt", type="F32")
    assert load(llama / "model.pt").format == "gguf"


# ------------------------------------------------------------------------------------------------ what comes out
def test_what_a_model_tells(llama: Path):
    model = load(llama)
    assert model.path == llama
    assert model.format == "safetensors"
    assert model.config == json.loads((llama / "config.json").read_text())
    assert set(model.stored) == {path for path, _ in flatten(model.params)}
    assert set(model.stored.values()) == {"F32"}
    assert {"reading", "decoding", "placing"} <= set(model.seconds)
    assert min(model.seconds.values()) >= 0
    assert repr(model) == f"Model(llama, 79,168 parameters, 2 layers, float32, 0 MB, context 128, from {llama})"
    for name in ("config", "stored", "generation", "seconds"):
        with pytest.raises(TypeError):
            getattr(model, name)["x"] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.format = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_bar_tells_the_stages_apart(llama: Path, capsys: pytest.CaptureFixture[str]):
    loading.load(llama)
    assert "llama" in capsys.readouterr().err
    loading.load(llama, progress=False)
    assert not capsys.readouterr().err


def test_the_dtype_of_auto(llama: Path, monkeypatch: pytest.MonkeyPatch):
    """Float32 on a CPU; on an accelerator bfloat16, and float16 where the checkpoint has that."""
    values = {name: np.ones(2, jnp.dtype(name)) for name in ("float32", "float16", "bfloat16", "int8")}
    cast = loading.caster("auto")
    assert {name: str(cast("x", v).dtype) for name, v in values.items()} == {
        "float32": "float32",
        "float16": "float32",
        "bfloat16": "float32",
        "int8": "int8",
    }
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cast = loading.caster("auto")
    assert {name: str(cast("x", v).dtype) for name, v in values.items()} == {
        "float32": "bfloat16",
        "float16": "float16",
        "bfloat16": "bfloat16",
        "int8": "int8",
    }


@pytest.mark.parametrize("dtype", ["float33", "int8", "fp16", np.int32, np.float64, "Float32"])
def test_unknown_dtypes_of_a_load(llama: Path, dtype: Any):
    with pytest.raises(
        ValueError, match="load: dtype '.*' is unknown; expected auto, stored, float32, bfloat16, float"
    ):
        load(llama, dtype=dtype)


def test_a_gguf_without_a_vocabulary_has_no_tokenizer(llama: Path):
    assert load(export_gguf(load(llama), llama / "m.gguf", type="F32")).tokenizer is None


def test_ids_that_end_a_text(tmp_path: Path):
    """The tokenizer's, the generation config's (which goes before config.json's), and none outside the vocabulary."""
    chat = write_chat_model(tmp_path / "chat")
    assert text.stop_ids(load(chat)) == (1,)
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, 4000]}))
    assert text.stop_ids(load(chat)) == (1, 5, 7)
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": 9, "temperature": 0.6}))
    model = load(chat)
    assert text.stop_ids(model) == (1, 9)
    assert model.generation == {"eos_token_id": 9, "temperature": 0.6}


# ------------------------------------------------------------------------------------------------ memory
def write_wide(folder: Path) -> Path:
    """12 MB in 20 tensors, the largest of 2 MB (1 MB in the layers)."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "head_dim": 64}
    config = {"model_type": "llama", "vocab_size": 2000, "num_attention_heads": 4, "max_position_embeddings": 64}
    config |= {**shape, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "hidden_act": "silu", "dtype": "float32"}
    export_huggingface(Forge.from_config(config).model, folder, dtype="float32")
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "orbax"])
def test_one_tensor_in_memory_at_a_time(tmp_path: Path, kind: str):
    path = write_wide(tmp_path / "wide")
    model = load(path)
    if kind == "gguf":
        path = export_gguf(model, tmp_path / "wide.gguf", type="F32")
    if kind == "orbax":
        path = export_orbax(model, tmp_path / "orbax")
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert total > 5 * largest
    checkpoint = open_checkpoint(path)
    tracemalloc.start()
    read_model(checkpoint, lambda path, values: jnp.zeros(()), progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    checkpoint.source.close()
    assert peak < 2.5 * largest  # its bytes, and once more in the order of our axes


# ------------------------------------------------------------------------------------------------ devices
@pytest.mark.parametrize("shards", [2, 4])
def test_onto_a_mesh(llama: Path, shards: int):
    """2 kv heads on 4 devices are repeated; the tokens stay the same, and an export of padded weights is refused."""
    whole = load(llama)
    split = load(llama, mesh=parallel.make_mesh(shards))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(split.params)} == {shards}
    ids = [Session(m.spec, m.params, [[3, 1, 4, 1, 5]], max_new_tokens=8, programs=m.programs) for m in (whole, split)]
    for session in ids:
        session.advance()
    assert ids[0].ids() == ids[1].ids()
    out = llama.parent / "out"
    if shards == 2:
        assert same(load(export_huggingface(split, out)), whole)
    else:
        with pytest.raises(
            ValueError, match=r"export: layers\.0\.attention\.k is \[64, 4, 24\], the spec asks \[64, 2, 24\]"
        ):
            export_huggingface(split, out)
        assert not out.exists()
    shutil.rmtree(llama)
