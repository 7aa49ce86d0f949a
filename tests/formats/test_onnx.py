"""ONNX decoders: the same parameters and logits as the checkpoints that they were exported from."""

import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import TOKENS, VOCABULARY, Golden, read_golden
from onnx import TensorProto, helper, numpy_helper
from onnx_files import MICROSOFT, Names, decoder, genai, save
from oracle_loader import generate, load

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.detect import open_source
from converters.onnx.graph import Expr, transposed
from converters.onnx.source import OnnxSource
from converters.onnx.uses import uses
from forge_jax import Forge, loading
from forge_jax.params import flatten
from forge_jax.tensor import QTensor

R = np.random.default_rng(5)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_golden("llama")


def parameters(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Every leaf, on the host, and the source closed."""
    with closing(checkpoint.source):
        return dict(flatten(checkpoint.read(lambda _, values: np.asarray(values))))


def assert_same(folder: Path, golden: Golden) -> None:
    """The model in a folder is the golden, bit for bit."""
    ours = parameters(checkpoint := open_checkpoint(folder))
    assert checkpoint.source.format == "onnx"
    assert checkpoint.spec == golden.spec
    theirs = dict(flatten(golden.params))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], np.asarray(leaf), err_msg=path)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ------------------------------------------------------------------------------------------------ references
@pytest.mark.parametrize(
    "name", ["gpt2_int8dyn", "gpt2_past", "llama_optimum", "llama_past", "llama_ts", "phi3_past", "qwen2_dynamo"]
)
def test_logits_of_reference_exports(shared: Path, name: str):
    case = shared / "oracle/onnx" / name
    if not case.exists():
        pytest.skip(f"{case} is not there")
    with np.load(case / "ref.npz") as file:
        ours = load(case / "model.onnx")(file["input_ids"])
        # onnxruntime rounds what flows between int8 matrices to int8 too
        assert distance(ours, file["logits"]) < (5e-2 if "int8" in name else 1e-5)


def test_an_export_of_a_real_model_is_the_model(shared: Path, tmp_path: Path):
    folder = shared / "models/stories260K"
    shutil.copytree(folder / "onnx", tmp_path / "onnx")
    shutil.copy(folder / "hf/config.json", tmp_path)  # above the folder "onnx", as repositories have it
    ours = parameters(open_checkpoint(tmp_path / "onnx"))
    for path, leaf in parameters(open_checkpoint(folder / "hf")).items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_a_head_quantised_apart_from_its_embedding_is_its_own(shared: Path, tmp_path: Path):
    """The config ties them; what is written from here says that they are two."""
    case = shared / "oracle/onnx/gpt2_int8dyn"
    if not case.exists():
        pytest.skip(f"{case} is not there")
    forge = Forge.from_onnx(case, progress=False)
    back = Forge.from_any(forge.export_to_huggingface(tmp_path / "hf"), progress=False)
    assert not forge.model.spec.tied
    assert back.model.spec == forge.model.spec


def test_an_int8_export_says_what_onnxruntime_says(shared: Path, tmp_path: Path):
    folder = shared / "models/stories260K"
    shutil.copy(folder / "onnx/model_int8.onnx", tmp_path)
    shutil.copy(folder / "hf/config.json", tmp_path)
    expected = json.loads((folder / "onnx/int8_reference.json").read_text())
    assert generate(tmp_path / "model_int8.onnx", [expected[:1]], len(expected) - 1)[0].tolist() == expected[1:]


# ------------------------------------------------------------------------------------------------ graphs made here
def test_the_graph_made_here_computes_the_golden(golden: Golden):
    """The witness of the others: what they take apart is a decoder that runs."""
    session = onnxruntime.InferenceSession(decoder(golden).SerializeToString())
    logits = np.asarray(session.run(None, {"input_ids": golden.tokens.astype(np.int64)})[0])
    assert distance(logits[:, list(TOKENS), VOCABULARY], golden.logits) < 1e-5


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("names", ["scopes", "notes", "none"])
def test_matrices_that_lost_their_names(golden: Golden, tmp_path: Path, names: Names, beside: bool):
    assert_same(save(decoder(golden, names), tmp_path, golden.config, beside=beside), golden)


@pytest.mark.parametrize("packed", [False, True])
def test_a_graph_of_the_genai_builder(golden: Golden, tmp_path: Path, packed: bool):
    assert_same(save(genai(golden, packed=packed), tmp_path, golden.config), golden)


def test_a_genai_directory_without_a_config(golden: Golden, tmp_path: Path):
    folder = save(genai(golden), tmp_path)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 24}
    decoder_config = {"hidden_size": 64, "num_hidden_layers": 2, **heads}
    said = {"model": {"type": "llama", "context_length": 128, "vocab_size": 160, "decoder": decoder_config}}
    (folder / "genai_config.json").write_text(json.dumps(said))
    assert_same(folder, golden)
    said["model"]["type"] = "phi3"
    (folder / "genai_config.json").write_text(json.dumps(said))
    with pytest.raises(
        ValueError, match=r"genai_config.json: of type 'phi3' it does not say enough .* put the model's"
    ):
        open_checkpoint(folder)
    (folder / "genai_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        open_checkpoint(folder)


def test_a_merged_decoder(golden: Golden, tmp_path: Path):
    """Both branches of an If hold the decoder, the weights lie outside of them."""
    graph = decoder(golden).graph
    branches: dict[str, Any] = {
        name: helper.make_graph(list(graph.node), name, [], list(graph.output))
        for name in ("then_branch", "else_branch")
    }
    either = helper.make_node("If", ["use_cache_branch"], ["logits"], "if", **branches)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    inputs = [*graph.input, flag]
    merged = helper.make_graph([either], "merged", inputs, list(graph.output), list(graph.initializer))
    assert_same(save(helper.make_model(merged, ir_version=8), tmp_path, golden.config), golden)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_a_few_bits_stay_packed(golden: Golden, tmp_path: Path, bits: int):
    folder = save(genai(golden, bits=bits), tmp_path, golden.config)
    packed, dense = (loading.load(folder, packed=keep, progress=False) for keep in (True, False))
    kept = [path for path, leaf in flatten(packed.params) if isinstance(leaf, QTensor)]
    assert len(kept) == 2 * 7 + 1  # of both layers q, k, v, o, gate, up, down; and the head
    for path, leaf in flatten(packed.params):
        ours = np.asarray(leaf.dense() if isinstance(leaf, QTensor) else leaf)
        np.testing.assert_array_equal(ours, np.asarray(dict(flatten(dense.params))[path]), err_msg=path)


def test_equal_tensors_that_an_exporter_has_joined(golden: Golden, tmp_path: Path):
    """Of the norms of a model that was never trained one is left; the modules of the nodes say whose it is."""
    ones = {name: np.ones_like(x) if "norm" in name else x for name, x in golden.arrays.items()}
    plain = Golden("ones", golden.config, golden.shapes, golden.tokens, golden.logits)
    plain.__dict__["arrays"] = ones
    model = decoder(plain)
    norms = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith("norm.weight")]
    for node in model.graph.node:
        node.input[:] = [norms[0] if name in norms else name for name in node.input]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in norms[1:]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert_same(save(model, tmp_path, golden.config), plain)


def test_constant_nodes_hold_tensors_too(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    constants = [helper.make_node("Constant", [], [t.name], f"/{t.name}", value=t) for t in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    graph = helper.make_graph(nodes, "main", list(model.graph.input), list(model.graph.output))
    assert_same(save(helper.make_model(graph, ir_version=8), tmp_path, golden.config), golden)


@pytest.mark.parametrize("raw", [False, True])
def test_every_way_to_store_numbers(tmp_path: Path, raw: bool):
    """In the fields of their types as varints and floats, or as raw bytes."""
    kinds = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16, 17, 19, 21, 22]
    tensors = []
    for kind in kinds:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        low = -3 if kind in (1, 3, 5, 6, 7, 10, 11, 16, 17, 19, 22) else 0
        values = np.arange(low, low + 6).reshape(2, 3) if kind != 9 else np.arange(6).reshape(2, 3) % 2
        array = values.astype(dtype)
        stored = array.tobytes() if raw and kind < 21 else array.reshape(-1)
        if raw and kind >= 21:
            tensors.append(numpy_helper.from_array(array, f"t{kind}"))
        else:
            tensors.append(helper.make_tensor(f"t{kind}", kind, (2, 3), stored, raw=raw))
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with closing(open_source(tmp_path)) as source:
        for tensor in tensors:
            expected = numpy_helper.to_array(tensor)
            np.testing.assert_array_equal(source.read(tensor.name).astype(np.float64), expected.astype(np.float64))
            assert source.tensors[tensor.name].shape == (2, 3)


# ------------------------------------------------------------------------------------------------ formulas
def decoded(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray | onnx.TensorProto], folder: Path) -> np.ndarray:
    """The first weight of a graph as it is decoded here; packed rows of it, if there are any, are the same."""
    tensors = [x if isinstance(x, TensorProto) else numpy_helper.from_array(x, name) for name, x in arrays.items()]
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with closing(OnnxSource(folder / "model.onnx")) as source:
        use = next(iter(uses(source.graph)))
        return checked(use.expr, {leaf: source.read(leaf) for leaf in use.expr.leaves()})


def checked(expr: Expr, values: dict[str, np.ndarray]) -> np.ndarray:
    """The values of an expression, which packed rows must give too, whichever axis they are numbered by."""
    dense = expr.value(values)
    for rows in (0, 1) if dense.ndim == 2 else ():
        for one, expected in ((expr, dense), (transposed(expr), dense.T)):
            if (packed := one.packed(values, rows)) is not None:
                np.testing.assert_array_equal(np.asarray(packed.dense()), expected)
    return dense


def run(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray | onnx.TensorProto], x: np.ndarray) -> np.ndarray:
    """What onnxruntime gives for an input x; products are summed in float32."""
    tensors = [v if isinstance(v, TensorProto) else numpy_helper.from_array(v, name) for name, v in arrays.items()]
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    ends = [helper.make_tensor_value_info("x", kind, x.shape)], [helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])


@pytest.mark.parametrize("zeros", ["none", "bytes", "floats"])
@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (4, 40), (8, 64), (2, 64)])
def test_blocks_of_few_bits_against_onnxruntime(tmp_path: Path, bits: int, columns: int, zeros: str):
    rows, block = 6, 16
    count = -(-columns // block)
    if bits == 8 and zeros == "floats":
        pytest.skip("onnxruntime has no 8 bits with zero points that are floats")
    arrays: dict[str, Any] = {
        "w": R.integers(0, 256, (rows, count, block * bits // 8)).astype(np.uint8),
        "s": R.uniform(0.1, 1, (rows, count)).astype(np.float32),
    }
    if zeros == "bytes":
        arrays["z"] = R.integers(0, 256, (rows, -(-count * bits // 8))).astype(np.uint8)
    elif zeros == "floats":
        arrays["z"] = R.uniform(0, 2**bits, (rows, count)).astype(np.float32)
    attributes: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], "/q_proj/MatMul", domain=MICROSOFT, **attributes)
    ours = decoded([node], arrays, tmp_path)
    # a unit vector picks a column: one product, no sum, no rounding but of the weight itself
    np.testing.assert_array_equal(ours.T, run([node], arrays, np.eye(columns, dtype=np.float32)))


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("scales", ["one", "axis", "blocks"])
def test_linear_quantisation_against_onnxruntime(tmp_path: Path, kind: int, scales: str):
    shape, block = (8, 6), 4
    low, high = {3: (-128, 128), 2: (0, 256), 22: (-8, 8), 21: (0, 16)}[kind]
    sizes = {"one": (), "axis": (6,), "blocks": (2, 6)}[scales]
    attributes = {"one": {}, "axis": {"axis": 1}, "blocks": {"axis": 0, "block_size": block}}[scales]

    def integers(name: str, size: tuple[int, ...]) -> onnx.TensorProto:
        values = R.integers(low, high, size).astype(helper.tensor_dtype_to_np_dtype(kind))
        return numpy_helper.from_array(np.asarray(values), name)

    arrays = {"q": integers("q", shape), "s": R.uniform(0.1, 1, sizes).astype(np.float32), "z": integers("z", sizes)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], **attributes),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    np.testing.assert_array_equal(decoded(nodes, arrays, tmp_path), run(nodes, arrays, np.zeros(shape, np.float32)))


@pytest.mark.parametrize("zeros", [False, True])
def test_a_table_in_blocks_against_onnxruntime(tmp_path: Path, zeros: bool):
    arrays: dict[str, Any] = {
        "q": R.integers(0, 256, (10, 16)).astype(np.uint8),
        "s": R.uniform(0.1, 1, (10, 2)).astype(np.float32),
    }
    names = ["q", "x", "s"]
    if zeros:
        arrays["z"] = R.integers(0, 256, (10, 1)).astype(np.uint8)
        names.append("z")
    attributes: dict[str, Any] = {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    node = helper.make_node("GatherBlockQuantized", names, ["y"], "/embed/Gather", domain=MICROSOFT, **attributes)
    ours = decoded([node], arrays, tmp_path)
    np.testing.assert_array_equal(ours, run([node], arrays, np.arange(10)))


def test_columns_in_groups_of_any_order(tmp_path: Path):
    group = R.permutation(np.arange(32) // 16).astype(np.int32)
    q, s = R.integers(0, 16, (3, 32)), R.uniform(0.1, 1, (3, 2)).astype(np.float32)
    packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8).reshape(3, 2, 8)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s", "", "g"], ["y"], domain=MICROSOFT, K=32, N=3, bits=4, block_size=16
    )
    ours = decoded([node], {"w": packed, "s": s, "g": group}, tmp_path)
    np.testing.assert_array_equal(ours, (q - 8).astype(np.float32) * s[:, group])


def test_integer_products_and_their_scales(tmp_path: Path):
    """DynamicQuantizeLinear, MatMulInteger, and the scale where the sums become floats; zero points a column."""
    q, zero = R.integers(0, 256, (5, 4)).astype(np.uint8), R.integers(0, 256, 4).astype(np.uint8)
    scale = R.uniform(0.1, 1, 4).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("Mul", ["xs", "s"], ["both"]),
        helper.make_node("MatMulInteger", ["xq", "q", "xz", "z"], ["sums"], "/q_proj/MatMul"),
        helper.make_node("Cast", ["sums"], ["floats"], to=1),
        helper.make_node("Mul", ["floats", "both"], ["y"]),
    ]
    arrays: dict[str, Any] = {"q": q, "z": zero, "s": scale}
    with pytest.raises(ValueError, match=r"'/q_proj/MatMul' .MatMulInteger.: nothing behind it multiplies"):
        decoded(nodes[2:3], arrays, tmp_path)
    # the products come after the scales, which the walk over the uses names first
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(x, name) for name, x in arrays.items()])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with closing(OnnxSource(tmp_path / "model.onnx")) as source:
        (use,) = (use for use in uses(source.graph) if use.matrix)
        ours = checked(use.expr, {leaf: source.read(leaf) for leaf in use.expr.leaves()})
    expected = (q.astype(np.int32) - zero).astype(np.float32) * scale
    np.testing.assert_array_equal(ours.T, expected)


W, V, B = (R.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (3,), (3,)))  # [in, out], two vectors
Q, Z, S = R.integers(0, 256, (4, 3)).astype(np.uint8), np.uint8(9), np.float32(0.3)
DENSE = (Q.astype(np.int32) - 9).astype(np.float32) * S
SUMS = R.integers(-9, 9, 3).astype(np.int32)
ARRAYS = {"w": W, "v": V, "b": B, "q": Q, "z": np.asarray(Z), "s": np.asarray(S), "sums": SUMS, "wt": W.T, "qt": Q.T}
MS = {"domain": MICROSOFT}
OPERATORS: dict[str, tuple[list[str], dict[str, Any], dict[str, np.ndarray]]] = {
    "Attention": (["x", "w", "b"], MS, {"weight": W.T, "bias": B}),
    "BiasGelu": (["x", "b"], MS, {"bias": B}),
    "Conv": (["x", "w", "b"], {}, {"weight": W, "bias": B}),
    "CausalConvWithState": (["x", "w", "b"], MS, {"weight": W, "bias": B}),
    "DynamicQuantizeMatMul": (["x", "q", "s", "z", "b"], MS, {"weight": DENSE.T, "bias": B}),
    "FusedGemm": (["x", "wt", "b"], MS | {"transB": 1}, {"weight": W.T, "bias": B}),
    "FusedMatMul": (["x", "wt"], MS | {"transB": 1}, {"weight": W.T}),
    "Gemm": (["x", "w", "b"], {}, {"weight": W.T, "bias": B}),
    "GroupQueryAttention": (
        [*"xxx", *[""] * 8, "v", "", "", "v", "b"],
        MS,
        {"sinks": V, "q_norm.weight": V, "k_norm.weight": B},
    ),
    "LayerNormalization": (["x", "v", "b"], {}, {"weight": V, "bias": B}),
    "MatMulIntegerToFloat": (["x", "q", "xs", "s", "xz", "z", "b"], MS, {"weight": DENSE.T, "bias": B}),
    "QGemm": (
        ["x", "s", "xz", "qt", "s", "z", "sums"],
        MS | {"transB": 1},
        {"weight": DENSE.T, "bias": SUMS.astype(np.float32) * (S * S)},
    ),
    "QLinearMatMul": (["x", "xs", "xz", "q", "s", "z", "ys", "yz"], {}, {"weight": DENSE.T}),
    "RMSNormalization": (["x", "v"], {}, {"weight": V}),
    "SkipLayerNormalization": (["x", "y", "v", "b", "b"], MS, {"weight": V, "bias": B, "added": B}),
    "SkipSimplifiedLayerNormalization": (["x", "y", "v", "b"], MS, {"weight": V, "added": B}),
}


@pytest.mark.parametrize("op", OPERATORS)
def test_operators_and_their_weights(tmp_path: Path, op: str):
    inputs, attributes, expected = OPERATORS[op]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in ARRAYS.items()]
    graph = helper.make_graph([helper.make_node(op, inputs, ["out"], "/m/op", **attributes)], "g", [], [], tensors)
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with closing(OnnxSource(tmp_path / "model.onnx")) as source:
        found = {
            use.role: checked(use.expr, {leaf: source.read(leaf) for leaf in use.expr.leaves()})
            for use in uses(source.graph)
        }
    assert sorted(found) == sorted(expected)
    for role, values in expected.items():
        np.testing.assert_array_equal(found[role], values, err_msg=role)


# ------------------------------------------------------------------------------------------------ what does not fit
def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace the values of a stored tensor."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def test_rotary_frequencies_of_another_model(golden: Golden, tmp_path: Path):
    config = golden.config | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    with pytest.raises(ValueError, match=r"are rotary frequencies .* the config asks for .* one of the two is wrong"):
        open_checkpoint(save(decoder(golden), tmp_path, config))
    with pytest.raises(ValueError, match=r"cos_cache \[64, 12\] is used by nothing"):
        open_checkpoint(save(genai(golden), tmp_path, config))


def test_an_epsilon_of_another_model(golden: Golden, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has epsilon = 0.001, the config asks for 1e-06; config.json is not"):
        open_checkpoint(save(decoder(golden), tmp_path, golden.config | {"rms_norm_eps": 1e-6}))


def test_heads_of_another_model(golden: Golden, tmp_path: Path):
    config = golden.config | {"num_attention_heads": 8, "head_dim": 12, "num_key_value_heads": 4}
    with pytest.raises(ValueError, match=r"has kv_num_heads = 2, the config asks for 4"):
        open_checkpoint(save(genai(golden), tmp_path, config))


def test_a_weight_that_belongs_to_nothing(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3), np.float32) / 3, "extra"))
    model.graph.node.append(helper.make_node("MatMul", ["logits", "extra"], ["more"]))
    with pytest.raises(ValueError, match=r"1 tensors do not fit the config: extra \[4, 3\] is used by nothing"):
        open_checkpoint(save(model, tmp_path, golden.config))


def test_a_config_with_more_layers_than_the_graph(golden: Golden, tmp_path: Path):
    with pytest.raises(ValueError, match=r"model.layers.2.self_attn.q_proj.weight is missing"):
        open_checkpoint(save(decoder(golden), tmp_path, golden.config | {"num_hidden_layers": 3}))


def test_two_tensors_of_one_name(golden: Golden, tmp_path: Path):
    model = decoder(golden)
    (node,) = (node for node in model.graph.node if "/layers.1/self_attn/q_proj/" in node.name)
    node.name = node.name.replace("layers.1", "layers.0")
    with pytest.raises(ValueError, match=r"both seem to be 'model.layers.0.self_attn.q_proj.weight'"):
        open_checkpoint(save(model, tmp_path, golden.config))


def test_the_facade_loads_it(golden: Golden, tmp_path: Path):
    forge = Forge.from_onnx(save(decoder(golden), tmp_path, golden.config), progress=False)
    assert forge.model.format == "onnx"
    assert forge.model.spec == golden.spec


# ------------------------------------------------------------------------------------------------ exporters themselves
FAMILIES = (
    *("bloom", "cohere2", "falcon", "gemma", "gemma2", "gemma3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite"),
    *("lfm2", "llama", "mistral", "modernbert_decoder", "olmo2", "openai_gpt", "opt", "phi", "phi3", "qwen2", "qwen3"),
    *("stablelm", "starcoder2"),
)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", FAMILIES)
def test_what_torch_exports(name: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tiny_checkpoint import write_golden_directory

    golden = read_golden(name)
    source = write_golden_directory(name, tmp_path / "source")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, attn_implementation="eager"
        )

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model.eval()

            def forward(self, input_ids: Any, attention_mask: Any) -> Any:
                return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

        (tmp_path / "onnx").mkdir()
        ids = torch.from_numpy(golden.tokens).long()
        names, free = ["input_ids", "attention_mask"], {0: "rows", 1: "length"}
        options = {"dynamic_axes": dict.fromkeys(names, free), "opset_version": 17, "dynamo": False}
        with torch.no_grad():
            torch.onnx.export(
                Logits(),
                (ids, torch.ones_like(ids)),
                str(tmp_path / "onnx/model.onnx"),
                input_names=names,
                output_names=["logits"],
                **options,
            )
    (tmp_path / "onnx/config.json").write_text(json.dumps(golden.config))
    ours, theirs = parameters(open_checkpoint(tmp_path / "onnx")), dict(flatten(golden.params))
    assert sorted(ours) == sorted(theirs)
    for path, leaf in theirs.items():  # folded, 1 + w is rounded
        np.testing.assert_allclose(ours[path], np.asarray(leaf), rtol=0, atol=3e-7, err_msg=path)
