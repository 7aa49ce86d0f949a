"""Primitives that sum up or order numbers along axes, and products of matrices."""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from jax.extend.core import JaxprEqn

from forge_jax.onnx_export.arithmetic import as_type
from forge_jax.onnx_export.equations import TRUTH, Rule, dtype_of, result, result_dtype, sizes_of
from forge_jax.onnx_export.graph import Graph, Size
from forge_jax.onnx_export.shapes import reshaped, transposed


# ------------------------------------------------------------------------------------------------ along axes
def reduced(kind: str) -> Rule:
    """One number of many, along the axes that go."""

    def rule(graph: Graph, eqn: JaxprEqn, x: str) -> str:
        axes = [int(axis) for axis in eqn.params["axes"]]
        return graph.emit(kind, [x, graph.numbers(axes)], {"keepdims": 0}) if axes else x

    return rule


def reduced_truth(kind: str) -> Rule:
    """Whether any, or all, are true."""

    def rule(graph: Graph, eqn: JaxprEqn, x: str) -> str:
        axes = [int(axis) for axis in eqn.params["axes"]]
        counts = graph.emit(kind, [as_type(graph, x, np.int32), graph.numbers(axes)], {"keepdims": 0})
        return as_type(graph, counts, TRUTH)

    return rule


def arg(kind: str) -> Rule:
    """Where the largest or smallest is, the first of equals."""

    def rule(graph: Graph, eqn: JaxprEqn, x: str) -> str:
        (axis,) = eqn.params["axes"]
        return as_type(graph, graph.emit(kind, [x], {"axis": int(axis), "keepdims": 0}), eqn.params["index_dtype"])

    return rule


def cumulated(graph: Graph, eqn: JaxprEqn, x: str) -> str:
    """Sums up to each place."""
    axis = graph.constant(eqn.params["axis"], np.int64)
    return graph.emit("CumSum", [x, axis], {"reverse": int(eqn.params["reverse"])})


def sort(graph: Graph, eqn: JaxprEqn, key: str, *others: str) -> tuple[str, ...]:
    """All operands in the order of the first, equals as they were: TopK takes the earliest of equals first.

    Raises:
        ValueError: equals are to be ordered by further keys.
    """
    if eqn.params["num_keys"] != 1:
        raise ValueError("ONNX export: sorting by several keys is not written")
    axis, kind = int(eqn.params["dimension"]), dtype_of(eqn)
    wide = key if kind in (np.float32, np.int64) else as_type(graph, key, np.float32 if kind.kind == "f" else np.int64)
    count = graph.size(sizes_of(eqn)[axis])
    _, order = graph.several("TopK", [wide, count], 2, {"axis": axis, "largest": 0})
    return tuple(graph.emit("GatherElements", [x, order], {"axis": axis}) for x in (key, *others))


def top_k(graph: Graph, eqn: JaxprEqn, x: str) -> tuple[str, str]:
    """The k largest of the last axis and where they are, the first of equals.

    Where the axis may be shorter than k, it is first made longer by numbers that are below all others: places past
    the end, which what follows has to leave out.
    """
    k, size, kind = int(eqn.params["k"]), sizes_of(eqn)[-1], dtype_of(eqn)
    if not isinstance(size, int):
        low = graph.constant(-np.inf if kind.kind == "f" else np.iinfo(kind).min, kind)
        amounts = graph.numbers([0, k])
        x = graph.emit("Pad", [x, amounts, low, graph.numbers([len(sizes_of(eqn)) - 1])])
    values, places = graph.several("TopK", [x, graph.numbers([k])], 2, {"axis": -1})
    return values, as_type(graph, places, result_dtype(eqn, 1))


# ------------------------------------------------------------------------------------------------ products
def product(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
    """Sums over some axes of both, for each place of others: axes of the result are batch, rows, columns."""
    ((sum_a, sum_b), (batch_a, batch_b)) = eqn.params["dimension_numbers"]
    kind = result_dtype(eqn)
    a, b = (x if dtype_of(eqn, i) == kind else as_type(graph, x, kind) for i, x in enumerate((a, b)))
    left, right = sizes_of(eqn), sizes_of(eqn, 1)
    rows = [i for i in range(len(left)) if i not in (*sum_a, *batch_a)]
    columns = [i for i in range(len(right)) if i not in (*sum_b, *batch_b)]
    if not batch_a and len(left) == len(right) == 2 and len(rows) == len(columns) == 1:
        return graph.emit("Gemm", [a, b], {"transA": int(sum_a[0] == 0), "transB": int(sum_b[0] == 1)})
    batch = [left[i] for i in batch_a]
    a = folded(graph, a, left, batch_a, rows, sum_a)
    b = folded(graph, b, right, batch_b, sum_b, columns)
    y = graph.emit("MatMul", [a, b])
    made = (*batch, prod(left[i] for i in rows), prod(right[i] for i in columns))
    return reshaped(graph, y, made, result(eqn))


def folded(
    graph: Graph, x: str, sizes: Sequence[Size], batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]
) -> str:
    """x as a stack of matrices, axes of each kind folded into one."""
    x = transposed(graph, x, [*batch, *rows, *columns])
    before = tuple(sizes[i] for i in (*batch, *rows, *columns))
    after = (*(sizes[i] for i in batch), prod(sizes[i] for i in rows), prod(sizes[i] for i in columns))
    return reshaped(graph, x, before, after)


def solved(graph: Graph, eqn: JaxprEqn, a: str, b: str) -> str:
    """The solution of a triangular system of one unknown whose factor is 1, as decoding has it.

    Raises:
        ValueError: any other system.
    """
    if sizes_of(eqn)[-1] != 1 or not eqn.params["unit_diagonal"]:
        raise ValueError("ONNX export: a triangular system of several unknowns is not written")
    return b


RULES: Mapping[str, Rule] = {
    "reduce_sum": reduced("ReduceSum"),
    "reduce_max": reduced("ReduceMax"),
    "reduce_min": reduced("ReduceMin"),
    "reduce_prod": reduced("ReduceProd"),
    "reduce_or": reduced_truth("ReduceMax"),
    "reduce_and": reduced_truth("ReduceMin"),
    "argmax": arg("ArgMax"),
    "argmin": arg("ArgMin"),
    "cumsum": cumulated,
    "sort": sort,
    "top_k": top_k,
    "dot_general": product,
    "triangular_solve": solved,
}
