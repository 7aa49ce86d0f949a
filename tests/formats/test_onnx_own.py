"""ONNX files of our own, read back: the parameters bit for bit, packed leaves too, by the notes in the file alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from helpers import GOLDENS, TOKENS, VOCABULARY, Golden, read_golden
from onnx_files import export, quantised
from oracle_loader import load as logits_of
from tiny_checkpoint import write_golden_directory

from converters.checkpoint import open_checkpoint
from forge_jax import exporting
from forge_jax.loading import load
from forge_jax.onnx_export.writing import write_onnx
from forge_jax.params import flatten
from forge_jax.tensor import QTensor, unpacked

KINDS = ("deepseek_v3", "gpt2", "llama", "mamba", "mixtral")


def assert_equal(found: Any, expected: Any) -> None:
    """Two trees of parameters, bit for bit; leaves are as packed."""
    ours, theirs = dict(flatten(found)), dict(flatten(expected))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():
        assert isinstance(ours[path], QTensor) == isinstance(leaf, QTensor), path
        jax.tree.map(
            lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), ours[path], leaf
        )


def check_read_back(golden: Golden, path: Path) -> None:
    """A golden, written and read: spec and parameters."""
    export(golden, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec == golden.spec
    checkpoint.source.close()
    assert_equal(load(path, progress=False).params, golden.params)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_come_back(name: str, tmp_path: Path) -> None:
    check_read_back(read_golden(name), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_logits_come_back(name: str, tmp_path: Path) -> None:
    golden = read_golden(name)
    logits = logits_of(export(golden, tmp_path / "model.onnx"))(golden.tokens)[:, list(TOKENS), VOCABULARY]
    np.testing.assert_allclose(logits, golden.logits, rtol=0, atol=1e-5 * float(np.abs(golden.logits).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*.npz")))
def test_every_golden_comes_back(name: str, tmp_path: Path) -> None:
    check_read_back(read_golden(name), tmp_path / "model.onnx")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back(dtype: str, tmp_path: Path) -> None:
    model = load(write_golden_directory("llama", tmp_path / "llama"), dtype=dtype, progress=False)
    exporting.export_onnx(model, tmp_path / "out", dtype=dtype)
    back = load(tmp_path / "out", dtype="stored", progress=False)
    assert back.spec == model.spec
    assert back.config == dict(model.config) | {"dtype": dtype}
    assert set(back.stored.values()) == {exporting.STORAGE[dtype]}
    assert_equal(back.params, model.params)


@pytest.mark.parametrize("packed", [False, True])
def test_packed_leaves_come_back(packed: bool, tmp_path: Path) -> None:
    golden, path = read_golden("llama"), tmp_path / "model.onnx"
    params, said = quantised(golden), {"config": golden.config}
    write_onnx(path, golden.spec, params, opset=21, dtype=np.float32, metadata=said, packed=packed, inline=1000)
    assert_equal(load(path, progress=False).params, params if packed else unpacked(params))
    assert_equal(load(path, packed=False, progress=False).params, unpacked(params))


# ------------------------------------------------------------------------------------------------ what does not fit
@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model."""
    folder = tmp_path_factory.mktemp("own")
    model = load(write_golden_directory("llama", folder / "llama"), progress=False)
    return exporting.export_onnx(model, folder / "out")


Notes = dict[str, Any]


def renamed(notes: Notes, old: str, new: str) -> None:
    """Say of a tensor that it is another parameter."""
    notes["forge.parameters"][old] = new


CHANGES: dict[str, tuple[Callable[[Notes], Any], str]] = {
    "a note of another version": (lambda n: n.update({"forge.rows": {}}), "'forge.rows'.* each once: another version"),
    "a note that is missing": (lambda n: n.pop("forge.packed"), "expected .*'forge.packed'"),
    "a config that is a list": (lambda n: n.update({"forge.config": []}), "forge.config: expected a JSON object"),
    "names that are a list": (lambda n: n.update({"forge.parameters": []}), "forge.parameters: expected a JSON object"),
    "packed leaves that are a list": (lambda n: n.update({"forge.packed": []}), "forge.packed: expected a JSON object"),
    "a config key of nobody": (lambda n: n["forge.config"].update(new_key=1), "new_key"),
    "another architecture": (lambda n: n["forge.config"].update(model_type="nothing"), "'nothing'"),
    "a wider model": (lambda n: n["forge.config"].update(intermediate_size=1 << 40), r"the config asks \[64, 1099"),
    "a tensor that is not there": (
        lambda n: renamed(n, "other", "embeds"),
        "'other', which is not there: the file was",
    ),
    "one parameter twice": (lambda n: renamed(n, "embed", "head"), "is parameter 'head', as is another"),
    "a parameter that is a number": (lambda n: renamed(n, "embed", 5), "is parameter '5'"),  # type: ignore[arg-type]
    "a parameter of no layer": (lambda n: renamed(n, "embed", "layers.9.x"), "embed is missing .*layers.9.x"),
    "a scheme of nobody": (
        lambda n: n["forge.packed"].update(embed={"scheme": 3, "inner": [], "trailing": 0, "parts": ["a"]}),
        "forge.packed: ",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_notes_that_do_not_fit(name: str, exported: Path, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    model, path = onnx.load(exported / "model.onnx"), tmp_path / "model.onnx"
    notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    change(notes)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in notes.items()})
    onnx.save(model, path)
    with pytest.raises(ValueError, match=f"model.onnx.*{message}"):
        open_checkpoint(path)


def test_notes_that_are_no_json_or_there_twice(exported: Path, tmp_path: Path) -> None:
    model, path = onnx.load(exported / "model.onnx"), tmp_path / "model.onnx"
    model.metadata_props.add(key="other tool's", value="x" * (2 << 20))  # not read, however long
    onnx.save(model, path)
    open_checkpoint(path).source.close()
    config = next(entry for entry in model.metadata_props if entry.key == "forge.config")
    config.value = "{"
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"forge.config: not valid JSON"):
        open_checkpoint(path)
    model.metadata_props.add(key="forge.config", value="{}")
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"found the notes 'forge.config', .* each once"):
        open_checkpoint(path)


def test_a_config_beside_that_is_another_models(exported: Path, tmp_path: Path) -> None:
    """The directory is read by what its files say together; the file alone by what it says itself."""
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    config = json.loads((exported / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match=r"config.json: 'rms_norm_eps' differ from the config inside the graph"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path / "model.onnx").spec == open_checkpoint(exported).spec
