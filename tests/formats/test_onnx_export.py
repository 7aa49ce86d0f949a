"""Decoders as ONNX files: onnxruntime gives the reference's logits, at once, in pieces, and for padded rows."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import GOLDENS, TOKENS, VOCABULARY, Golden, read_golden
from onnx_files import export, quantised
from tiny_checkpoint import write_golden_directory

from forge_jax import cli, exporting
from forge_jax.loading import load
from forge_jax.onnx_export.writing import write_onnx
from forge_jax.spec import Attention, Latent

TOLERANCE = 1e-5  # of the largest logit
KINDS = (
    "bailing_moe_v2",  # experts, so many that a single token copies those it chose
    "bloom",  # positions as a bias
    "deepseek_v2",  # latent attention, experts
    "gemma2",  # windows, caps
    "glm_moe_dsa",  # an indexer
    "gpt2",  # learned positions
    "llama",
    "qwen3_next",  # a delta rule beside attention
    "rwkv",  # no keys at all
    "zamba2",  # states and shared attention
)
Arrays = dict[str, np.ndarray]


class Session:
    """A graph in onnxruntime, with what it remembers."""

    def __init__(self, path: Path, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.inputs = {put.name: put for put in self.session.get_inputs()}
        self.outputs = [put.name for put in self.session.get_outputs()]
        self.past: Arrays = {name: self.empty(put, batch) for name, put in self.inputs.items() if "past" in name}

    @staticmethod
    def empty(put: Any, batch: int) -> np.ndarray:
        """An input before the first token."""
        sizes = {"batch_size": batch}
        shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in put.shape]
        return np.zeros(shape, np.float16 if put.type == "tensor(float16)" else np.float32)

    def __call__(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits of new tokens; the mask is of all tokens."""
        position = np.maximum(mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
        feed = {"input_ids": tokens, "attention_mask": mask, "position_ids": position}
        feed = {name: x.astype(np.int64) for name, x in feed.items() if name in self.inputs}
        out = dict(zip(self.outputs, self.session.run(None, feed | self.past), strict=True))
        logits = out.pop("logits")
        names = {name: name.replace("present_states.", "past_states.") for name in out}
        self.past = {names[name].replace("present.", "past_key_values."): x for name, x in out.items()}
        return logits


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare, relative to the largest value expected."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


def whole_only(golden: Golden) -> bool:
    """Whether angles change with the length of the text, so that one read in pieces has other logits."""
    ops = (branch.op for block in golden.spec.layers for branch in block.every())
    return any(isinstance(op, Attention | Latent) and op.rope is not None and op.rope.varies for op in ops)


def check_logits(golden: Golden, path: Path) -> None:
    """At once; a row alone, and its last token by itself; and padded on the left, in pieces."""
    tokens, length = golden.tokens, golden.tokens.shape[1]
    logits = Session(path, 2)(tokens, np.ones_like(tokens))
    assert_close(logits[:, list(TOKENS), VOCABULARY], golden.logits)
    if whole_only(golden):
        return

    session, row, ones = Session(path, 1), tokens[1:], np.ones_like(tokens[1:])
    alone = np.concatenate([session(row[:, :-1], ones[:, :-1]), session(row[:, -1:], ones)], 1)
    assert_close(alone[:, list(TOKENS), VOCABULARY], golden.logits[1:])

    session, kept, mask = Session(path, 2), np.array([8, 3]), np.zeros((2, 8), np.int32)
    prompt = np.full((2, 8), 7, np.int32)
    for row, count in enumerate(kept):
        prompt[row, -count:], mask[row, -count:] = tokens[row, :count], 1
    logits = session(prompt, mask)
    found: list[dict[int, np.ndarray]] = [{}, {}]
    for row, count in enumerate(kept):
        found[row] |= {i: logits[row, i - count] for i in range(count)}
    for size in (1, 2, length - 11):
        mask = np.concatenate([mask, np.ones((2, size), np.int32)], 1)
        logits = session(np.stack([tokens[row, at : at + size] for row, at in enumerate(kept)]), mask)
        for row, at in enumerate(kept):
            found[row] |= {at + i: logits[row, i] for i in range(size)}
        kept = kept + size
    for row, last in ((0, 3), (1, 2)):
        pieces = np.stack([found[row][i] for i in TOKENS[:last]])
        assert_close(pieces[:, VOCABULARY], golden.logits[row, :last])


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_the_reference(name: str, tmp_path: Path) -> None:
    golden = read_golden(name)
    path = export(golden, tmp_path / "model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    check_logits(golden, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*.npz")))
def test_logits_of_every_golden(name: str, tmp_path: Path) -> None:
    test_logits_are_the_reference(name, tmp_path)


@pytest.mark.parametrize("opset", [19, 20, 21])
def test_later_opsets(opset: int, tmp_path: Path) -> None:
    golden = read_golden("llama")
    path = export(golden, tmp_path / "model.onnx", opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    assert onnx.load(path).opset_import[0].version == opset
    check_logits(golden, path)


# ------------------------------------------------------------------------------------------------ what is in the file
def test_inputs_and_outputs_have_the_usual_names(tmp_path: Path) -> None:
    golden = read_golden("llama")
    graph = onnx.load(export(golden, tmp_path / "model.onnx")).graph
    shapes = {
        put.name: [size.dim_param or size.dim_value for size in put.type.tensor_type.shape.dim]
        for put in (*graph.input, *graph.output)
    }
    both = "sequence_length + past_sequence_length"
    assert shapes["attention_mask"] == ["batch_size", both]
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "sequence_length"]
    assert shapes["logits"] == ["batch_size", "sequence_length", 160]
    for layer in range(2):
        for part in ("key", "value"):
            assert shapes.pop(f"past_key_values.{layer}.{part}") == ["batch_size", 2, "past_sequence_length", 24]
            assert shapes.pop(f"present.{layer}.{part}") == ["batch_size", 2, both, 24]
    assert len(shapes) == 4


def test_states_are_described_and_unread_inputs_are_not_there(tmp_path: Path) -> None:
    model = onnx.load(export(read_golden("rwkv"), tmp_path / "model.onnx"))
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    names = {put.name for put in model.graph.input}
    assert set(said["forge.states"]) == names - {"input_ids", "attention_mask"}
    state = said["forge.states"]["past_states.0.time_mix.num"]
    assert state == {
        "branch": "time_mix",
        "every": None,
        "layer": 0,
        "name": "num",
        "present": "present_states.0.time_mix.num",
        "shape": [read_golden("rwkv").config["attention_hidden_size"]],
        "slots": False,
    }
    assert said["forge.config"]["model_type"] == "rwkv"


def test_parameters_are_there_under_our_paths(tmp_path: Path) -> None:
    golden = read_golden("llama")
    model = onnx.load(export(golden, tmp_path / "model.onnx"))
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(golden.params)
    }
    assert set(said["forge.parameters"].values()) == set(flat)
    for name, path in said["forge.parameters"].items():
        np.testing.assert_array_equal(arrays[name], flat[path], strict=True)


def test_many_weights_go_to_a_file_beside(tmp_path: Path) -> None:
    golden = read_golden("llama")
    path = export(golden, tmp_path / "model.onnx", inline=1000)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    onnx.checker.check_model(str(path), full_check=True)
    external = [t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external]
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)
    check_logits(golden, path)


# ------------------------------------------------------------------------------------------------ dtypes and leaves


def test_half_precision(tmp_path: Path) -> None:
    golden = read_golden("llama")
    path = export(golden, tmp_path / "model.onnx", "float16")
    logits = Session(path, 2)(golden.tokens, np.ones_like(golden.tokens))[:, list(TOKENS), VOCABULARY]
    # float16 has 11 bits, 5e-4 a step, and every product and sum of two layers is rounded to it
    np.testing.assert_allclose(logits, golden.logits, rtol=0, atol=1e-2 * float(np.abs(golden.logits).max()))


def test_bfloat16_is_a_sound_file(tmp_path: Path) -> None:
    path = export(read_golden("llama"), tmp_path / "model.onnx", "bfloat16")
    onnx.checker.check_model(str(path), full_check=True)
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.name.startswith("layers.")}
    assert kinds == {onnx.TensorProto.BFLOAT16}


def test_quantised_leaves_stay_so_if_asked(tmp_path: Path) -> None:
    golden, path, found = read_golden("llama"), tmp_path / "model.onnx", []
    for stay in (False, True):
        write_onnx(path, golden.spec, quantised(golden), opset=21, dtype=np.float32, metadata={}, packed=stay)
        onnx.checker.check_model(str(path), full_check=True)
        found.append(Session(path, 2)(golden.tokens, np.ones_like(golden.tokens)))
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert kinds["layers.0.attention.q.codes"] == onnx.TensorProto.INT8
    assert kinds["layers.0.mlp.gate.codes"] == onnx.TensorProto.UINT8
    assert kinds["layers.0.mlp.down.codes"] == onnx.TensorProto.FLOAT8E4M3FN
    assert_close(*found)
    off = np.abs(found[0][:, list(TOKENS), VOCABULARY] - golden.logits).max() / np.abs(golden.logits).max()
    assert 1e-3 < off < 0.2  # rounded weights, and not others
    with pytest.raises(ValueError, match="float8_e4m3fn need opset 21, this is 18"):
        write_onnx(path, golden.spec, quantised(golden), opset=18, dtype=np.float32, metadata={}, packed=True)


# ------------------------------------------------------------------------------------------------ the front
@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small checkpoint."""
    return write_golden_directory("llama", tmp_path / "llama")


def test_a_directory_has_the_config(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["convert", str(llama), str(tmp_path / "out"), "--to", "onnx"]
    assert cli.main(words) == 0
    names = {line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()}
    assert names == {"model.onnx", "config.json"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == read_golden("llama").config | {"dtype": "float32"}
    assert cli.main(words) == 1
    assert "add --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0


def test_a_file_alone(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    assert cli.main(["convert", str(llama), str(target)]) == 0
    check_logits(read_golden("llama"), target)


def test_what_cannot_be_is_said(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = load(llama, progress=False), tmp_path / "out.onnx"
    with pytest.raises(ValueError, match="opset 17 is not written; expected one of 18, 19, 20, 21"):
        exporting.export_onnx(model, target, opset=17)
    with pytest.raises(ValueError, match="'int8' is unknown"):
        exporting.export_onnx(model, target, dtype="int8")
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "forge-jax\[onnx\]"'):
        exporting.export_onnx(model, target)


@pytest.mark.parametrize("inline", [0, 10**9])
def test_nothing_is_left_of_a_file_that_cannot_be(inline: int, tmp_path: Path) -> None:
    golden = read_golden("llama")
    params = jax.tree.map(lambda leaf: leaf * 1e6, golden.params)
    with pytest.raises(ValueError, match="beyond float16"):
        write_onnx(tmp_path / "x.onnx", golden.spec, params, opset=18, dtype=np.float16, metadata={}, inline=inline)
    assert not list(tmp_path.iterdir())
