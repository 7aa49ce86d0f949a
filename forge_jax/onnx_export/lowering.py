"""A jaxpr to ONNX nodes: one rule a primitive, calls taken apart, loops and branches with graphs of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from onnx import helper

from forge_jax.onnx_export import arithmetic, indexing, reductions, shapes
from forge_jax.onnx_export.equations import TRUTH, Rule, described
from forge_jax.onnx_export.graph import Graph, element_type

CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat": "jaxpr"}


def run(graph: Graph, jaxpr: ClosedJaxpr | Jaxpr, inputs: Sequence[str]) -> list[str]:
    """Add the nodes of a jaxpr; the names of its outputs.

    Raises:
        ValueError: a primitive has no rule, or not in this form; with its name and the line that asked for it.
    """
    names: dict[Var, str] = {}
    if isinstance(jaxpr, ClosedJaxpr):
        names |= dict(zip(jaxpr.jaxpr.constvars, (graph.constant(np.asarray(c)) for c in jaxpr.consts), strict=True))
        jaxpr = jaxpr.jaxpr
    names |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> str:
        return graph.constant(atom.val, described(atom).dtype) if isinstance(atom, Literal) else names[atom]

    for eqn in jaxpr.eqns:
        names |= dict(zip(eqn.outvars, applied(graph, eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def applied(graph: Graph, eqn: JaxprEqn, inputs: Sequence[str]) -> Sequence[str]:
    """Add the nodes of one equation."""
    name = eqn.primitive.name
    if name in CALLS:
        return run(graph, eqn.params[CALLS[name]], inputs)
    if name not in RULES:
        raise ValueError(f"ONNX export: JAX's primitive {name} is not written{where(eqn)}")
    try:
        out = RULES[name](graph, eqn, *inputs)
    except ValueError as error:
        raise ValueError(f"{error}{'' if ' (asked for' in str(error) else where(eqn)}") from error
    return (out,) if isinstance(out, str) else out


def where(eqn: JaxprEqn) -> str:
    """The line of the library that an equation comes from, for people."""
    traceback = eqn.source_info.traceback
    frames = [] if traceback is None else [f for f in traceback.frames if "forge_jax/ops/" in f.file_name]
    if not frames:
        return ""
    return f" (asked for by {frames[0].function_name}, ops/{frames[0].file_name.rpartition('/')[2]})"


# ------------------------------------------------------------------------------------------------ bodies
Kind = tuple[Any, int]
"""Dtype and rank."""
COUNT, FLAG = (np.int64, 0), (TRUTH, 0)


def body(
    graph: Graph, before: Sequence[Kind], fill: Callable[[Graph, Sequence[str]], Sequence[str]], after: Sequence[Kind]
) -> onnx.GraphProto:
    """The graph of a loop or branch: inputs of the kinds `before`, and what `fill` gives of them, of kinds `after`."""
    inner = Graph(graph)
    inputs = [inner.name("input") for _ in before]
    # an output has a name of its own, even if it is an input, or comes from outside
    made = list(fill(inner, inputs))
    outputs = [inner.name("output") for _ in made]
    inner.nodes += [helper.make_node("Identity", [x], [y]) for x, y in zip(made, outputs, strict=True)]

    def info(name: str, kind: Kind) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element_type(kind[0]), [None] * kind[1])

    entering, leaving = list(map(info, inputs, before)), list(map(info, outputs, after))
    return helper.make_graph(inner.nodes, inner.name("body"), entering, leaving)


def kinds_of(atoms: Sequence[Any], less: int = 0) -> list[Kind]:
    """The kind of each, without so many leading axes."""
    return [(described(atom).dtype, len(described(atom).shape) - less) for atom in atoms]


def scan(graph: Graph, eqn: JaxprEqn, *inputs: str) -> Sequence[str]:
    """A loop over the leading axis of some arrays."""
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    held, moving = inputs[:consts], inputs[consts:]
    arrays, made = eqn.invars[consts + carries :], eqn.outvars[carries:]
    carried = kinds_of(eqn.outvars[:carries])
    fill = lambda g, names: run(g, eqn.params["jaxpr"], [*held, *names])  # noqa: E731
    if not arrays:
        return counted_loop(graph, eqn, moving, fill, [*carried, *kinds_of(made, 1)])
    proto = body(graph, [*carried, *kinds_of(arrays, 1)], fill, [*carried, *kinds_of(made, 1)])
    attributes: dict[str, Any] = {"body": proto, "num_scan_inputs": len(arrays)}
    if eqn.params["reverse"]:
        attributes |= {"scan_input_directions": [1] * len(arrays)}
        attributes |= {"scan_output_directions": [1] * len(made)} if made else {}
    return graph.several("Scan", moving, len(eqn.outvars), attributes)


def counted_loop(
    graph: Graph, eqn: JaxprEqn, start: Sequence[str], fill: Callable[..., Sequence[str]], kinds: Sequence[Kind]
) -> Sequence[str]:
    """A loop over nothing, so many times.

    Raises:
        ValueError: what it makes is to be put together backwards.
    """
    if eqn.params["reverse"] and len(kinds) > len(start):
        raise ValueError("ONNX export: a loop over nothing that goes backwards is not written")
    going = lambda g, names: [names[1], *fill(g, names[2:])]  # noqa: E731
    proto = body(graph, [COUNT, FLAG, *kinds[: len(start)]], going, [FLAG, *kinds])
    trips = graph.emit("Squeeze", [graph.size(eqn.params["length"])])
    return graph.several("Loop", [trips, "", *start], len(kinds), {"body": proto})


def while_loop(graph: Graph, eqn: JaxprEqn, *inputs: str) -> Sequence[str]:
    """A loop as long as a condition holds."""
    asked, done = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    for_cond, for_body, start = inputs[:asked], inputs[asked : asked + done], inputs[asked + done :]
    condition, inner, kinds = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"], kinds_of(eqn.outvars)

    def fill(g: Graph, names: Sequence[str]) -> list[str]:
        after = run(g, inner, [*for_body, *names[2:]])
        return [*run(g, condition, [*for_cond, *after]), *after]

    proto = body(graph, [COUNT, FLAG, *kinds], fill, [FLAG, *kinds])
    (first,) = run(graph, condition, [*for_cond, *start])
    return graph.several("Loop", ["", first, *start], len(kinds), {"body": proto})


def cond(graph: Graph, eqn: JaxprEqn, which: str, *inputs: str) -> Sequence[str]:
    """One of two branches; of branches for kinds of device, the one for all others.

    Raises:
        ValueError: there are more.
    """
    branches, kinds = eqn.params["branches"], kinds_of(eqn.outvars)
    if (platforms := eqn.params.get("branches_platforms")) is not None:
        return run(graph, branches[platforms.index(None)], inputs)
    if len(branches) != 2:
        raise ValueError(f"ONNX export: a choice among {len(branches)} branches is not written")
    otherwise, then = (body(graph, [], lambda g, _, b=b: run(g, b, inputs), kinds) for b in branches)
    truth = arithmetic.as_type(graph, which, TRUTH)
    return graph.several("If", [truth], len(kinds), {"then_branch": then, "else_branch": otherwise})


RULES: Mapping[str, Rule] = {
    **arithmetic.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **indexing.RULES,
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "platform_index": lambda graph, eqn: graph.constant(np.int32(0)),  # its branches know by themselves, see `cond`
    "optimization_barrier": lambda graph, eqn, *inputs: inputs,
}
