"""Primitives that read or write where an index says."""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod

import numpy as np
from jax.extend.core import JaxprEqn

from forge_jax.onnx_export.arithmetic import as_type, either
from forge_jax.onnx_export.equations import TRUTH, Rule, dtype_of, result, sizes_of
from forge_jax.onnx_export.graph import Graph, Size
from forge_jax.onnx_export.shapes import counted, cut, expanded, reshaped, transposed


def one(graph: Graph, size: Size) -> str:
    """A size less 1, int64 [1]: the last place."""
    return graph.emit("Sub", [graph.size(size), graph.numbers([1])])


class Index:
    """Places in an array, one a row of `indices`: which axes they are along, and the place along each.

    `axes` are those of the array that an index chooses along; of the others, `rest`, a place has all.
    """

    def __init__(self, graph: Graph, eqn: JaxprEqn, indices: str, axes: Sequence[int], batching: Sequence[int]) -> None:
        numbers = eqn.params["dimension_numbers"]
        self.graph, self.array = graph, sizes_of(eqn)
        self.shape = sizes_of(eqn, 1)[:-1] or (1,)
        self.drops = eqn.params["mode"].name == "FILL_OR_DROP"
        self.clips = eqn.params["mode"].name == "CLIP"
        self.axes = [*numbers.operand_batching_dims, *axes]
        self.rest = [i for i in range(len(self.array)) if i not in self.axes]
        indices = as_type(graph, indices, np.int64)
        indices = indices if len(sizes_of(eqn, 1)) > 1 else graph.emit("Unsqueeze", [indices, graph.numbers([0])])
        columns = [graph.emit("Gather", [indices, graph.constant(i, np.int64)], {"axis": -1}) for i in range(len(axes))]
        self.inside = self._inside(columns) if self.drops else None
        self.columns = [self._along(axis) for axis in batching]
        self.columns += [self._bounded(axis, column) for axis, column in zip(axes, columns, strict=True)]

    def _along(self, axis: int) -> str:
        """The place along an axis of the indices themselves."""
        line = counted(self.graph, self.shape[axis])
        others = [i for i in range(len(self.shape)) if i != axis]
        line = self.graph.emit("Unsqueeze", [line, self.graph.numbers(others)]) if others else line
        return expanded(self.graph, line, [n if i == axis else 1 for i, n in enumerate(self.shape)], self.shape)

    def _inside(self, columns: Sequence[str]) -> str:
        """Whether a place is in the array."""
        graph, zero = self.graph, self.graph.constant(0, np.int64)
        found = []
        for axis, column in zip(self.axes[len(self.axes) - len(columns) :], columns, strict=True):
            found.append(graph.emit("GreaterOrEqual", [column, zero]))
            found.append(graph.emit("Less", [column, graph.size(self.array[axis])]))
        return reduce(lambda a, b: graph.emit("And", [a, b]), found)

    def _bounded(self, axis: int, column: str) -> str:
        """A place that is in the array; where it was not, and is not to be clipped, its number means nothing."""
        if not (self.drops or self.clips):
            return column
        last = one(self.graph, self.array[axis])
        return self.graph.emit("Min", [self.graph.emit("Max", [column, self.graph.constant(0, np.int64)]), last])

    def joined(self, columns: Sequence[str]) -> str:
        """int64 [*shape, axes], as GatherND and ScatterND want it."""
        wide = [self.graph.emit("Unsqueeze", [column, self.graph.numbers([-1])]) for column in columns]
        return wide[0] if len(wide) == 1 else self.graph.emit("Concat", wide, {"axis": -1})


def chosen(eqn: JaxprEqn, windows: Sequence[Size], mapped: Sequence[int], collapsed: Sequence[int]) -> list[int]:
    """The axes along which an index chooses one place.

    Raises:
        ValueError: it chooses several places at once.
    """
    if odd := [axis for axis in collapsed if axis not in mapped]:
        raise ValueError(f"ONNX export: {eqn.primitive.name} with the unread axes {odd} is not written")
    batching = eqn.params["dimension_numbers"].operand_batching_dims
    for axis, (size, window) in enumerate(zip(sizes_of(eqn), windows, strict=True)):
        if axis not in batching and window != (1 if axis in mapped else size):
            raise ValueError(f"ONNX export: {eqn.primitive.name} of {window} places of {size} is not written")
    return [int(axis) for axis in mapped]


def gather(graph: Graph, eqn: JaxprEqn, x: str, indices: str) -> str:
    """What stands at some places; outside of the array a fill value, if so wanted.

    Raises:
        ValueError: of slices of several places; of float8, which ONNX only casts.
    """
    if dtype_of(eqn).name.startswith("float8"):
        raise ValueError("ONNX export: reading single rows of float8 is not written; export with packed=False")
    numbers = eqn.params["dimension_numbers"]
    windows = eqn.params["slice_sizes"]
    if len(sizes_of(eqn, 1)) == 1 and eqn.params["mode"].name != "FILL_OR_DROP":
        return one_slice(graph, eqn, x, indices)
    mapped = [axis for axis in numbers.start_index_map if (axis in numbers.collapsed_slice_dims or windows[axis] == 1)]
    if len(mapped) != len(numbers.start_index_map):
        raise ValueError(f"ONNX export: gather of slices {windows} is not written")
    axes = chosen(eqn, windows, mapped, numbers.collapsed_slice_dims)
    index = Index(graph, eqn, indices, axes, numbers.start_indices_batching_dims)
    x = transposed(graph, x, [*index.axes, *index.rest])
    if len(index.axes) == 1:
        y = graph.emit("Gather", [x, index.columns[0]], {"axis": 0})
    else:
        y = graph.emit("GatherND", [x, index.joined(index.columns)])
    y = y if len(sizes_of(eqn, 1)) > 1 else graph.emit("Squeeze", [y, graph.numbers([0])])
    return arranged(graph, eqn, index, y)


def arranged(graph: Graph, eqn: JaxprEqn, index: Index, y: str) -> str:
    """What was found, its axes those of the index and then the rest of the array, with the axes of the result."""
    numbers, after = eqn.params["dimension_numbers"], result(eqn)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(index.array)) if axis not in gone]
    place = dict(zip(kept, numbers.offset_dims, strict=True))
    outer = [i for i in range(len(after)) if i not in numbers.offset_dims]
    outs = [*outer, *(place[axis] for axis in index.rest)]
    y = transposed(graph, y, sorted(range(len(outs)), key=outs.__getitem__))
    outs = sorted(outs)
    if index.inside is not None:
        inside = reshaped(graph, index.inside, index.shape, [after[out] if out in outer else 1 for out in outs])
        y = either(graph, inside, y, fill(graph, eqn), dtype_of(eqn))
    return reshaped(graph, y, [after[out] for out in outs], after)


def one_slice(graph: Graph, eqn: JaxprEqn, x: str, indices: str) -> str:
    """The slice that one index points to."""
    windows = eqn.params["slice_sizes"]
    starts = {
        axis: graph.emit("Gather", [indices, graph.constant(i, np.int64)])
        for i, axis in enumerate(eqn.params["dimension_numbers"].start_index_map)
    }
    x = sliced(graph, x, sizes_of(eqn), windows, starts)
    return reshaped(graph, x, windows, result(eqn))


def fill(graph: Graph, eqn: JaxprEqn) -> str:
    """What a gather gives outside of the array."""
    kind, value = dtype_of(eqn), eqn.params["fill_value"]
    if value is None:
        value = np.nan if kind.kind not in "biu" else kind == TRUTH or np.iinfo(kind).min
    return graph.constant(value, kind)


def scatter(reduction: str) -> Rule:
    """The array with other numbers at some places; those outside of it are dropped, if so wanted."""

    def rule(graph: Graph, eqn: JaxprEqn, x: str, indices: str, new: str) -> str:
        numbers = eqn.params["dimension_numbers"]
        sizes, updates = sizes_of(eqn), sizes_of(eqn, 2)
        batching = numbers.operand_batching_dims
        kept = [i for i in range(len(sizes)) if i not in (*numbers.inserted_window_dims, *batching)]
        windows: list[Size] = [1] * len(sizes)
        for axis, out in zip(kept, numbers.update_window_dims, strict=True):
            windows[axis] = updates[out]
        if len(sizes_of(eqn, 1)) == 1 and any(windows[axis] != 1 for axis in numbers.scatter_dims_to_operand_dims):
            return one_update(graph, eqn, x, indices, new, windows, reduction)
        axes = chosen(eqn, windows, numbers.scatter_dims_to_operand_dims, numbers.inserted_window_dims)
        index = Index(graph, eqn, indices, axes, numbers.scatter_indices_batching_dims)
        outer = [i for i in range(len(updates)) if i not in numbers.update_window_dims]
        place = dict(zip(kept, numbers.update_window_dims, strict=True))
        ordered = [*outer, *(place[axis] for axis in kept)]
        new = transposed(graph, new, ordered)
        wanted = [*index.shape, *(sizes[axis] for axis in index.rest)]
        new = reshaped(graph, new, [updates[i] for i in ordered], wanted)
        if reduction == "none":
            return overwritten(graph, eqn, index, x, new)
        order = [*index.axes, *index.rest]
        y = written(graph, index, transposed(graph, x, order), new, dtype_of(eqn), reduction)
        return transposed(graph, y, sorted(range(len(order)), key=order.__getitem__))

    return rule


def written(graph: Graph, index: Index, x: str, new: str, kind: np.dtype, reduction: str) -> str:
    """x with `new` at the places; what is dropped goes to a place past the end, which is cut off again."""
    columns, last = list(index.columns), len(index.axes) - 1
    if index.inside is None:
        return graph.emit("ScatterND", [x, index.joined(columns), new], {"reduction": reduction})
    size = graph.size(index.array[index.axes[last]])
    columns[last] = graph.emit("Where", [index.inside, columns[last], size])
    x = graph.emit("Pad", [x, graph.numbers([0, 1]), graph.constant(0, kind), graph.numbers([last])])
    y = graph.emit("ScatterND", [x, index.joined(columns), new], {"reduction": reduction})
    return cut(graph, y, graph.numbers([0]), size, [last])


def overwritten(graph: Graph, eqn: JaxprEqn, index: Index, x: str, new: str) -> str:
    """x with `new` at the places: each place looks up which row of `new` it gets, if any.

    Layers that write to the same places share that table, and none moves the axes of a large x, as ScatterND would.
    """
    sizes = [index.array[axis] for axis in index.axes]
    count, rest = prod(index.shape), [index.array[axis] for axis in index.rest]
    rows = reshaped(graph, counted(graph, count), [count], index.shape)
    none = graph.emit("Expand", [graph.constant(-1, np.int64), graph.shape(sizes)])
    which = written(graph, index, none, rows, np.dtype(np.int64), "none")
    new = reshaped(graph, new, [*index.shape, *rest], [count, *rest])
    found = graph.emit("Gather", [new, graph.emit("Max", [which, graph.constant(0, np.int64)])], {"axis": 0})
    order = [*index.axes, *index.rest]
    found = transposed(graph, found, sorted(range(len(order)), key=order.__getitem__))
    given = graph.emit("GreaterOrEqual", [which, graph.constant(0, np.int64)])
    given = transposed(graph, given, sorted(range(len(sizes)), key=index.axes.__getitem__))
    given = graph.emit("Unsqueeze", [given, graph.numbers(index.rest)]) if index.rest else given
    return either(graph, given, found, x, dtype_of(eqn))


# ------------------------------------------------------------------------------------------------ moving slices
def bounded(graph: Graph, start: str, size: Size, part: Size) -> str:
    """Where a slice of `part` begins, int64 [1], moved so that it is inside of an axis of `size`."""
    start = graph.emit("Reshape", [as_type(graph, start, np.int64), graph.numbers([1])])
    start = graph.emit("Max", [start, graph.numbers([0])])
    return graph.emit("Min", [start, graph.size(size - part)])


def sliced(graph: Graph, x: str, sizes: Sequence[Size], parts: Sequence[Size], starts: Mapping[int, str]) -> str:
    """The slice of some sizes that begins where numbers say; axes that it has all of need none."""
    for axis, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        if size != part:
            start = bounded(graph, starts[axis], size, part)
            x = cut(graph, x, start, graph.emit("Add", [start, graph.size(part)]), [axis])
    return x


def replaced(
    graph: Graph, x: str, sizes: Sequence[Size], parts: Sequence[Size], starts: Mapping[int, str], new: str
) -> str:
    """x with such a slice replaced: what stands before, the slice, what stands after, axis by axis."""
    moving = [axis for axis in range(len(sizes)) if sizes[axis] != parts[axis]]

    def along(x: str, axes: Sequence[int]) -> str:
        if not axes:
            return new
        axis, end = axes[0], graph.numbers([np.iinfo(np.int64).max])
        start = bounded(graph, starts[axis], sizes[axis], parts[axis])
        stop = graph.emit("Add", [start, graph.size(parts[axis])])
        before, after = cut(graph, x, graph.numbers([0]), start, [axis]), cut(graph, x, stop, end, [axis])
        middle = along(cut(graph, x, start, stop, [axis]), axes[1:])
        return graph.emit("Concat", [before, middle, after], {"axis": axis})

    return along(x, moving)


def dynamic_slice(graph: Graph, eqn: JaxprEqn, x: str, *starts: str) -> str:
    """A slice that begins where numbers say."""
    return sliced(graph, x, sizes_of(eqn), eqn.params["slice_sizes"], dict(enumerate(starts)))


def dynamic_update_slice(graph: Graph, eqn: JaxprEqn, x: str, new: str, *starts: str) -> str:
    """The array with a slice replaced."""
    return replaced(graph, x, sizes_of(eqn), sizes_of(eqn, 1), dict(enumerate(starts)), new)


def one_update(
    graph: Graph, eqn: JaxprEqn, x: str, indices: str, new: str, windows: Sequence[Size], reduction: str
) -> str:
    """A scatter to the slice that one index points to; all of it is dropped if it is not in the array."""
    sizes, columns = sizes_of(eqn), {}
    for i, axis in enumerate(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims):
        columns[axis] = graph.emit("Gather", [indices, graph.constant(i, np.int64)])
    new = reshaped(graph, new, sizes_of(eqn, 2), windows)
    if reduction == "add":
        new = graph.emit("Add", [sliced(graph, x, sizes, windows, columns), new])
    y = replaced(graph, x, sizes, windows, columns, new)
    if eqn.params["mode"].name != "FILL_OR_DROP":
        return y
    moved = [
        graph.emit("Equal", [as_type(graph, start, np.int64), bounded(graph, start, sizes[axis], windows[axis])])
        for axis, start in columns.items()
    ]
    return either(graph, reduce(lambda a, b: graph.emit("And", [a, b]), moved), y, x, dtype_of(eqn))


RULES: Mapping[str, Rule] = {
    "gather": gather,
    "scatter": scatter("none"),
    "scatter-add": scatter("add"),
    "scatter_add": scatter("add"),
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
