"""Primitives that move numbers and compute none: broadcasting, reshaping, joining, cutting, counting."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax import export
from jax.extend.core import JaxprEqn

from forge_jax.onnx_export.arithmetic import as_type
from forge_jax.onnx_export.equations import Rule, result, result_dtype, sizes_of
from forge_jax.onnx_export.graph import Graph, Size


def reshaped(graph: Graph, x: str, before: Sequence[Size], after: Sequence[Size]) -> str:
    """x with its numbers in another shape. One size that is known only later is left to ONNX to find."""
    if tuple(before) == tuple(after):
        return x
    later = [i for i, size in enumerate(after) if export.is_symbolic_dim(size)]
    if len(later) == 1 and all(size for size in after if not export.is_symbolic_dim(size)):
        shape = graph.numbers([-1 if i in later else int(size) for i, size in enumerate(after)])
    else:
        shape = graph.shape(after)
    return graph.emit("Reshape", [x, shape], {"allowzero": 1})


def transposed(graph: Graph, x: str, order: Sequence[int]) -> str:
    """x with its axes in another order."""
    order = [int(axis) for axis in order]
    if x in graph.root.orders:  # twice is once
        x, first = graph.root.orders[x]
        order = [first[axis] for axis in order]
    if order == sorted(order):
        return x
    y = graph.emit("Transpose", [x], {"perm": order})
    graph.root.orders[y] = x, order
    return y


def expanded(graph: Graph, x: str, before: Sequence[Size], after: Sequence[Size]) -> str:
    """x with axes of 1 made as long as they are to be."""
    return x if tuple(before) == tuple(after) else graph.emit("Expand", [x, graph.shape(after)])


def broadcast(graph: Graph, eqn: JaxprEqn, x: str, *sizes: str) -> str:
    """Input axis i becomes output axis broadcast_dimensions[i]."""
    before, after = sizes_of(eqn), result(eqn)
    places = eqn.params["broadcast_dimensions"]
    middle: list[Size] = [1] * len(after)
    for place, size in zip(places, before, strict=True):
        middle[place] = size
    new = [axis for axis in range(len(after)) if axis not in places]
    if new:
        x = graph.emit("Unsqueeze", [x, graph.numbers(new)])
    return expanded(graph, x, middle, after)


def reshape(graph: Graph, eqn: JaxprEqn, x: str, *sizes: str) -> str:
    """Another shape."""
    return reshaped(graph, x, sizes_of(eqn), result(eqn))


def transpose(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """Another order of axes."""
    return transposed(graph, x, eqn.params["permutation"])


def concatenate(graph: Graph, eqn: JaxprEqn, *parts: str) -> str:
    """Parts one after another."""
    return graph.emit("Concat", parts, {"axis": int(eqn.params["dimension"])})


def stack(graph: Graph, eqn: JaxprEqn, *parts: str) -> str:
    """Parts side by side along a new axis."""
    axis = int(eqn.params["axis"])
    wide = [graph.emit("Unsqueeze", [part, graph.numbers([axis])]) for part in parts]
    return graph.emit("Concat", wide, {"axis": axis})


def split(graph: Graph, eqn: JaxprEqn, x: str) -> tuple[str, ...]:
    """Cut along an axis into parts of given sizes."""
    sizes = eqn.params["sizes"]
    return graph.several("Split", [x, graph.shape(sizes)], len(sizes), {"axis": int(eqn.params["axis"])})


def cut(graph: Graph, x: str, starts: str, ends: str, axes: Sequence[int], steps: Sequence[int] | None = None) -> str:
    """x from starts to ends, int64 vectors, along some axes."""
    inputs = [x, starts, ends, graph.numbers(axes)]
    return graph.emit("Slice", inputs if steps is None else [*inputs, graph.numbers(steps)])


def slice_of(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """A part with fixed bounds."""
    before, starts, limits = sizes_of(eqn), eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(before)
    whole = zip(before, starts, limits, steps, strict=True)
    axes = [i for i, (size, start, limit, step) in enumerate(whole) if (start, limit, step) != (0, size, 1)]
    if not axes:
        return x
    starts, ends = graph.shape([starts[i] for i in axes]), graph.shape([limits[i] for i in axes])
    return cut(graph, x, starts, ends, axes, [steps[i] for i in axes])


def pad(graph: Graph, eqn: JaxprEqn, x: str, value: str) -> str:
    """More numbers at the ends of axes, or fewer.

    Raises:
        ValueError: more numbers in between.
    """
    config = eqn.params["padding_config"]
    if any(between != 0 for _, _, between in config):
        raise ValueError("ONNX export: padding between numbers is not written")
    axes = [i for i, (low, high, _) in enumerate(config) if (low, high) != (0, 0)]
    if not axes:
        return x
    amounts = graph.shape([config[i][0] for i in axes] + [config[i][1] for i in axes])
    return graph.emit("Pad", [x, amounts, value, graph.numbers(axes)])  # a negative amount cuts


def reverse(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """The other way round along some axes."""
    axes = [int(axis) for axis in eqn.params["dimensions"]]
    ends = graph.numbers([np.iinfo(np.int64).min + 1] * len(axes))
    return cut(graph, x, graph.numbers([-1] * len(axes)), ends, axes, [-1] * len(axes))


def counted(graph: Graph, size: Size) -> str:
    """0, 1, ... below a size, int64."""
    if not export.is_symbolic_dim(size):
        return graph.constant(np.arange(int(size), dtype=np.int64))
    scalar = graph.emit("Squeeze", [graph.size(size)])
    return graph.emit("Range", [graph.constant(0, np.int64), scalar, graph.constant(1, np.int64)])


def iota(graph: Graph, eqn: JaxprEqn, *sizes: str) -> str:
    """0, 1, ... along an axis."""
    after, axis = result(eqn), int(eqn.params["dimension"])
    line = as_type(graph, counted(graph, after[axis]), eqn.params["dtype"])
    if (others := [i for i in range(len(after)) if i != axis]) != []:
        line = graph.emit("Unsqueeze", [line, graph.numbers(others)])
    return expanded(graph, line, [size if i == axis else 1 for i, size in enumerate(after)], after)


def size_as_value(graph: Graph, eqn: JaxprEqn) -> str:
    """A size as a number to compute with."""
    return as_type(graph, graph.emit("Squeeze", [graph.size(eqn.params["dim"])]), result_dtype(eqn))


RULES: Mapping[str, Rule] = {
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "transpose": transpose,
    "concatenate": concatenate,
    "stack": stack,
    "split": split,
    "slice": slice_of,
    "pad": pad,
    "rev": reverse,
    "iota": iota,
    "dim_as_value": size_as_value,
}
