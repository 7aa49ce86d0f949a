"""A graph as data flows through it: who makes a value, who uses it, and which values are made of stored tensors only.

Knows operators, no model. A value that is made of stored tensors alone is an `Expr`: where its parts are, and how
they become it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from converters.files import quote
from converters.onnx.data import FLOATS, INTEGERS, KINDS, Place, Store, decode
from converters.onnx.formulas import gather_blocks, linear
from converters.onnx.messages import MOST_AXES, GraphMessage, Node, Tensor, Value, read_attribute, read_pair_of
from converters.onnx.packing import pack_linear
from forge_jax.tensor import QTensor

Shape = tuple[int, ...]

DEEPEST = 24  # operations between stored tensors and a value of theirs
MOST_STEPS = 64
SIZES = ("Shape", "Size")  # what comes of these are no values of the model
SMALL = 64  # numbers of a tensor that says a shape or an axis


@dataclass(frozen=True)
class Expr:
    """A value made of stored tensors: what `apply` makes of the values of `inputs`, or the tensor `leaf` itself."""

    shape: Shape
    dtype: str
    inputs: tuple["Expr", ...] = ()
    apply: Callable[..., np.ndarray] | None = None
    leaf: str = ""
    op: str = ""
    pack: Callable[..., QTensor | None] | None = None

    def leaves(self) -> list[str]:
        """The stored tensors, each once."""
        if self.leaf:
            return [self.leaf]
        return list(dict.fromkeys(leaf for part in self.inputs for leaf in part.leaves()))

    def main(self) -> "Expr":
        """The stored tensor that holds the most numbers: the weight, beside its scales."""
        return self if self.leaf else max(self.inputs, key=lambda part: np.prod(part.shape, dtype=float)).main()

    def value(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """The values, from those of the stored tensors."""
        if self.apply is None:
            return stored[self.leaf]
        return self.apply(*(part.value(stored) for part in self.inputs))

    def packed(self, stored: Mapping[str, np.ndarray], rows: int) -> QTensor | None:
        """A quantised matrix as packed rows, numbered by its axis `rows`; None if it is none, or not of such rows."""
        if self.op == "swap":
            inner = self.inputs[0].packed(stored, 1 - rows)
            return None if inner is None else replace(inner, trailing=rows)
        if self.pack is None or len(self.shape) != 2:
            return None
        return self.pack(*(part.value(stored) for part in self.inputs), rows=rows)

    def size(self) -> int:
        """How many operations it takes."""
        return 1 + sum(part.size() for part in self.inputs)


def transposed(expr: Expr) -> Expr:
    """The last two axes the other way round; the transpose of a transpose is the matrix itself."""
    if expr.op == "swap":
        return expr.inputs[0]
    shape = (*expr.shape[:-2], expr.shape[-1], expr.shape[-2])
    return Expr(shape, expr.dtype, (expr,), swap, op="swap")


def swap(x: np.ndarray) -> np.ndarray:
    """The last two axes the other way round."""
    return np.ascontiguousarray(x.swapaxes(-1, -2))


class Graph:
    """A graph: its nodes, its tensors (those of Constant nodes too), and the flow between them.

    Raises:
        ValueError: a value is made twice.
    """

    def __init__(self, message: GraphMessage, store: Store) -> None:
        self.store, self.path = store, store.path
        self.nodes = message.nodes
        self.inputs, self.outputs = message.inputs, message.outputs
        self.tensors: dict[str, Tensor] = {}
        self.maker: dict[str, Node] = {}
        self.users: dict[str, list[Node]] = {}
        self._known: dict[str, Expr | None] = {}
        self._places: dict[str, Place] = {}
        for tensor in message.tensors:
            self.add(tensor.name, tensor)
        for node in self.nodes:
            for value in node.outputs:
                if value in self.maker or value in self.tensors:
                    raise ValueError(f"{self.path}: {quote(value)} is made twice; the graph is damaged")
                if value:
                    self.maker[value] = node
            for value in dict.fromkeys(node.inputs):
                if value:
                    self.users.setdefault(value, []).append(node)
            if node.op == "Constant" and node.outputs:
                value = self.attributes(node).get("value")
                if isinstance(value, Tensor):
                    self.add(node.outputs[0], value)

    def add(self, name: str, tensor: Tensor) -> None:
        """Know a stored tensor.

        Raises:
            ValueError: there is another of its name.
        """
        if not name or name in self.tensors:
            raise ValueError(f"{self.path}: {quote(name)} is the name of two tensors, or of none")
        self.tensors[name] = tensor

    def attributes(self, node: Node) -> dict[str, Value]:
        """The attributes of a node."""
        return dict(read_attribute(self.store.window, place) for place in node.attributes)

    def note(self, node: Node, key: str) -> str:
        """What the exporter noted about a node under a key; empty where there is nothing."""
        for place in node.notes:
            if found := read_pair_of(self.store.window, place, key):
                return found
        return ""

    def place(self, name: str) -> Place:
        """Where a stored tensor is; errors as in `Store.locate`."""
        if name not in self._places:
            self._places[name] = self.store.locate(self.tensors[name])
        return self._places[name]

    def read(self, name: str) -> np.ndarray:
        """The values of a stored tensor."""
        return self.decode(name, self.store.raw(self.place(name)))

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of a stored tensor from its bytes."""
        where = f"{self.path}: tensor {quote(name)}"
        return decode(raw, self.place(name), self.tensors[name].shape, where)

    def integers(self, name: str) -> list[int] | None:
        """The numbers of a small stored tensor; None if it is none."""
        if name not in self.tensors or self.tensors[name].kind not in (6, 7):
            return None
        if np.prod(self.tensors[name].shape, dtype=float) > SMALL:
            return None
        return [int(x) for x in self.read(name).reshape(-1)]

    def constant(self, name: str, depth: int = DEEPEST) -> Expr | None:
        """A value as made of stored tensors; None if it is not, or by operations that no weight goes through.

        Raises:
            ValueError: an operation whose inputs do not fit.
        """
        if name not in self._known:
            found = self.build(name, depth) if depth else None
            self._known[name] = found if found is not None and found.size() <= MOST_STEPS else None
        return self._known[name]

    def build(self, name: str, depth: int) -> Expr | None:
        """What `constant` remembers."""
        if name in self.tensors:
            tensor = self.tensors[name]
            return Expr(tensor.shape, KINDS[tensor.kind].name, leaf=name) if tensor.kind in KINDS else None
        node = self.maker.get(name)
        if node is None or node.op not in BUILDERS or node.outputs[0] != name:
            return None
        inputs = tuple(self.constant(value, depth - 1) if value else None for value in node.inputs)
        if not inputs or inputs[0] is None:
            return None
        return BUILDERS[node.op](self, node, inputs)

    def error(self, node: Node, what: str) -> ValueError:
        """An error about a node."""
        return ValueError(f"{self.path}: node {quote(node.name)} ({node.op[:60]}): {what}")


Inputs = tuple[Expr | None, ...]


def same(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """The value itself."""
    return inputs[0]


def cast(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """Another type of floats."""
    found, to = inputs[0], KINDS.get(integer(graph.attributes(node).get("to")))
    if found is None or to is None or to.name not in FLOATS or found.dtype not in FLOATS:
        return None
    return found if to.name == found.dtype else Expr(found.shape, to.name, (found,), partial(as_type, dtype=to.dtype))


def as_type(x: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
    """The values in another type."""
    return x.astype(dtype)


def transpose(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """Axes in another order."""
    x, order = inputs[0], graph.attributes(node).get("perm")
    if x is None:
        return None
    rank = len(x.shape)
    order = list(range(rank))[::-1] if order is None else order
    if not isinstance(order, list) or sorted(order) != list(range(rank)):
        raise graph.error(node, f"the order {order} is none of {rank} axes")
    if rank >= 2 and order == [*range(rank - 2), rank - 1, rank - 2]:
        return transposed(x)
    return Expr(tuple(x.shape[i] for i in order), x.dtype, (x,), partial(np.transpose, axes=order))


def reshape(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """Another shape with as many values."""
    x, sizes = inputs[0], graph.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or sizes is None:
        return None
    count = int(np.prod(x.shape, dtype=np.int64))
    sizes = [x.shape[i] if size == 0 and i < len(x.shape) else size for i, size in enumerate(sizes)]
    rest = int(np.prod([size for size in sizes if size != -1], dtype=np.int64))
    shape = tuple(count // max(rest, 1) if size == -1 else size for size in sizes)
    if (
        len(shape) > MOST_AXES
        or any(size < 0 for size in shape)
        or np.prod(shape, dtype=float) != count
        or sizes.count(-1) > 1
    ):
        raise graph.error(node, f"{list(x.shape)} does not become {sizes}")
    return Expr(shape, x.dtype, (x,), partial(np.reshape, shape=shape))


def axes_of(graph: Graph, node: Node) -> list[int] | None:
    """The axes of Squeeze and Unsqueeze: an input since opset 13, an attribute before; None for any of size 1."""
    given = graph.attributes(node).get("axes")
    if isinstance(given, list):
        return given
    return graph.integers(node.inputs[1]) if len(node.inputs) > 1 else None


def squeeze(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """Without axes of size 1."""
    x, axes = inputs[0], axes_of(graph, node)
    if x is None:
        return None
    gone = {i % len(x.shape) for i in axes} if axes is not None and x.shape else None
    shape = tuple(s for i, s in enumerate(x.shape) if (i not in gone if gone is not None else s != 1))
    if np.prod(shape, dtype=float) != np.prod(x.shape, dtype=float):
        raise graph.error(node, f"the axes {axes} of {list(x.shape)} are not of size 1")
    return Expr(shape, x.dtype, (x,), partial(np.reshape, shape=shape))


def unsqueeze(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """With more axes of size 1."""
    x, axes = inputs[0], axes_of(graph, node)
    if x is None or axes is None:
        return None
    rank = len(x.shape) + len(axes)
    new, old = {i % rank for i in axes}, iter(x.shape)
    if len(new) != len(axes) or rank > MOST_AXES:
        raise graph.error(node, f"axes {axes} are not different ones")
    shape = tuple(1 if i in new else next(old) for i in range(rank))
    return Expr(shape, x.dtype, (x,), partial(np.reshape, shape=shape))


def arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Graph, Node, Inputs], Expr | None]:
    """A weight and one number; two weights are no weight."""

    def built(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
        known = [x for x in inputs if x is not None]
        if len(known) != 2 or any(x.dtype not in FLOATS for x in known):
            return None
        large = max(known, key=lambda x: int(np.prod(x.shape, dtype=np.int64)))
        if sum(int(np.prod(x.shape, dtype=np.int64)) != 1 for x in known) > 1:
            return None
        apply = partial(elementwise, function=function, shape=large.shape)
        return Expr(large.shape, large.dtype, tuple(known), apply, op="number")

    return built


def elementwise(a: np.ndarray, b: np.ndarray, *, function: Callable[[Any, Any], Any], shape: Shape) -> np.ndarray:
    """An operation of two arrays of which one holds one number."""
    with np.errstate(all="ignore"):  # what is not finite is found by those who load
        return np.reshape(function(a, b), shape)


def dequantize(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """DequantizeLinear, of a weight."""
    given = graph.attributes(node)
    axis, block = integer(given.get("axis", 1)), integer(given.get("block_size", 0))
    if len(inputs) < 2 or (len(inputs) > 2 and node.inputs[2] and inputs[2] is None):
        return None
    return linear_expr(graph, node, inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None, axis, block)


def linear_expr(
    graph: Graph, node: Node, q: Expr | None, scale: Expr | None, zero: Expr | None, axis: int, block: int = 0
) -> Expr | None:
    """(q - zero) * scale as an expression.

    Raises:
        ValueError: the shapes do not fit.
    """
    if q is None or scale is None or q.dtype not in INTEGERS or scale.dtype not in FLOATS:
        return None
    if zero is not None and zero.dtype not in INTEGERS:
        raise graph.error(node, f"zero points are {zero.dtype}, expected integers")
    rank = len(q.shape)
    axis = axis % rank if rank and -rank <= axis < rank else 0
    many = int(np.prod(scale.shape, dtype=np.int64))
    if many == 1:
        fits = True
    elif block > 0:
        fits = scale.shape == tuple(-(-s // block) if i == axis else s for i, s in enumerate(q.shape))
    else:
        fits = bool(rank) and scale.shape == (q.shape[axis],)
    if block < 0 or not fits or (zero is not None and zero.shape != scale.shape and many != 1):
        zeros = "" if zero is None else f" and zero points {list(zero.shape)}"
        raise graph.error(node, f"scales {list(scale.shape)}{zeros} do not fit {list(q.shape)}")
    if zero is not None and int(np.prod(zero.shape, dtype=np.int64)) != many:
        raise graph.error(node, f"zero points {list(zero.shape)} do not fit scales {list(scale.shape)}")
    parts = (q, scale) if zero is None else (q, scale, zero)
    bits = {"U8": 8, "I8": 8, "U4": 4, "I4": 4}.get(q.dtype, 0)
    pack = partial(pack_linear, axis=axis, block=block, bits=bits)
    return Expr(q.shape, scale.dtype, parts, partial(linear, axis=axis, block=block), op=node.op, pack=pack)


def gather_blocks_expr(graph: Graph, node: Node, inputs: Inputs) -> Expr | None:
    """The whole table of GatherBlockQuantized: data, indices, scales, zero points."""
    q, scale, zero = inputs[0], inputs[2], inputs[3] if len(inputs) > 3 else None
    given = graph.attributes(node)
    block, bits = integer(given.get("block_size", 128)), integer(given.get("bits", 4))
    if q is None or scale is None or not q.shape:
        return None
    axis = integer(given.get("quantize_axis", 1)) % len(q.shape)
    if q.dtype in ("U4", "I4"):
        return linear_expr(graph, node, q, scale, zero, axis, block)
    if q.dtype != "U8" or scale.dtype not in FLOATS or (zero is not None and zero.dtype != "U8"):
        raise graph.error(node, f"its table is {q.dtype} and its scales are {scale.dtype}; expected bytes and floats")
    if bits not in (2, 4, 8) or block < 1:
        raise graph.error(node, f"{bits} bits in blocks of {block}")
    shape = (*q.shape[:-1], q.shape[-1] * 8 // bits)
    if scale.shape != tuple(-(-s // block) if i == axis else s for i, s in enumerate(shape)):
        raise graph.error(node, f"scales {list(scale.shape)} do not fit {list(shape)} in blocks of {block}")
    packed = (*scale.shape[:-1], -(-scale.shape[-1] * bits // 8))
    if zero is not None and zero.shape != packed:
        raise graph.error(node, f"zero points {list(zero.shape)}, expected {list(packed)}")
    parts = (q, scale) if zero is None else (q, scale, zero)
    return Expr(shape, scale.dtype, parts, partial(gather_blocks, axis=axis, block=block, bits=bits), op=node.op)


def integer(value: Value) -> int:
    """An attribute that is a whole number; 0 where it is none."""
    return value if isinstance(value, int) else 0


BUILDERS: Mapping[str, Callable[[Graph, Node, Inputs], Expr | None]] = {
    "Add": arithmetic(np.add),
    "Cast": cast,
    "DequantizeLinear": dequantize,
    "Div": arithmetic(np.divide),
    "Identity": same,
    "Mul": arithmetic(np.multiply),
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Sub": arithmetic(np.subtract),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "com.microsoft.DequantizeLinear": dequantize,
}
"""The operations that exporters leave between a stored weight and its use."""
