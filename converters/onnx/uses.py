"""Where the nodes of a graph use stored tensors as the weights of a layer: which operand, in which role, laid out how.

Knows operators, no model. Matrices are given as [out, in], as PyTorch keeps those of its linear layers, whatever way
they are stored; quantised ones are expressions that give floats.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converters.onnx.data import FLOATS
from converters.onnx.formulas import experts_nbits, matmul_nbits
from converters.onnx.graph import Expr, Graph, gather_blocks_expr, integer, linear_expr, transposed
from converters.onnx.messages import Node
from converters.onnx.packing import pack_nbits
from forge_jax.tensor import QTensor

MICROSOFT = "com.microsoft."
MOST_USERS = 16  # of a product of integers that are looked at


@dataclass(frozen=True)
class Use:
    """One operand of one node. `role` is what a module calls it: "weight" or "bias"; a matrix is [out, in]."""

    node: Node
    index: int
    role: str
    expr: Expr
    matrix: bool = False

    @property
    def value(self) -> str:
        """The name of the operand."""
        return self.node.inputs[self.index]


def uses(graph: Graph) -> Iterator[Use]:
    """Every use of a stored tensor of more than one number, in the order of the graph.

    Raises:
        ValueError: operands that do not fit together.
    """
    for node in graph.nodes:
        for use in OPERANDS[node.op](graph, node) if node.op in OPERANDS else ():
            if np.prod(use.expr.shape, dtype=float) > 1:
                yield use


def given(graph: Graph, node: Node, index: int) -> Expr | None:
    """The operand of a node at an index, if it is made of stored tensors."""
    return graph.constant(node.inputs[index]) if index < len(node.inputs) and node.inputs[index] else None


def named(roles: Mapping[str, int]) -> Callable[[Graph, Node], Iterator[Use]]:
    """An operator whose weights are at fixed places, laid out as PyTorch has them."""

    def found(graph: Graph, node: Node) -> Iterator[Use]:
        for role, index in roles.items():
            if (expr := given(graph, node, index)) is not None:
                yield Use(node, index, role, expr)

    return found


def either(role: str) -> Callable[[Graph, Node], Iterator[Use]]:
    """An operator of two operands, of which one is a weight and the other flows."""

    def found(graph: Graph, node: Node) -> Iterator[Use]:
        known = [(i, expr) for i in range(2) if (expr := given(graph, node, i)) is not None]
        if len(known) == 1 and len(node.inputs) == 2:
            index, expr = known[0]
            yield Use(node, index, role, expr)

    return found


def matrix(node: Node, index: int, expr: Expr | None, *, inputs_first: bool = True) -> Iterator[Use]:
    """The matrix of a linear layer, from [in, out] or from [out, in]."""
    if expr is not None and len(expr.shape) >= 2:
        yield Use(node, index, "weight", transposed(expr) if inputs_first else expr, matrix=True)


def matmul(graph: Graph, node: Node) -> Iterator[Use]:
    """x @ W; FusedMatMul may say that W is transposed."""
    if len(node.inputs) == 2 and given(graph, node, 0) is None:
        across = node.op != "MatMul" and integer(graph.attributes(node).get("transB"))
        yield from matrix(node, 1, given(graph, node, 1), inputs_first=not across)


def gemm(graph: Graph, node: Node) -> Iterator[Use]:
    """alpha x @ W + beta b.

    Raises:
        ValueError: a factor that is not 1.
    """
    attributes = graph.attributes(node)
    if given(graph, node, 0) is not None:
        return
    for index, factor in ((1, "alpha"), (2, "beta")):
        if given(graph, node, index) is not None and attributes.get(factor, 1.0) != 1.0:
            raise graph.error(node, f"{factor} is {attributes[factor]}; expected 1")
    yield from matrix(node, 1, given(graph, node, 1), inputs_first=not integer(attributes.get("transB")))
    yield from named({"bias": 2})(graph, node)


def integer_matmul(graph: Graph, node: Node) -> Iterator[Use]:
    """MatMulInteger: the scale of the weight is where its sums become floats again."""
    scale = scale_behind(graph, node)
    q, zero = given(graph, node, 1), given(graph, node, 3)
    if q is not None and len(q.shape) >= 2:
        if scale is None:
            raise graph.error(node, "nothing behind it multiplies by a stored scale; expected Cast and Mul")
        yield from matrix(node, 1, linear_expr(graph, node, q, scale, zero, -1))


def scale_behind(graph: Graph, node: Node) -> Expr | None:
    """The stored factor in Cast(sums) * (scale of the input * scale of the weight)."""
    for cast in graph.users.get(node.outputs[0], [])[:MOST_USERS] if node.outputs else ():
        for mul in graph.users.get(cast.outputs[0], [])[:MOST_USERS] if cast.op == "Cast" and cast.outputs else []:
            if mul.op != "Mul":
                continue
            other = next((value for value in mul.inputs if value != cast.outputs[0]), "")
            inner = graph.maker.get(other)
            choices = inner.inputs if inner is not None and inner.op == "Mul" else (other,)
            for value in choices:
                if (found := graph.constant(value)) is not None:
                    return found
    return None


def quantised(q: int, scale: int, zero: int, bias: int | None = None) -> Callable[[Graph, Node], Iterator[Use]]:
    """An operator that has the weight, its scale and its zero point among its operands."""

    def found(graph: Graph, node: Node) -> Iterator[Use]:
        parts = [given(graph, node, index) for index in (q, scale, zero)]
        if parts[0] is not None and len(parts[0].shape) >= 2:
            yield from matrix(node, q, linear_expr(graph, node, *parts, axis=-1))
        if bias is not None:
            yield from named({"bias": bias})(graph, node)

    return found


def packed_attention(graph: Graph, node: Node) -> Iterator[Use]:
    """Attention with its projection inside: q, k and v in one matrix [in, out], then their bias."""
    yield from matrix(node, 1, given(graph, node, 1))
    yield from named({"bias": 2})(graph, node)


def quantised_gemm(graph: Graph, node: Node) -> Iterator[Use]:
    """QGemm: all of it in integers; its bias has the scale of the sums."""
    across = bool(integer(graph.attributes(node).get("transB")))
    x_scale, q, scale, zero, bias = (given(graph, node, i) for i in (1, 3, 4, 5, 6))
    if q is not None and len(q.shape) == 2:
        yield from matrix(
            node, 3, linear_expr(graph, node, q, scale, zero, 0 if across else 1), inputs_first=not across
        )
    if bias is not None and x_scale is not None and scale is not None and bias.dtype == "I32":
        parts = (bias, x_scale, scale)
        yield Use(node, 6, "bias", Expr(bias.shape, scale.dtype, parts, bias_of_sums, op=node.op))


def bias_of_sums(q: np.ndarray, x_scale: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A bias in int32, in units of the product of both scales."""
    unit = x_scale.reshape(-1) * scale.reshape(-1)
    return (q.astype(np.float32) * unit).astype(scale.dtype).reshape(q.shape)


def nbits(graph: Graph, node: Node) -> Iterator[Use]:
    """MatMulNBits: blocks of a few bits, already [out, in]; then perhaps a bias.

    Raises:
        ValueError: sizes that do not fit the attributes.
    """
    attributes = graph.attributes(node)
    columns, rows, bits, block = (
        integer(attributes.get(key, default)) for key, default in (("K", 0), ("N", 0), ("bits", 4), ("block_size", 0))
    )
    q, scale, zero, group, bias = (given(graph, node, i) for i in range(1, 6))
    if q is None or scale is None:
        raise graph.error(node, "its weight or its scales are not stored")
    if bits not in (2, 4, 8) or block < 1 or block * bits % 8 or rows < 1 or columns < 1:
        raise graph.error(node, f"{bits} bits in blocks of {block}, {rows} by {columns}")
    allowed = ((q, ("U8",)), (scale, FLOATS), (zero, ("U8", *FLOATS)), (group, ("I32", "I64")))
    for part, dtypes in allowed:
        if part is not None and part.dtype not in dtypes:
            raise graph.error(node, f"an operand is {part.dtype}, expected {' or '.join(dtypes)}")
    count = -(-columns // block)
    size = {name: int(np.prod(part.shape, dtype=np.int64)) for name, part in (("q", q), ("scale", scale))}
    if size["q"] != rows * count * block * bits // 8 or q.shape[0] != rows or len(q.shape) != 3:
        raise graph.error(node, f"its weight is {list(q.shape)}, expected {[rows, count, block * bits // 8]}")
    if size["scale"] != rows * count:
        raise graph.error(node, f"it has {size['scale']} scales, expected {rows * count}")
    zeros = rows * (-(-count * bits // 8) if zero is not None and zero.dtype == "U8" else count)
    if zero is not None and np.prod(zero.shape, dtype=float) != zeros:
        raise graph.error(node, f"its zero points are {list(zero.shape)}, expected {zeros} of them")
    if group is not None and np.prod(group.shape, dtype=float) != columns:
        raise graph.error(node, f"its groups are {list(group.shape)}, expected {columns} of them")
    parts = tuple(part for part in (q, scale, zero, group) if part is not None)
    has = zero is not None, group is not None
    apply = partial(nbits_of, has=has, rows=rows, columns=columns, bits=bits)
    pack = partial(packed_nbits, has=has, columns=columns, bits=bits)
    yield Use(node, 1, "weight", Expr((rows, columns), scale.dtype, parts, apply, op=node.op, pack=pack), matrix=True)
    if bias is not None:
        yield Use(node, 5, "bias", bias)


def nbits_of(*parts: np.ndarray, has: tuple[bool, bool], rows: int, columns: int, bits: int) -> np.ndarray:
    """`matmul_nbits` of the operands that are there."""
    return matmul_nbits(parts[0], parts[1], *optional(parts, has), rows=rows, columns=columns, bits=bits)


def packed_nbits(*parts: np.ndarray, has: tuple[bool, bool], columns: int, bits: int, rows: int) -> QTensor | None:
    """`pack_nbits` of the operands that are there."""
    return pack_nbits(parts[0], parts[1], *optional(parts, has), columns=columns, bits=bits, rows=rows)


def optional(parts: Sequence[np.ndarray], has: tuple[bool, bool]) -> Iterator[np.ndarray | None]:
    """Zero points and groups, which may both be missing."""
    rest = iter(parts[2:])
    return (next(rest) if there else None for there in has)


def gather_blocks_use(graph: Graph, node: Node) -> Iterator[Use]:
    """GatherBlockQuantized: an embedding in blocks."""
    parts = tuple(given(graph, node, i) for i in range(4))
    expr = gather_blocks_expr(graph, node, parts)
    if expr is not None:
        yield Use(node, 0, "weight", cut(graph, node, expr))


def cut(graph: Graph, node: Node, table: Expr) -> Expr:
    """The columns of a table that are kept where its last block reaches past them: a Slice of what is looked up."""
    users = graph.users.get(node.outputs[0], []) if node.outputs else []
    if len(users) != 1 or users[0].op != "Slice" or len(users[0].inputs) < 4:
        return table
    begin, end, axes = (graph.integers(name) for name in users[0].inputs[1:4])
    if begin != [0] or axes not in ([-1], [2]) or not end or not 0 < end[0] < table.shape[-1]:
        return table
    apply = partial(columns_of, count=end[0])
    return Expr((*table.shape[:-1], end[0]), table.dtype, (table,), apply, op="cut")


def columns_of(x: np.ndarray, *, count: int) -> np.ndarray:
    """The first columns."""
    return np.ascontiguousarray(x[..., :count])


def looked_up(graph: Graph, node: Node) -> Iterator[Use]:
    """Gather: rows of an embedding, which may be quantised and scaled after the look-up.

    In a graph of fixed sizes the rows of positions are fixed too.
    """
    table = given(graph, node, 0)
    if table is None or len(node.inputs) < 2 or len(table.shape) != 2:
        return
    behind = graph.users.get(node.outputs[0], []) if node.outputs else []
    if table.dtype in ("U8", "I8") and len(behind) == 1 and behind[0].op.endswith("DequantizeLinear"):
        scale, zero = given(graph, behind[0], 1), given(graph, behind[0], 2)
        if scale is not None and np.prod(scale.shape, dtype=float) == 1:
            expr = linear_expr(graph, behind[0], table, scale, zero, 0)
            if expr is not None:
                yield Use(node, 0, "weight", expr)
            return
    yield Use(node, 0, "weight", table)


def check_unit(graph: Graph, node: Node) -> None:
    """Raise ValueError if the experts of a node are not gated units whose rows of gate and of up take turns."""
    attributes = graph.attributes(node)
    unit, fusion = attributes.get("activation_type"), integer(attributes.get("swiglu_fusion", 0))
    if unit != b"swiglu" or fusion != 1:
        said = unit.decode(errors="replace") if isinstance(unit, bytes) else "relu"
        raise graph.error(node, f"experts with {said!r}, swiglu_fusion {fusion}, are not read; expected 'swiglu' and 1")


def mixture(graph: Graph, node: Node) -> Iterator[Use]:
    """MoE: matrices [experts, out, in] and their biases; errors as in `check_unit`."""
    check_unit(graph, node)
    for role, index in {"gate_up_proj": 2, "down_proj": 4}.items():
        yield from named({f"experts.{role}.weight": index, f"experts.{role}.bias": index + 1})(graph, node)


def quantised_mixture(graph: Graph, node: Node) -> Iterator[Use]:
    """QMoE: the same with matrices of a few bits.

    Raises:
        ValueError: as in `check_unit`, or codes that are no integers, or not in the order of the matrix.
    """
    check_unit(graph, node)
    attributes = graph.attributes(node)
    kind, moved = attributes.get("quant_type", b"int"), integer(attributes.get("weights_prepacked", 0))
    bits, block = (integer(attributes.get(key, value)) for key, value in (("expert_weight_bits", 4), ("block_size", 0)))
    if kind != b"int" or moved > 0 or bits not in (2, 4, 8):
        raise graph.error(
            node,
            f"experts of {bits} bits, quant_type {kind!r}, weights_prepacked {moved}, are not read; "
            "expected 2, 4 or 8 bits, 'int' and 0",
        )
    for role, (q, scale, bias, zero) in {"gate_up_proj": (2, 3, 4, 11), "down_proj": (5, 6, 7, 12)}.items():
        parts = [given(graph, node, index) for index in (q, scale, zero)]
        yield Use(node, q, f"experts.{role}.weight", experts_expr(graph, node, parts, block, bits))
        yield from named({f"experts.{role}.bias": bias})(graph, node)


def experts_expr(graph: Graph, node: Node, parts: Sequence[Expr | None], block: int, bits: int) -> Expr:
    """The matrices of all experts, of their codes, scales and zero points.

    Raises:
        ValueError: they are not stored, or do not fit together.
    """
    q, scale, zero = parts
    if q is None or scale is None:
        raise graph.error(node, "its weights or their scales are not stored")
    columns = q.shape[-1] * 8 // bits if len(q.shape) == 3 else 0
    block = block or columns
    if not columns or block < 1 or q.dtype != "U8" or scale.dtype not in FLOATS:
        raise graph.error(node, f"weights {list(q.shape)} {q.dtype}, scales {scale.dtype}, blocks of {block}")
    count, rows, blocks = *q.shape[:2], -(-columns // block)
    whole = (count, rows) if len(scale.shape) == 2 and blocks == 1 else (count, rows, blocks)
    packed = -(-whole[-1] * bits // 8)
    if scale.shape != whole or (zero is not None and (zero.shape != (*whole[:-1], packed) or zero.dtype != "U8")):
        zeros = "" if zero is None else f" and zero points {list(zero.shape)}"
        raise graph.error(node, f"scales {list(scale.shape)}{zeros} do not fit {[count, rows, columns]}")
    apply = partial(experts_nbits, block=block, bits=bits)
    found = tuple(part for part in parts if part is not None)
    return Expr((count, rows, columns), scale.dtype, found, apply, op=node.op)


OPERANDS: Mapping[str, Callable[[Graph, Node], Iterator[Use]]] = {
    "Add": either("bias"),
    "Conv": named({"weight": 1, "bias": 2}),
    "Gather": looked_up,
    "Gemm": gemm,
    "LayerNormalization": named({"weight": 1, "bias": 2}),
    "MatMul": matmul,
    "MatMulInteger": integer_matmul,
    "Mul": either("weight"),
    "QLinearMatMul": quantised(3, 4, 5),
    "RMSNormalization": named({"weight": 1}),
    "SimplifiedLayerNormalization": named({"weight": 1}),
    f"{MICROSOFT}CausalConvWithState": named({"weight": 1, "bias": 2}),
    f"{MICROSOFT}Attention": packed_attention,
    f"{MICROSOFT}BiasGelu": named({"bias": 1}),
    f"{MICROSOFT}DynamicQuantizeMatMul": quantised(1, 2, 3, 4),
    f"{MICROSOFT}FastGelu": named({"bias": 1}),
    f"{MICROSOFT}FusedGemm": gemm,
    f"{MICROSOFT}FusedMatMul": matmul,
    f"{MICROSOFT}GatherBlockQuantized": gather_blocks_use,
    f"{MICROSOFT}GroupQueryAttention": named({"sinks": 11, "q_norm.weight": 14, "k_norm.weight": 15}),
    f"{MICROSOFT}MatMulIntegerToFloat": quantised(1, 3, 5, 6),
    f"{MICROSOFT}MatMulNBits": nbits,
    f"{MICROSOFT}MoE": mixture,
    f"{MICROSOFT}QGemm": quantised_gemm,
    f"{MICROSOFT}QMoE": quantised_mixture,
    f"{MICROSOFT}SimplifiedLayerNormalization": named({"weight": 1}),
    f"{MICROSOFT}SkipLayerNormalization": named({"weight": 2, "bias": 3, "added": 4}),
    f"{MICROSOFT}SkipSimplifiedLayerNormalization": named({"weight": 2, "added": 3}),
}
"""Operators with weights. What a norm adds before it ("added") is a bias of another module, known by its own name."""
