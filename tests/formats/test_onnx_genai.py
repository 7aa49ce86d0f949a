"""What ONNX Runtime GenAI's builder writes, read without a config.json: the checkpoint that it was made of."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import genai_files
import ml_dtypes
import numpy as np
import onnx
import pytest
from helpers import read_golden
from onnx import numpy_helper
from onnx_files import angles

from converters.checkpoint import open_checkpoint
from forge_jax.params import flatten


@pytest.mark.parametrize("name", [*genai_files.KINDS, "lfm2_moe"])
def test_a_graph_of_the_builder_says_its_spec(name: str, tmp_path: Path):
    genai_files.unpack(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.source.close()
    assert checkpoint.spec == read_golden(name).spec


@pytest.mark.slow
@pytest.mark.parametrize("name", [*genai_files.KINDS, *genai_files.CONFIGURED])
def test_what_the_builder_writes_now(name: str, tmp_path: Path):
    """Where onnxruntime-genai is installed: all weights, too; where a norm has an offset, 1 + w is rounded."""
    pytest.importorskip("onnxruntime_genai")
    subprocess.run([sys.executable, genai_files.__file__, name, str(tmp_path)], check=True)
    golden = read_golden(name)
    if name in genai_files.CONFIGURED:
        (tmp_path / "out" / "config.json").write_text(json.dumps(golden.config))
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.spec == golden.spec
    ours = dict(flatten(checkpoint.read(lambda _, values: np.asarray(values))))
    theirs = dict(flatten(golden.params))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():
        near = 2e-7 if name.startswith("gemma") and path.endswith(".scale") else 0
        np.testing.assert_allclose(ours[path], np.asarray(leaf), rtol=0, atol=near, err_msg=path)


# ------------------------------------------------------------------------------------------------ what does not fit
def attribute(graph: onnx.GraphProto, op: str, key: str, value: float, which: int = 0) -> None:
    """Change an attribute of one of the nodes of an operator."""
    node = [node for node in graph.node if node.op_type == op][which]
    kept = [each for each in node.attribute if each.name != key]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(key, value)])


def constant(graph: onnx.GraphProto, name: str, value: float) -> None:
    """Change a number that nodes multiply by."""
    (node,) = (node for node in graph.node if node.op_type == "Constant" and node.output[0] == name)
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))


def table(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the sines of the rope."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == "sin_cache")
    place = {entry.key: entry.value for entry in tensor.external_data}
    with (folder / "model.onnx.data").open("r+b") as file:
        file.seek(int(place["offset"]))
        values = np.frombuffer(file.read(int(place["length"])), np.float32).reshape(tensor.dims)
        file.seek(int(place["offset"]))
        file.write(change(values).astype(np.float32).tobytes())


ATTENTION = "GroupQueryAttention"
GRAPHS: dict[str, tuple[str, Callable[[onnx.GraphProto], Any], str]] = {
    "a window in a llama": (
        "llama_bias",
        lambda g: attribute(g, ATTENTION, "local_window_size", 7),
        r"has windows \[7\], which its type of model has not",
    ),
    "two windows": (
        "gemma2",
        lambda g: attribute(g, ATTENTION, "local_window_size", 7, which=1),
        r"the graph has windows \[7, 8\], expected one",
    ),
    "two epsilons": (
        "qwen2",
        lambda g: attribute(g, "SimplifiedLayerNormalization", "epsilon", 0.5),
        r"norms of epsilon \[0.00[0-9]*, 0.5\], expected one",
    ),
    "a scale of one layer": (
        "granite",
        lambda g: attribute(g, ATTENTION, "scale", 0.5),
        r"scales of scores \[0.31[0-9]*, 0.5\], expected one",
    ),
    "scores times nothing": (
        "gemma2",
        lambda g: [attribute(g, ATTENTION, "scale", 0.0, which=i) for i in range(2)],
        "the graph multiplies scores by 0",
    ),
    "logits times nothing": (
        "granite",
        lambda g: constant(g, "/model/constants/FLOAT/0.625", 0.0),
        "node '/lm_head/Mul' does not multiply by a stored number other than 0",
    ),
    "embeddings times 5": (
        "gemma",
        lambda g: constant(g, "/model/constants/FLOAT/8.0", 5.0),
        "multiplies embeddings by 5, its type of model by 8",
    ),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_is_no_plain_one(case: str, tmp_path: Path):
    name, change, message = GRAPHS[case]
    genai_files.unpack(name, tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    change(model.graph)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=rf"genai_config.json: .*{message}; put the model's config.json beside"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, np.nan])
def test_angles_that_are_no_powers(factor: float, tmp_path: Path):
    genai_files.unpack("phi3", tmp_path)
    table(tmp_path, lambda sin: sin * factor)
    with pytest.raises(ValueError, match="are not powers of one base: the rope is scaled; put the model's config.json"):
        open_checkpoint(tmp_path)


def half(dtype: Any, theta: float, folder: Path) -> Path:
    """A kept graph with tables of another rope, in half precision."""
    genai_files.unpack("qwen2", folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in ("cos_cache", "sin_cache"):
            rope = {"head_dim": 2 * tensor.dims[1], "rope_parameters": {"rope_theta": theta}}
            angle = angles(rope, tensor.dims[0])
            values = (np.cos if tensor.name == "cos_cache" else np.sin)(angle).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_round_bases_from_tables_of_half_precision(theta: float, tmp_path: Path):
    checkpoint = open_checkpoint(half(np.float16, theta, tmp_path))
    checkpoint.source.close()
    assert checkpoint.config["rope_parameters"] == {"rope_type": "default", "rope_theta": theta}


@pytest.mark.parametrize(("dtype", "theta"), [(np.float16, 1234.5), (ml_dtypes.bfloat16, 1e4)])
def test_tables_that_are_too_coarse(dtype: Any, theta: float, tmp_path: Path):
    with pytest.raises(ValueError, match=f"the angles of the graph are {np.dtype(dtype)}, too coarse to tell"):
        open_checkpoint(half(dtype, theta, tmp_path))


@pytest.mark.parametrize("kind", ["nemotron", "olmo", "phi", 7, None])
def test_a_type_whose_graph_does_not_say_enough(kind: Any, tmp_path: Path):
    genai_files.unpack("granite", tmp_path)
    said = json.loads((tmp_path / "genai_config.json").read_text())
    said["model"]["type"] = kind
    (tmp_path / "genai_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"of type {kind!r} it does not say enough .*; put the model's config.json"):
        open_checkpoint(tmp_path)


def test_a_type_without_the_factors_of_the_graph(tmp_path: Path):
    genai_files.unpack("granite", tmp_path)
    text = (tmp_path / "genai_config.json").read_text().replace('"type": "granite"', '"type": "llama"')
    (tmp_path / "genai_config.json").write_text(text)
    with pytest.raises(ValueError, match="has factors of embedding, logits, residual, which a plain llama does not"):
        open_checkpoint(tmp_path)
