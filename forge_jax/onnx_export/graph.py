"""An ONNX graph in the making: nodes, constants, and sizes that are known only when the graph runs.

A node that is asked for twice is made once, so what layers have in common (masks, angles) is computed once. Knows
neither JAX's primitives nor models.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
from jax import export
from onnx import helper

Attributes = Mapping[str, Any]
Size = Any
"""A size of an axis: an int, or a symbolic dimension of `jax.export`."""

# as ONNX calls dtypes, which it has known of for longer than it has taken those of ml_dtypes
TYPES = {
    name: name.upper() for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
TYPES |= {"float64": "DOUBLE", "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}
TYPES |= {"float8_e4m3fn": "FLOAT8E4M3FN", "float8_e5m2": "FLOAT8E5M2"}


def element_type(dtype: Any) -> int:
    """ONNX's number of a dtype.

    Raises:
        ValueError: it has none.
    """
    name = np.dtype(dtype).name
    if name not in TYPES:
        raise ValueError(f"ONNX export: numbers of {name} are not written")
    return int(onnx.TensorProto.DataType.Value(TYPES[name]))


def tensor(name: str, shape: Sequence[int], dtype: Any, values: bytes | None = None) -> onnx.TensorProto:
    """An array of a graph, with its values or, without them, to be filled in."""
    out = onnx.TensorProto(name=name, data_type=element_type(dtype), dims=shape)
    if values is not None:
        out.raw_data = values
    return out


class Graph:
    """A graph, or the body of a loop inside `outer`, which sees all that stands before it outside.

    `sizes` are the symbols that sizes are made of, each the name of an int64 [1].
    """

    def __init__(self, outer: "Graph | None" = None) -> None:
        self.outer = outer
        self.root: Graph = self if outer is None else outer.root
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.sizes: dict[str, str] = {}
        self.zeros: set[str] = set()
        """What is known to be 0, or false, all over."""
        self.orders: dict[str, tuple[str, list[int]]] = {}
        """Of an array with its axes in another order: what it was, and the order."""
        self._made: dict[Any, tuple[str, ...]] = {}
        self._constants: dict[Any, str] = {}
        self._count = 0

    # -------------------------------------------------------------------------------------------- nodes
    def name(self, kind: str) -> str:
        """A name that nothing has yet."""
        self.root._count += 1
        return f"{kind}_{self.root._count}"

    def several(
        self, kind: str, inputs: Sequence[str], outputs: int, attributes: Attributes | None = None
    ) -> tuple[str, ...]:
        """Add a node; the names of its outputs."""
        attributes = attributes or {}
        key = None
        if not any(isinstance(value, onnx.GraphProto) for value in attributes.values()):
            key = (kind, tuple(inputs), outputs, repr(sorted(attributes.items())))
            if (known := self._known(key)) is not None:
                return known
        name = self.name(kind)
        names = (name,) if outputs == 1 else tuple(f"{name}_{i}" for i in range(outputs))
        node = helper.make_node(kind, list(inputs), list(names), name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        if key is not None:
            self._made[key] = names
        return names

    def emit(self, kind: str, inputs: Sequence[str], attributes: Attributes | None = None) -> str:
        """Add a node with one output; its name."""
        return self.several(kind, inputs, 1, attributes)[0]

    def _known(self, key: Any) -> tuple[str, ...] | None:
        """The outputs of an equal node, here or outside."""
        if key in self._made:
            return self._made[key]
        return None if self.outer is None else self.outer._known(key)

    # -------------------------------------------------------------------------------------------- constants
    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of an array that is part of the graph."""
        array = np.asarray(value, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        root = self.root
        if key not in root._constants:
            root._constants[key] = name = root.name("constant")
            root.initializers[name] = array
        return root._constants[key]

    def numbers(self, values: Sequence[int]) -> str:
        """An int64 vector."""
        return self.constant(list(values), np.int64)

    # -------------------------------------------------------------------------------------------- sizes
    def shape(self, sizes: Sequence[Size]) -> str:
        """An int64 vector of sizes, of which any may be symbolic."""
        if not any(map(export.is_symbolic_dim, sizes)):
            return self.numbers([int(size) for size in sizes])
        parts = [self.size(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.root.emit("Concat", parts, {"axis": 0})

    def size(self, size: Size) -> str:
        """An int64 [1] of one size."""
        if not export.is_symbolic_dim(size):
            return self.numbers([int(size)])
        return self.root._evaluate(ast.parse(str(size).replace("^", "**"), mode="eval").body)

    def _evaluate(self, node: ast.expr) -> str:
        """The value of a size, written as `jax.export.symbolic_shape` reads it.

        Raises:
            ValueError: the expression has a part that is not known here.
        """
        match node:
            case ast.Constant(int() as value):
                return self.numbers([value])
            case ast.Name(symbol) if symbol in self.sizes:
                return self.sizes[symbol]
            case ast.UnaryOp(ast.USub(), operand):
                return self.emit("Neg", [self._evaluate(operand)])
            case ast.BinOp(base, ast.Pow(), ast.Constant(int() as power)):
                return reduce(lambda a, b: self.emit("Mul", [a, b]), [self._evaluate(base)] * power)
            case ast.BinOp(left, op, right) if type(op) in SUMS:
                return self.emit(SUMS[type(op)], [self._evaluate(left), self._evaluate(right)])
            case ast.Call(ast.Name(function), [left, right]) if function in CALLS:
                return CALLS[function](self, self._evaluate(left), self._evaluate(right))
        raise ValueError(f"ONNX export: the size {ast.unparse(node)} has a part that is not written")


def floor_division(graph: Graph, a: str, b: str) -> str:
    """a // b, rounded down as in Python; ONNX's Div rounds towards 0."""
    whole = graph.emit("Sub", [a, graph.emit("Mod", [a, b])])
    return graph.emit("Div", [whole, b])


SUMS: Mapping[type, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
CALLS: Mapping[str, Callable[[Graph, str, str], str]] = {
    "floordiv": floor_division,
    "mod": lambda graph, a, b: graph.emit("Mod", [a, b]),
    "max": lambda graph, a, b: graph.emit("Max", [a, b]),
    "min": lambda graph, a, b: graph.emit("Min", [a, b]),
}
