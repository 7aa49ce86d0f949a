"""Which matrix of which layer a node multiplies by, from what becomes of the product and from what the operand was.

For graphs whose nodes have lost their names and notes: the query's product meets the key's in a product without
weights, whose softmax meets the value's, what comes of that goes into the output projection; a gate goes through an
activation on its way to the last matrix of a feed-forward layer. Layers come in the order of the graph.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from converters.onnx.graph import SIZES, Graph
from converters.onnx.messages import Node
from converters.onnx.names import LAST, Claim
from converters.onnx.uses import Use
from converters.rules import Instance

ATTENTION = ("com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention", "Attention")
ACTIVATIONS = (
    *("Celu", "Elu", "Erf", "Gelu", "HardSwish", "Relu", "Sigmoid", "Softplus", "Swish", "Tanh"),
    *(f"com.microsoft.{name}" for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
)
TOKENS = "input_ids"  # what every exporter calls the input
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "com.microsoft.FusedMatMul")
LOOKUPS = ("Gather", "com.microsoft.GatherBlockQuantized")
BETWEEN = ("Add", "Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape")  # a product and its bias
FUSED_ACTIVATIONS = ("com.microsoft.FusedGemm",)
MOST_MATRICES = 20_000
FARTHEST = 400  # nodes on the way from one matrix to the next

# what our leaves of a layer are in the flow: the last parts of their paths
ROLES: Mapping[frozenset[str], str] = {
    frozenset({"attention.q"}): "q",
    frozenset({"attention.k"}): "k",
    frozenset({"attention.v"}): "v",
    frozenset({"attention.q", "attention.k", "attention.v"}): "qkv",
    frozenset({"attention.o"}): "o",
    frozenset({"mlp.gate"}): "gate",
    frozenset({"mlp.up"}): "up",
    frozenset({"mlp.gate", "mlp.up"}): "gate up",
    frozenset({"mlp.down"}): "down",
    frozenset({"embed"}): "embed",
    frozenset({"head"}): "head",
}


class Flow:
    """The matrices of a graph and their roles."""

    def __init__(self, graph: Graph, found: Iterable[Use]) -> None:
        self.graph = graph
        self.matrices = {id(use.node): use for use in found if use.matrix}
        self.mixes = {
            id(node)
            for node in graph.nodes
            if self.is_product(node) and self.behind(node, 0, lambda n: n.op == "Softmax")
        }

    def is_product(self, node: Node) -> bool:
        """Whether a node multiplies two values that flow."""
        return node.op in PRODUCTS and id(node) not in self.matrices

    def stops(self, node: Node) -> bool:
        """Whether a walk ends at a node: at a matrix, a product, or attention in one operator."""
        return id(node) in self.matrices or self.is_product(node) or node.op in ATTENTION

    def behind(self, node: Node, operand: int, wanted: Callable[[Node], bool]) -> bool:
        """Whether a node of some kind makes an operand, without a matrix, a product or a sum of two on the way."""
        names, seen = [node.inputs[operand]] if operand < len(node.inputs) else [], 0
        while names and seen < FARTHEST:
            seen += 1
            maker = self.graph.maker.get(names.pop())
            if maker is None or maker.op in SIZES:
                continue
            if wanted(maker):
                return True
            if not self.stops(maker) and not (maker.op == "Add" and self.joins(maker)):
                names += [name for name in maker.inputs if name]
        return False

    def joins(self, node: Node) -> bool:
        """Whether all operands of a node flow."""
        return all(self.graph.constant(name) is None for name in node.inputs if name)

    def ahead(self, node: Node) -> tuple[list[tuple[Node, int]], bool]:
        """Where the product of a matrix ends up, with the operand that it is there, and whether it was activated."""
        ends: list[tuple[Node, int]] = []
        activated = node.op in FUSED_ACTIVATIONS
        names, seen = [name for name in node.outputs if name], set(node.outputs)
        while names and len(seen) + len(ends) < FARTHEST:
            name = names.pop()
            for user in self.graph.users.get(name, [])[:FARTHEST]:
                if user.op in SIZES:
                    continue
                activated |= user.op in ACTIVATIONS
                if self.stops(user):
                    ends.append((user, user.inputs.index(name)))
                    continue
                outputs = user.outputs[:1] if user.op == "DynamicQuantizeLinear" else user.outputs
                fresh = [out for out in outputs if out and out not in seen]
                seen.update(fresh)
                names += fresh
        return ends, activated

    def role(self, use: Use) -> str:
        """What a matrix is in its layer; empty where the flow does not say it."""
        if self.behind(use.node, 0, lambda n: id(n) in self.mixes or n.op in ATTENTION):
            return "o"
        if self.behind(use.node, 0, lambda n: n.op in (*ACTIVATIONS, *FUSED_ACTIVATIONS)):
            return "down"
        ends, activated = self.ahead(use.node)
        found = {self.part(end, operand) for end, operand in ends}
        if not ends:
            return "head"
        if found == {"matrix"}:
            return "gate" if activated else "up"
        return "qkv" if found == {"q", "k", "v"} else found.pop() if len(found) == 1 else ""

    def part(self, node: Node, operand: int) -> str:
        """What an operand of the node is where a walk ended."""
        if id(node) in self.matrices:
            return "matrix"
        if node.op in ATTENTION:
            return ("q", "k", "v")[operand] if operand < 3 else ""
        if id(node) in self.mixes:
            return "v"
        second = 3 if node.op == "QLinearMatMul" else 1
        return {0: "q", second: "k"}.get(operand, "")


def by_flow(
    graph: Graph, found: Sequence[Use], wanted: Sequence[Instance], claimed: Mapping[str, Claim]
) -> Iterator[Claim]:
    """Claims for the matrices that have no name, and their biases, where the flow of all layers agrees.

    Args:
        found: all uses, in the order of the graph.
        wanted: the tensors that the model has.
        claimed: what is found already. A head that is looked up is an embedding, whatever its name.
    """
    names = by_role(wanted)
    asked = {instance.theirs for instance in wanted}
    biases = {id(use.node): use for use in found if use.role == "bias"}
    for role, uses in matrices(graph, found, names).items():
        instances = sorted(names.get(role, []), key=layer_of)
        for instance, use in zip(instances, uses, strict=True) if len(uses) == len(instances) else ():
            bias = f"{instance.theirs.removesuffix('weight')}bias"
            for name, one in ((instance.theirs, use), (bias, beside(graph, biases, use))):
                if one is not None and name in asked and not (name in claimed and claimed[name].matrix == one.matrix):
                    yield Claim(name, one.expr, one.matrix, False, (LAST, False))


def by_role(wanted: Sequence[Instance]) -> dict[str, list[Instance]]:
    """The tensors that a model has by their roles."""
    names: dict[str, list[Instance]] = {}
    for instance in wanted:
        paths = frozenset(path.split(".", 2)[-1] if path.startswith("layers.") else path for path in instance.paths)
        if paths in ROLES:
            names.setdefault(ROLES[paths], []).append(instance)
    return names


def matrices(graph: Graph, found: Sequence[Use], names: Container[str]) -> dict[str, list[Use]]:
    """The matrices of a graph by their roles in a model that has these."""
    flow = Flow(graph, found)
    roles: dict[str, list[Use]] = {}
    for use in flow.matrices.values() if len(flow.matrices) < MOST_MATRICES else ():
        roles.setdefault(flow.role(use), []).append(use)
    roles["embed"] = [use for use in found if use.node.op in LOOKUPS and origin(graph, use.node.inputs[1]) == TOKENS]
    if "gate up" in names:
        roles["gate up"] = roles.pop("gate", [])
    elif "gate" not in names:  # one matrix, then the activation
        roles["up"] = roles.pop("gate", [])
    return roles


def origin(graph: Graph, name: str) -> str:
    """The value that another one is, but for its shape and type."""
    for _ in range(FARTHEST):
        maker = graph.maker.get(name)
        if maker is None or not maker.inputs or maker.op not in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            break
        name = maker.inputs[0]
    return name


def layer_of(instance: Instance) -> int:
    """The number of a tensor's layer."""
    parts = instance.paths[0].split(".")
    return int(parts[1]) if parts[0] == "layers" else 0


def beside(graph: Graph, biases: Mapping[int, Use], use: Use) -> Use | None:
    """The bias that is added to the product of a matrix: at the same node, or by an Add behind it."""
    node = use.node
    for _ in range(FARTHEST):
        if id(node) in biases:
            return biases[id(node)]
        users = [user for value in node.outputs for user in graph.users.get(value, [])[:2]]
        if len(users) != 1 or users[0].op not in BETWEEN:
            return None
        node = users[0]
    return None
