"""Graphs inside graphs, brought into the outer one: the branches of an If, the body of a loop.

Exporters that merge a decoder with and without a cache put one into each branch, with the weights outside. What a
branch names itself gets the branch's name before it, because both branches use the same names.
"""

from converters.onnx.messages import DEEPEST, GraphMessage, Node, read_attribute, read_graph
from converters.onnx.wire import Field, Window

HOLDERS = ("If", "Loop", "Scan")
MOST = 64  # subgraphs of a model


def flattened(window: Window, graph: GraphMessage) -> GraphMessage:
    """The nodes and tensors of a graph and of all graphs in it.

    Raises:
        ValueError: graphs too deep in graphs, or too many of them.
    """
    waiting = [(graph, "", 0)]
    out = GraphMessage(inputs=graph.inputs, outputs=graph.outputs)
    count = 0
    while waiting:
        inner, prefix, depth = waiting.pop()
        here = local(inner) if prefix else set()
        out.tensors += [tensor.renamed(prefix + tensor.name) for tensor in inner.tensors]
        for node in inner.nodes:
            out.nodes.append(renamed(node, here, prefix))
            places = [read_attribute(window, place) for place in node.attributes] if node.op in HOLDERS else []
            for name, value in places:
                if isinstance(value, Field):
                    count += 1
                    if depth == DEEPEST or count > MOST:
                        raise window.error("there are too many graphs in graphs", value.begin)
                    waiting.append((read_graph(window, value), f"{prefix}{name}_{count}.", depth + 1))
    return out


def local(graph: GraphMessage) -> set[str]:
    """The values that a graph makes itself."""
    made = {value for node in graph.nodes for value in node.outputs if value}
    return made | {tensor.name for tensor in graph.tensors} | set(graph.inputs)


def renamed(node: Node, here: set[str], prefix: str) -> Node:
    """A node of an inner graph as one of the outer graph."""
    if not prefix:
        return node
    inputs = tuple(prefix + name if name in here else name for name in node.inputs)
    outputs = tuple(prefix + name if name else name for name in node.outputs)
    return Node(node.op, node.name, inputs, outputs, node.attributes, node.notes)
