"""Quantised operators of ONNX graphs: what is decoded, against onnxruntime running the operator alone."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import MICROSOFT

from converters.onnx.graph import Expr, transposed
from converters.onnx.source import OnnxSource
from converters.onnx.uses import uses

R = np.random.default_rng(5)


def decoded(nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray | onnx.TensorProto], folder: Path) -> np.ndarray:
    """The first weight of a graph as it is decoded here; packed rows of it, if there are any, are the same."""
    tensors = [x if isinstance(x, TensorProto) else numpy_helper.from_array(x, name) for name, x in arrays.items()]
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with closing(OnnxSource(folder / "model.onnx")) as source:
        use = next(iter(uses(source.graph)))
        return checked(use.expr, {leaf: source.read(leaf) for leaf in use.expr.leaves()})


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """Every test draws the same numbers, whichever were run before it."""
    R.bit_generator.state = np.random.default_rng(5).bit_generator.state


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


UNIT = {"activation_type": "swiglu", "swiglu_fusion": 1, "k": 2, "normalize_routing_weights": 1}
MATRICES = {"gate_up": (64, 64), "down": (64, 32)}  # of experts of width 32 in a stream of 64


def experts(bits: int, block: int, zeros: bool) -> dict[str, np.ndarray]:
    """The codes, scales and zero points of four quantised experts, and logits of a router for five tokens."""
    arrays = {"router": R.normal(size=(5, 4)).astype(np.float32)}
    for name, (rows, columns) in MATRICES.items():
        shape = (4, rows, columns // block) if block else (4, rows)
        packed = (*shape[:-1], -(-shape[-1] * bits // 8))
        arrays[name] = R.integers(0, 256, (4, rows, columns * bits // 8)).astype(np.uint8)
        arrays[f"{name}_scale"] = R.uniform(0.01, 0.1, shape).astype(np.float32)
        arrays |= {f"{name}_zero": R.integers(0, 256, packed).astype(np.uint8)} if zeros else {}
    return arrays


def mixture(bits: int, block: int, zeros: bool, **changes: Any) -> onnx.NodeProto:
    """A node of quantised experts."""
    inputs = ["x", "router", "gate_up", "gate_up_scale", "", "down", "down_scale", "", "", "", ""]
    inputs += ["gate_up_zero", "down_zero"] if zeros else []
    sizes = {"expert_weight_bits": bits} | ({"block_size": block} if block else {})
    return helper.make_node("QMoE", inputs, ["y"], domain=MICROSOFT, **UNIT | sizes | changes)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(2, 0), (4, 0), (8, 0), (2, 16), (4, 16), (4, 32)])
def test_quantised_experts_against_onnxruntime(tmp_path: Path, bits: int, block: int, zeros: bool):
    """QMoE gives what MoE gives of the weights that are decoded here."""
    arrays, x = experts(bits, block, zeros), R.normal(size=(5, 64)).astype(np.float32)
    node = mixture(bits, block, zeros)
    tensors = [numpy_helper.from_array(values, name) for name, values in arrays.items()]
    model = helper.make_model(helper.make_graph([node], "g", [], [], tensors))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with closing(OnnxSource(tmp_path / "model.onnx")) as source:
        stored = {name: source.read(name) for name in source.tensors}
        dense = {name: use.expr.value(stored) for name, use in zip(MATRICES, uses(source.graph), strict=True)}
    plain = helper.make_node("MoE", ["x", "router", "gate_up", "", "down"], ["y"], domain=MICROSOFT, **UNIT)
    expected, found = run([node], dict(arrays), x), run([plain], {"router": arrays["router"], **dense}, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swiglu_fusion": 2}, "experts with 'swiglu', swiglu_fusion 2, are not read; expected 'swiglu' and 1"),
        ({"activation_type": "relu"}, "experts with 'relu', swiglu_fusion 1"),
        ({"quant_type": "fp4"}, "experts of 4 bits, quant_type b'fp4', weights_prepacked 0, are not read"),
        ({"weights_prepacked": 1}, "weights_prepacked 1, are not read"),
        ({"expert_weight_bits": 3}, "experts of 3 bits"),
        ({"expert_weight_bits": 8}, r"scales \[4, 64, 4\] do not fit \[4, 64, 32\]"),
        ({"block_size": -1}, r"weights \[4, 64, 32\] U8, scales F32, blocks of -1"),
        ({"block_size": 1 << 62}, r"scales \[4, 64, 4\] do not fit"),
    ],
)
def test_experts_that_are_not_read(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        decoded([mixture(4, 16, False, **changes)], dict(experts(4, 16, False)), tmp_path)
