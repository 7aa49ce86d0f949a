"""Numbers that a graph has of its own, held against those of the config: heads, scales of scores, epsilons of norms.

A graph that computes something else than its config says is an error: one of the two belongs to another model.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from converters.files import quote
from converters.onnx.buffers import parts_of
from converters.onnx.graph import Graph
from converters.onnx.messages import Node
from forge_jax.spec import Attention, ModelSpec, Norm, Router

ATTENTION = ("com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention")
NORMS = (
    *("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"),
    *(f"com.microsoft.{name}LayerNormalization" for name in ("Skip", "SkipSimplified")),
)
MIXTURES = ("com.microsoft.MoE", "com.microsoft.QMoE")
KEYS = {
    **dict.fromkeys(ATTENTION, ("num_heads", "kv_num_heads", "scale", "softcap")),
    **dict.fromkeys(NORMS, ("epsilon",)),
    **dict.fromkeys(MIXTURES, ("k",)),
}
NEAR = 0.06  # relative; 1e-6 in float16 is 9.5e-7, and 1e-5 is 1.0014e-5


def check(graph: Graph, spec: ModelSpec, *, built: bool) -> None:
    """Hold every number that is easy to find against the spec.

    `built`: the graph is of GenAI's builder, which gives 1e-6 to norms whose epsilon it does not look up (those of
    phi), so that epsilons say nothing about the model.

    Raises:
        ValueError: a number that no layer of the spec has.
    """
    attentions = [op for op in parts_of(spec, Attention) if isinstance(op, Attention)]
    known: dict[str, list[Any]] = {
        "num_heads": [op.heads for op in attentions],
        "kv_num_heads": [op.kv_heads for op in attentions],
        "scale": [op.scale for op in attentions],
        "softcap": [op.softcap or 0.0 for op in attentions],
        "epsilon": [norm.eps for norm in parts_of(spec, Norm)],
        "k": [router.top_k for router in parts_of(spec, Router)],
    }
    if built:
        known["epsilon"] = []
    for node, key, value in (*attributes(graph), *epsilons(graph)):
        if known[key] and not any(
            np.isclose(value, each, NEAR if key == "epsilon" else 1e-3, 1e-12) for each in known[key]
        ):
            asked = ", ".join(f"{each:g}" for each in dict.fromkeys(known[key]))
            raise ValueError(
                f"{graph.path}: node {quote(node.name)} has {key} = {value:g}, the config asks for {asked}; "
                "config.json is not this model's"
            )


def attributes(graph: Graph) -> Iterator[tuple[Node, str, float]]:
    """What operators that do a whole attention, norm or mixture say of themselves."""
    for node in graph.nodes:
        keys = KEYS.get(node.op, ())
        for key, value in graph.attributes(node).items() if keys else ():
            # a scale of 0 is none: the operator then takes the usual one
            if key in keys and isinstance(value, int | float) and (value or key == "softcap"):
                yield node, key, value


def epsilons(graph: Graph) -> Iterator[tuple[Node, str, float]]:
    """What is added to a mean before its root is taken."""
    for node in graph.nodes:
        users = [user.op for value in node.outputs for user in graph.users.get(value, [])]
        if node.op != "Add" or users != ["Sqrt"]:
            continue
        makers = [graph.maker[name].op for name in node.inputs if name in graph.maker]
        for name in node.inputs:
            if "ReduceMean" in makers and name in graph.tensors and graph.tensors[name].shape in ((), (1,)):
                yield node, "epsilon", float(graph.read(name).reshape(-1)[0])
