"""The ONNX file of a traced decoder: parameters as initializers under our paths, what it says of itself as metadata.

Parameters go inside the file, or one at a time to a file beside it where they are more than protobuf can hold.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from onnx import helper

from converters.files import atomic_write
from converters.packed.leaves import split
from forge_jax.loading import narrowed
from forge_jax.onnx_export.arithmetic import as_type
from forge_jax.onnx_export.graph import Graph, element_type, tensor
from forge_jax.onnx_export.lowering import run
from forge_jax.onnx_export.program import INPUTS, Program, State, trace
from forge_jax.params import Tree, flatten
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor, dense

INLINE = 1_500_000_000  # bytes of parameters that a file holds itself; protobuf ends at 2 GiB
ALIGNMENT = 4096  # of what can be mapped into memory
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10}  # of each opset, as the ONNX release that brought it has it

FLOAT8_OPSET = 21  # from which on float8 can be reshaped and transposed


class Parameter(NamedTuple):
    """One array of the file: `read` gives it when its turn comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def abstract(params: Tree, dtype: Any, packed: bool) -> Tree:
    """The shapes and dtypes that the parameters are traced with: `dtype`, but for whole numbers.

    packed: quantised leaves stay so, their parts in the dtypes they have.
    """

    def one(leaf: Any) -> Any:
        if isinstance(leaf, QTensor) and packed:
            parts = {name: jax.ShapeDtypeStruct(part.shape, part.dtype) for name, part in leaf.parts.items()}
            return replace(leaf, parts=parts, dtype=np.dtype(dtype).name)
        floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        return jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype if floating else leaf.dtype))

    return jax.tree.map(one, params, is_leaf=quantised)


def quantised(leaf: Any) -> bool:
    """Whether a leaf is quantised."""
    return isinstance(leaf, QTensor)


def parameters(params: Tree, shapes: Tree) -> dict[str, Parameter]:
    """Every array by its path, in the order of the trace; a leaf that stays quantised gives each of its parts its own.

    shapes: what `abstract` made of the tree.
    """
    leaves = dict(flatten(params)) | dict(flatten(split(params)[0]))

    def one(name: str, like: Any) -> Parameter:
        read = lambda: np.ascontiguousarray(narrowed(np.asarray(dense(leaves[name])), like.dtype, name))  # noqa: E731
        return Parameter(tuple(like.shape), np.dtype(like.dtype), read)

    found = jax.tree_util.tree_leaves_with_path(split(shapes)[0])
    return {name: one(name, like) for name, like in ((path_of(keys), like) for keys, like in found)}


def path_of(keys: Any) -> str:
    """The path of a leaf, as `flatten` gives it."""
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def write_onnx(
    path: Path,
    spec: ModelSpec,
    params: Tree,
    *,
    opset: int,
    dtype: Any,
    metadata: Mapping[str, Any],
    packed: bool = False,
    inline: int = INLINE,
) -> None:
    """Write the decoder with parameters of `dtype`; those with more than `inline` bytes go to `<path>.data`.

    Raises:
        ValueError: an opset that is not written, or a model that has something that is not.
        OSError: the disk is full; nothing is left behind.
    """
    shapes = abstract(params, dtype, packed)
    check_opset(opset, shapes)
    program, arrays = trace(spec, shapes, dtype), parameters(params, shapes)
    graph, outputs = lowered(program, tuple(arrays))
    model = helper.make_model(
        protobuf(graph, program, outputs), opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION[opset]
    )
    model.producer_name = "forge-jax"
    used = {name for node in model.graph.node for name in inputs_of(node)}
    kept = {name: array for name, array in arrays.items() if name in used}
    said = {**metadata, "parameters": {name: name for name in kept}, "packed": split(shapes)[1]}
    said["states"] = explained(program.states)
    helper.set_model_props(model, {f"forge.{key}": json.dumps(value, sort_keys=True) for key, value in said.items()})
    write_file(path, model, kept, inline)


def check_opset(opset: int, shapes: Tree) -> None:
    """Raise ValueError if an opset is not written, or has not the dtypes of some parameters."""
    if opset not in IR_VERSION:
        known = ", ".join(map(str, IR_VERSION))
        raise ValueError(f"ONNX export: opset {opset} is not written; expected one of {known}")
    eights = {leaf.dtype.name for leaf in jax.tree.leaves(shapes) if leaf.dtype.name.startswith("float8")}
    if eights and opset < FLOAT8_OPSET:
        raise ValueError(
            f"ONNX export: weights of {', '.join(sorted(eights))} need opset {FLOAT8_OPSET}, this is {opset}; "
            "or export with packed=False"
        )


def explained(states: Sequence[State]) -> dict[str, Any]:
    """What each input that stands for something remembered is, for those who read the file."""
    return {
        state.past: {
            "present": state.present,
            "layer": state.layer,
            "branch": state.branch,
            "name": state.name,
            "shape": list(state.slab.shape),
            "slots": state.slab.slots,
            "every": state.slab.every,
        }
        for state in states
    }


# ------------------------------------------------------------------------------------------------ the graph
def lowered(program: Program, parameters: Sequence[str]) -> tuple[Graph, list[str]]:
    """The graph of a program, and the names in it of the program's outputs."""
    graph = Graph()
    batch, tokens = program.signature["input_ids"].shape
    first = lambda name, axis: graph.emit(  # noqa: E731
        "Gather", [graph.emit("Shape", [name]), graph.numbers([axis])]
    )
    graph.sizes[str(batch)], graph.sizes[str(tokens)] = first("input_ids", 0), first("input_ids", 1)
    past = program.signature["attention_mask"].shape[1] - tokens
    graph.sizes[str(past)] = graph.emit("Sub", [first("attention_mask", 1), graph.sizes[str(tokens)]])
    narrow = [as_type(graph, name, np.int32) for name in INPUTS]
    return graph, run(graph, program.jaxpr, [*parameters, *narrow, *(state.past for state in program.states)])


def protobuf(graph: Graph, program: Program, made: Sequence[str]) -> onnx.GraphProto:
    """The graph with its inputs and outputs, without what no output needs."""
    outputs = ["logits", *(state.present for state in program.states)]
    nodes = [*graph.nodes, *(helper.make_node("Identity", [x], [y]) for x, y in zip(made, outputs, strict=True))]
    nodes = needed(nodes, set(outputs))
    used = {name for node in nodes for name in inputs_of(node)}

    def info(name: str) -> onnx.ValueInfoProto:
        kind, shape = program.signature[name].dtype, program.signature[name].shape
        sizes = [size if isinstance(size, int) else str(size) for size in shape]
        return helper.make_tensor_value_info(name, element_type(np.int64 if name in INPUTS else kind), sizes)

    inputs = [name for name in (*INPUTS, *(state.past for state in program.states)) if name in used]
    kept = {name: x for name, x in graph.initializers.items() if name in used}
    constants = [tensor(name, x.shape, x.dtype, x.tobytes()) for name, x in kept.items()]
    return helper.make_graph(nodes, "decoder", [*map(info, inputs)], [*map(info, outputs)], constants)


def inputs_of(node: onnx.NodeProto) -> Iterable[str]:
    """The names that a node, or a graph in it, reads."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from (name for inner in attribute.g.node for name in inputs_of(inner))


def needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the wanted names come from, in order."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(inputs_of(node))
            kept.append(node)
    return kept[::-1]


# ------------------------------------------------------------------------------------------------ the file
def write_file(path: Path, model: onnx.ModelProto, arrays: Mapping[str, Parameter], inline: int) -> None:
    """Write the model with its parameters, all or nothing."""
    sizes = {name: math.prod(array.shape) * array.dtype.itemsize for name, array in arrays.items()}
    tensors = {name: tensor(name, array.shape, array.dtype) for name, array in arrays.items()}
    if sum(sizes.values()) <= inline:
        for name, proto in tensors.items():
            proto.raw_data = arrays[name].read().tobytes()
        model.graph.initializer.extend(tensors.values())
        with atomic_write(path, sum(sizes.values())) as file:
            file.write(model.SerializeToString())
        return
    beside, end, offsets = path.with_name(path.name + ".data"), 0, {}
    for name, proto in tensors.items():
        offsets[name] = -(-end // ALIGNMENT) * ALIGNMENT
        end = offsets[name] + sizes[name]
        proto.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": beside.name, "offset": offsets[name], "length": sizes[name]}
        proto.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in where.items())
    model.graph.initializer.extend(tensors.values())
    with atomic_write(path) as file:
        file.write(model.SerializeToString())
        with atomic_write(beside, end) as data:
            for name, array in arrays.items():
                data.write(b"\0" * (offsets[name] - data.tell()))
                data.write(array.read().tobytes())
