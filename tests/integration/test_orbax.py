"""Orbax checkpoints: written from any model, read back bit for bit, and readable by orbax alone."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import read_golden
from tiny_checkpoint import write_chat_model, write_golden_directory

from converters import rules
from converters.detect import detect, open_source
from converters.orbax import open_orbax, write_orbax
from converters.source import TensorSource
from forge_jax import Forge, loading
from forge_jax.exporting import export_orbax
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten
from forge_jax.tensor import QTensor

pytestmark = pytest.mark.usefixtures("quick_compiles")

ocp = pytest.importorskip("orbax.checkpoint")


def load(path: Path, dtype: str = "stored", packed: bool = True) -> Model:
    return loading.load(path, dtype=dtype, packed=packed, progress=False)


def assert_same(one: Model, two: Model) -> None:
    """The same spec, and every leaf bit for bit."""
    assert one.spec == two.spec
    ours, theirs = dict(flatten(one.params)), dict(flatten(two.params))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        other = theirs[path]
        assert (leaf.dtype, leaf.shape) == (other.dtype, other.shape), path
        assert np.asarray(leaf).tobytes() == np.asarray(other).tobytes(), path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that can chat, as an orbax directory."""
    folder = tmp_path_factory.mktemp("orbax")
    return export_orbax(load(write_chat_model(folder / "hf")), folder / "orbax")


# one family of each naming, with fused, transposed and shared weights, biases, untied heads and own rotary factors
@pytest.mark.parametrize("name", ["llama", "gpt2_untied", "falcon_new", "phi3_longrope", "gemma3", "bloom", "opt"])
def test_every_family_goes_by_our_names(tmp_path: Path, name: str):
    model = load(write_golden_directory(name, tmp_path / "hf"))
    back = load(export_orbax(model, tmp_path / "orbax"))
    assert back.format == "orbax"
    assert_same(model, back)
    assert back.config == {**model.config, "dtype": "float32"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(tmp_path: Path, dtype: str):
    model = load(write_golden_directory("llama", tmp_path / "hf"), dtype)
    export_orbax(model, tmp_path / "orbax")
    back = load(tmp_path / "orbax")
    assert_same(model, back)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(back.params)} == {dtype}
    assert set(back.stored.values()) == {{"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[dtype]}
    assert json.loads((tmp_path / "orbax" / "config.json").read_text())["dtype"] == dtype


def test_mixed_dtypes_are_kept(tmp_path: Path):
    model = load(write_golden_directory("llama", tmp_path / "hf"))
    model.params["embed"] = model.params["embed"].astype(jnp.bfloat16)
    assert_same(model, load(export_orbax(model, tmp_path / "orbax")))


def test_the_tokenizer_comes_along(saved: Path):
    model = load(saved)
    assert model.tokenizer is not None
    assert model.tokenizer.decode(model.tokenizer.encode("Hello there")) == "Hello there"
    assert model.tokenizer.chat_template is not None
    assert {item.name for item in saved.iterdir()} >= {"config.json", "params", "tokenizer.json"}


def test_orbax_alone_restores_it(saved: Path):
    ours = load(saved).params
    with ocp.StandardCheckpointer() as checkpointer:
        theirs = checkpointer.restore(saved / "params", jax.tree.map(jnp.zeros_like, ours))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_a_checkpoint_of_orbax_alone_loads(tmp_path: Path, saved: Path):
    """A tree that training code saved by itself, with our config beside it, at the top or as one of several items."""
    model = load(saved)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "flat", model.params)
    shutil.copy(saved / "config.json", tmp_path / "flat")
    assert_same(model, load(tmp_path / "flat"))
    items = {"params": ocp.args.StandardSave(model.params), "opt_state": ocp.args.StandardSave({"step": jnp.ones(1)})}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "step", ocp.args.Composite(**items))
    shutil.copy(saved / "config.json", tmp_path / "step")
    assert_same(model, load(tmp_path / "step"))


def test_forge_reads_and_writes_it(tmp_path: Path, saved: Path):
    forge = Forge.from_any(saved)
    assert forge.model.format == "orbax"
    assert forge.config == Forge.from_config(forge.config).config
    ids = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(forge.forward(ids), Forge.from_any(saved.parent / "hf").forward(ids))


def test_the_source_is_one(saved: Path):
    source = open_orbax(saved)
    assert isinstance(source, TensorSource)
    leaves = dict(flatten(load(saved).params))
    assert set(source.tensors) == set(leaves)
    for name, info in source.tensors.items():
        values = source.read(name)
        assert (info.shape, info.dtype, info.nbytes) == (values.shape, "F32", values.nbytes)
        np.testing.assert_array_equal(values, leaves[name])
    with pytest.raises(KeyError):
        source.read("layers.9.attention.q")
    source.close()


@pytest.mark.parametrize(
    "options", [{"use_zarr3": True}, {"use_ocdbt": False}, {"use_ocdbt": False, "use_zarr3": True}]
)
def test_every_way_that_orbax_stores_arrays(tmp_path: Path, options: dict[str, bool]):
    tree = {
        "a": {"b": jnp.arange(12.0).reshape(3, 4).astype(jnp.bfloat16), "zero": jnp.zeros((2, 2))},
        "n": jnp.ones(()),
    }
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "x", {**tree, "empty": {}})
    source = open_orbax(tmp_path / "x")
    found = {name: source.read(name) for name in source.tensors}
    source.close()
    assert {name: (x.dtype, x.tolist()) for name, x in found.items()} == {
        name: (x.dtype, x.tolist()) for name, x in flatten(tree)
    }


def test_identity_rules_name_every_leaf():
    described = abstract(read_golden("gpt2").spec)
    found = rules.instances(rules.identity(described), described)
    assert [(i.theirs, i.paths, i.stored_shape) for i in found] == [
        (path, (path,), param.shape) for path, param in flatten(described)
    ]


# ------------------------------------------------------------------------------------------------ packed leaves
PACKED_CASES = (
    "gguf/llama/Q4_K_M.gguf",
    "gguf/mixtral/Q4_K_M.gguf",
    "quant/gptq_3b_g32_actorder_asym",
    "quant/ct_nvfp4",
)
PACKED_CASES += ("quant/bnb_nf4", "quant/mxfp4_gpt_oss", "quant/fp8_block32")


@pytest.mark.parametrize("case", PACKED_CASES)
def test_packed_leaves_come_back_bit_for_bit(shared: Path, tmp_path: Path, case: str):
    path = shared / "oracle" / case
    if not path.exists():
        pytest.skip(f"{case} is not there")
    model = load(path)
    back = load(export_orbax(model, tmp_path / "orbax"))
    assert jax.tree.structure(back.params) == jax.tree.structure(model.params)
    assert any(isinstance(leaf, QTensor) for _, leaf in flatten(back.params))
    for one, two in zip(jax.tree.leaves(model.params), jax.tree.leaves(back.params), strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert_same(model.unpacked(), load(tmp_path / "orbax", packed=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: {**said, "trailing": 9}, "trailing is 9, expected a count of axes"),
        (lambda said: {**said, "inner": [0]}, r"inner is \[0\], expected sizes"),
        (lambda said: {**said, "inner": [7]}, "do not make rows of int8"),
        (lambda said: {**said, "parts": ["codes", "zero"]}, "an array is missing; expected codes, zero"),
        (lambda said: {**said, "parts": ["codes"]}, "do not make rows of int8"),
        (lambda said: {**said, "scheme": {"kind": "os.system"}}, "is no scheme; expected a kind of Integers"),
        (lambda said: {**said, "scheme": {"kind": "Integers", "bits": "8"}}, "bits is '8', expected"),
        (lambda said: {**said, "scheme": {"kind": "Integers", "bits": 4, "size": 1}}, "has the fields group, bits"),
        (lambda said: {"scheme": said["scheme"]}, "expected an object with scheme, inner, trailing and parts"),
    ],
)
def test_wrong_descriptions_of_packed_leaves(tmp_path: Path, saved: Path, change: Any, message: str):
    folder = export_orbax(Forge.from_any(saved).quantize("int8").model, tmp_path / "orbax")
    said = json.loads((folder / "packed.json").read_text())
    said["layers.0.mlp.down"] = change(said["layers.0.mlp.down"])
    (folder / "packed.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=message):
        load(folder)


# ------------------------------------------------------------------------------------------------ refusals
def test_a_directory_with_files_is_not_overwritten_unasked(tmp_path: Path, saved: Path):
    (tmp_path / "orbax").mkdir()
    (tmp_path / "orbax" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        export_orbax(load(saved), tmp_path / "orbax")
    assert (tmp_path / "orbax" / "mine").exists()
    export_orbax(load(saved), tmp_path / "orbax", overwrite=True)
    assert not (tmp_path / "orbax" / "mine").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["orbax"]


def test_without_orbax_the_error_tells_how_to_install_it(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r'pip install "forge-jax\[train\]"'):
        open_orbax(saved)
    monkeypatch.undo()
    model = load(saved)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'pip install "forge-jax\[train\]"'):
        export_orbax(model, tmp_path / "orbax")
    assert not list(tmp_path.iterdir())


def copy(saved: Path, to: Path) -> Path:
    shutil.copytree(saved, to)
    return to


def test_detection(tmp_path: Path, saved: Path):
    assert detect(saved) == detect(saved / "params") == "orbax"
    assert detect(saved.parent / "hf") == "huggingface"
    both = copy(saved, tmp_path / "both")
    shutil.copy(saved.parent / "hf" / "model.safetensors", both)
    assert detect(both) == "huggingface"  # trees of training runs lie beside the weights that they led to
    source = open_source(both, file="params")
    assert source.format == "orbax"
    source.close()


def test_several_trees_leave_a_choice(tmp_path: Path):
    for name in ("one", "two"):
        write_orbax(tmp_path / name, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"2 orbax trees \(one, two\); name one with file="):
        open_source(tmp_path)
    open_source(tmp_path, file="two").close()


def test_an_interrupted_save_is_named(tmp_path: Path):
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no orbax tree.*interrupted"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [jnp.ones(2)]}, "is not in nested dicts, as export_orbax writes them"),
        ([jnp.ones(2)], "is not in nested dicts"),
        ({"a.b": jnp.ones(2)}, "the key 'a.b' is no plain name"),
        ({"a": {"b.c": jnp.ones(2)}}, "the key 'b.c' is no plain name"),
        ({"a": "text"}, "is a 'string'; expected jax.Array or np.ndarray"),
    ],
)
def test_trees_that_are_not_ours_are_refused(tmp_path: Path, tree: dict, message: str):
    write_orbax(tmp_path / "x", tree)
    with pytest.raises(ValueError, match=message):
        open_orbax(tmp_path / "x")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path, saved: Path):
    leaves = load(saved).params
    del leaves["final_norm"]
    leaves["embed"] = leaves["embed"][:-1]
    leaves["head"] = jnp.ones((2, 2))
    shutil.copytree(saved, tmp_path / "x", ignore=shutil.ignore_patterns("params"))
    write_orbax(tmp_path / "x" / "params", leaves)
    with pytest.raises(ValueError, match="3 tensors do not fit the config") as caught:
        load(tmp_path / "x")
    for part in ("final_norm.scale is missing", r"embed is [97, 32], the config asks [98, 32]", "head [2, 2] is used"):
        assert part in str(caught.value)


def damage(file: Path, start: int) -> None:
    data = bytearray(file.read_bytes())
    for at in range(start, len(data), 7):
        data[at] ^= 0x55
    file.write_bytes(data)


def data_files(tree: Path) -> list[Path]:
    return sorted((tree / "d").iterdir()) + sorted(tree.glob("ocdbt.process_*/d/*"))


@pytest.mark.parametrize("start", [0, 200])
def test_damaged_data_is_an_error_that_names_the_checkpoint(tmp_path: Path, saved: Path, start: int):
    broken = copy(saved, tmp_path / "x")
    for file in data_files(broken / "params"):
        damage(file, start)
    with pytest.raises(ValueError, match=str(broken)):
        load(broken)


ENTRY = (
    '{"tree_metadata": {"x": {"key_metadata": [{"key": "%s", "key_type": 2}], "value_metadata": {"value_type": %s}}}}'
)
DAMAGED = {
    "empty": "",
    "cut": "{",
    "list": "[]",
    "number": '{"tree_metadata": 3}',
    "deep": "[" * 100_000,
    "no entry": '{"tree_metadata": {"x": 3}}',
    "no kind": ENTRY % ("embed", "[]"),
    "a way out": ENTRY % ("../../etc/x", '"jax.Array"'),
    "an array that is not there": ENTRY % ("gone", '"jax.Array"'),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_is_an_error_that_names_the_checkpoint(tmp_path: Path, saved: Path, text: str):
    broken = copy(saved, tmp_path / "x")
    (broken / "params" / "_METADATA").write_text(text)
    with pytest.raises(ValueError, match=str(broken)):
        load(broken)


def test_missing_data_is_an_error(tmp_path: Path, saved: Path):
    broken = copy(saved, tmp_path / "x")
    for file in data_files(broken / "params"):
        file.unlink()
    with pytest.raises(ValueError, match=str(broken)):
        load(broken)


def test_a_claim_beyond_the_files_is_refused(tmp_path: Path):
    """A constant packs to nothing: a terabyte of zeros must not be believed because a small file says so."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "x", {"a": jnp.ones((4, 4))})
    header = tmp_path / "x" / "a" / ".zarray"
    sound = json.loads(header.read_text())
    for lie in ({"shape": [1 << 20, 1 << 18]}, {"chunks": [1 << 20, 1 << 18]}):
        header.write_text(json.dumps(sound | lie))
        with pytest.raises(ValueError, match="claims 1099511627776 bytes of tensors"):
            open_orbax(tmp_path / "x")
