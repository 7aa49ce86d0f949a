"""ONNX decoders made on the spot: the graph of a llama as exporters write it, in the ways that they name things."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
import onnx
from helpers import Golden
from onnx import TensorProto, helper, numpy_helper

from forge_jax.onnx_export.writing import write_onnx
from forge_jax.params import Tree
from forge_jax.quantization.schemes import Floats, Integers
from forge_jax.quantization.streams import packed as packed_stream
from forge_jax.tensor import QTensor

Names = Literal["scopes", "notes", "none"]
MICROSOFT = "com.microsoft"
SHAPE = (2, 24)


class Builder:
    """Nodes and tensors, one after another. `names`: where the module of a node stands; in "none", nowhere."""

    def __init__(self, names: Names = "scopes") -> None:
        self.names = names
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def tensor(self, values: Any, name: str = "") -> str:
        """A stored tensor; without a name of its own it gets one that says nothing."""
        name = name or f"onnx::Folded_{len(self.tensors)}"
        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def node(self, op: str, inputs: Sequence[str], scope: str = "", domain: str = "", **attributes: Any) -> str:
        """A node; gives the name of its first output."""
        count = len(self.nodes)
        name = f"/m/{scope.replace('.', '/').replace('layers/', 'layers.')}/{op}_{count}" if scope else f"/{op}_{count}"
        node = helper.make_node(op, list(inputs), [f"v{count}"], "", domain=domain, **attributes)
        if self.names == "scopes":
            node.name = name
        elif self.names == "notes":
            node.name = f"node_{op}_{count}"
            node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File x")
            node.metadata_props.add(
                key="pkg.torch.onnx.name_scopes", value=str(["", "m", f"m.{scope}", f"{op}_{count}"])
            )
        self.nodes.append(node)
        return f"v{count}"

    def linear(self, x: str, weight: np.ndarray, scope: str) -> str:
        """x @ W, with the weight folded to [in, out]."""
        return self.node("MatMul", [x, self.tensor(weight.T)], scope)

    def norm(self, x: str, weight: np.ndarray, eps: float, scope: str) -> str:
        """A root-mean-square norm in single steps; its weight keeps its name."""
        square = self.node("Pow", [x, self.tensor(np.float32(2))], scope)
        mean = self.node("ReduceMean", [square], scope, axes=[-1], keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [mean, self.tensor(np.float32(eps))], scope)], scope)
        normed = self.node("Mul", [x, self.node("Reciprocal", [root], scope)], scope)
        return self.node("Mul", [self.tensor(weight, f"m.{scope}.weight"), normed], scope)

    def model(self, logits: str, *, inputs: Sequence[str] = ("input_ids",)) -> onnx.ModelProto:
        """The whole file, of fixed sizes."""
        self.nodes[-1].output[0] = logits
        ids = [helper.make_tensor_value_info(name, TensorProto.INT64, SHAPE) for name in inputs]
        out = [helper.make_tensor_value_info(logits, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "main", ids, out, list(self.tensors.values()))
        versions = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=8)


def angles(config: dict[str, Any], length: int) -> np.ndarray:
    """float32 [length, pairs]: position times frequency."""
    dim, theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
    return np.arange(length)[:, None] * theta ** -(np.arange(0, dim, 2) / dim)[None]


def decoder(golden: Golden, names: Names = "scopes") -> onnx.ModelProto:
    """A llama as torch.onnx writes it: runs, with matrices that have lost their names and all else that keeps them."""
    config, arrays, b = golden.config, golden.arrays, Builder(names)
    heads, kv, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, length = config["rms_norm_eps"], SHAPE[1]
    freq = angles(config, 2)[1].astype(np.float32)
    position = b.tensor(np.arange(length, dtype=np.float32)[:, None])
    angle = b.node("Mul", [position, b.tensor(freq)], "model.rotary_emb")
    angle = b.node("Concat", [angle, angle], "model.rotary_emb", axis=-1)
    turned = {op: b.node(op, [angle], "model.rotary_emb") for op in ("Cos", "Sin")}
    mask = b.tensor(np.where(np.tri(length) > 0, 0, np.finfo(np.float32).min).astype(np.float32))

    def split(x: str, count: int, scope: str) -> str:
        shaped = b.node("Reshape", [x, b.tensor(np.array([0, 0, count, size]))], scope)
        return b.node("Transpose", [shaped], scope, perm=[0, 2, 1, 3])

    def rotated(x: str, scope: str) -> str:
        axis = b.tensor(np.array([3]))
        first, second = (
            b.node("Slice", [x, b.tensor(np.array([i])), b.tensor(np.array([i + size // 2])), axis], scope)
            for i in (0, size // 2)
        )
        half = b.node("Concat", [b.node("Neg", [second], scope), first], scope, axis=-1)
        straight, across = b.node("Mul", [x, turned["Cos"]], scope), b.node("Mul", [half, turned["Sin"]], scope)
        return b.node("Add", [straight, across], scope)

    def repeated(x: str, scope: str) -> str:
        whole = b.node("Unsqueeze", [x, b.tensor(np.array([2]))], scope)
        wide = b.node("Expand", [whole, b.tensor(np.array([1, 1, heads // kv, 1, 1]))], scope)
        return b.node("Reshape", [wide, b.tensor(np.array([0, heads, length, size]))], scope)

    def attention(x: str, scope: str) -> str:
        q, k, v = (b.linear(x, arrays[f"{scope}.{part}_proj.weight"], f"{scope}.{part}_proj") for part in "qkv")
        q, k = rotated(split(q, heads, scope), scope), rotated(split(k, kv, scope), scope)
        k, v = repeated(k, scope), repeated(split(v, kv, scope), scope)
        scores = b.node("MatMul", [q, b.node("Transpose", [k], scope, perm=[0, 1, 3, 2])], scope)
        scores = b.node("Mul", [scores, b.tensor(np.float32(size**-0.5))], scope)
        mixed = b.node("MatMul", [b.node("Softmax", [b.node("Add", [scores, mask], scope)], scope, axis=-1), v], scope)
        flat = b.node("Transpose", [mixed], scope, perm=[0, 2, 1, 3])
        flat = b.node("Reshape", [flat, b.tensor(np.array([0, 0, heads * size]))], scope)
        return b.linear(flat, arrays[f"{scope}.o_proj.weight"], f"{scope}.o_proj")

    def mlp(x: str, scope: str) -> str:
        gate, up = (
            b.linear(x, arrays[f"{scope}.{part}_proj.weight"], f"{scope}.{part}_proj") for part in ("gate", "up")
        )
        act = b.node("Mul", [gate, b.node("Sigmoid", [gate], f"{scope}.act_fn")], f"{scope}.act_fn")
        return b.linear(b.node("Mul", [act, up], scope), arrays[f"{scope}.down_proj.weight"], f"{scope}.down_proj")

    embed = b.tensor(arrays["model.embed_tokens.weight"], "m.model.embed_tokens.weight")
    x = b.node("Gather", [embed, "input_ids"], "model.embed_tokens")
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm, branch, name in (("input", attention, "self_attn"), ("post_attention", mlp, "mlp")):
            scope = f"{layer}.{norm}_layernorm"
            y = branch(b.norm(x, arrays[f"{scope}.weight"], eps, scope), f"{layer}.{name}")
            x = b.node("Add", [x, y], layer)
    x = b.norm(x, arrays["model.norm.weight"], eps, "model.norm")
    b.linear(x, arrays["lm_head.weight"], "lm_head")
    return b.model("logits")


def genai(golden: Golden, *, packed: bool = True, bits: int = 0) -> onnx.ModelProto:
    """A llama as GenAI's builder writes it: one matrix for q, k and v, norms that add, weights of a few bits."""
    config, arrays, b = golden.config, golden.arrays, Builder()
    eps, stream = config["rms_norm_eps"], ""
    cos, sin = (
        b.tensor(function(angles(config, 64)).astype(np.float32), f"{name}_cache")
        for name, function in (("cos", np.cos), ("sin", np.sin))
    )

    def linear(x: str, weight: np.ndarray, path: str) -> str:
        name = path[1:].replace("/", ".") + ".MatMul.weight"
        if not bits:
            b.node("MatMul", [x, b.tensor(weight.T, name)])
        else:
            q, scale = blocked(weight, bits)
            parts = [x, b.tensor(q, f"{name}_Q{bits}"), b.tensor(scale, f"{name}_scales")]
            rows, columns = weight.shape
            b.node("MatMulNBits", parts, "", MICROSOFT, K=columns, N=rows, bits=bits, block_size=16)
        b.nodes[-1].name = f"{path}/MatMul"
        return b.nodes[-1].output[0]

    def norm(x: str, y: str, weight: np.ndarray, path: str) -> str:
        inputs = [x, y] if y else [x]
        inputs.append(b.tensor(weight, path[1:].replace("/", ".") + ".weight"))
        op = "SkipSimplifiedLayerNormalization" if y else "SimplifiedLayerNormalization"
        b.node(op, inputs, "", MICROSOFT if y else "", epsilon=eps)
        b.nodes[-1].name = f"{path}/LayerNorm"
        return b.nodes[-1].output[0]

    x = b.node("Gather", [b.tensor(arrays["model.embed_tokens.weight"], "model.embed_tokens.weight"), "input_ids"])
    b.nodes[-1].name = "/model/embed_tokens/Gather"
    for i in range(config["num_hidden_layers"]):
        theirs, path = f"model.layers.{i}", f"/model/layers.{i}"
        x = norm(x, stream, arrays[f"{theirs}.input_layernorm.weight"], f"{path}/input_layernorm")
        weights = [arrays[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        if packed:
            qkv = [linear(x, np.concatenate(weights), f"{path}/attn/qkv_proj"), "", ""]
        else:
            qkv = [linear(x, w, f"{path}/attn/{part}_proj") for part, w in zip("qkv", weights, strict=True)]
        inputs = [*qkv, "", "", "lengths", "total", cos, sin]
        sizes = {"num_heads": config["num_attention_heads"], "kv_num_heads": config["num_key_value_heads"]}
        x = b.node("GroupQueryAttention", inputs, "", MICROSOFT, do_rotary=1, **sizes)
        stream = linear(x, arrays[f"{theirs}.self_attn.o_proj.weight"], f"{path}/attn/o_proj")
        after = f"{path}/post_attention_layernorm"
        x = norm(x, stream, arrays[f"{theirs}.post_attention_layernorm.weight"], after)
        gate, up = (linear(x, arrays[f"{theirs}.mlp.{p}_proj.weight"], f"{path}/mlp/{p}_proj") for p in ("gate", "up"))
        x = b.node("Mul", [gate, b.node("Sigmoid", [gate])])
        for node in b.nodes[-2:]:
            node.name = f"{path}/mlp/act_fn/{node.op_type}"
        stream = linear(b.node("Mul", [x, up]), arrays[f"{theirs}.mlp.down_proj.weight"], f"{path}/mlp/down_proj")
    last = f"/model/layers.{config['num_hidden_layers']}/final_norm_layernorm"
    linear(norm(x, stream, arrays["model.norm.weight"], last), arrays["lm_head.weight"], "/lm_head")
    return b.model("logits")


def blocked(weight: np.ndarray, bits: int, block: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [N, K] as MatMulNBits has it: bytes [N, blocks, bytes of one] and scales, codes around the middle."""
    rows, columns = weight.shape
    count = -(-columns // block)
    padded = np.pad(weight, ((0, 0), (0, count * block - columns))).reshape(rows, count, block)
    half = 1 << bits - 1
    scale = (np.abs(padded).max(-1) / (half - 1)).astype(np.float32)
    codes = (np.round(padded / scale[..., None]) + half).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scale


def save(model: onnx.ModelProto, folder: Path, config: dict[str, Any] | None = None, *, beside: bool = False) -> Path:
    """Write a model, its config, and its tensors into a file beside if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0} if beside else {}
    onnx.save(model, folder / "model.onnx", **options)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


# ------------------------------------------------------------------------------------------------ our own
def export(golden: Golden, path: Path, dtype: str = "float32", **options: int) -> Path:
    """Write a golden as a graph of our own."""
    options = {"opset": 18} | options
    write_onnx(path, golden.spec, golden.params, dtype=np.dtype(dtype), metadata={"config": golden.config}, **options)
    return path


def quantised(golden: Golden) -> Tree:
    """The parameters with one matrix in int8, one in int4 with groups, one in float8."""
    params = jax.tree.map(np.asarray, golden.params)
    first = params["layers"]["0"]
    rows = np.moveaxis(first["attention"]["q"], 0, -1)
    scale = np.abs(rows).max(-1, keepdims=True) / 127
    eight = QTensor({"codes": np.round(rows / scale).astype(np.int8), "scale": scale}, Integers(bits=8), trailing=2)
    rows = first["mlp"]["gate"].T
    groups = rows.reshape(len(rows), -1, 16)
    scale = np.abs(groups).max(-1) / 7
    codes = np.round(groups / scale[..., None] + 8).astype(np.uint8).reshape(rows.shape)
    four = QTensor({"codes": packed_stream(codes, 4), "scale": scale}, Integers(bits=4, middle=8, group=16), trailing=1)
    codes = (first["mlp"]["down"].T * 64).astype(ml_dtypes.float8_e4m3fn)
    small = QTensor({"codes": codes, "scale": np.full((len(codes), 1), 1 / 64, np.float32)}, Floats("fp8"), trailing=1)
    new = {"attention": first["attention"] | {"q": eight}, "mlp": first["mlp"] | {"gate": four, "down": small}}
    return params | {"layers": params["layers"] | {"0": first | new}}
