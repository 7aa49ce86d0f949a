"""The messages of an ONNX file that say what a model computes: model, graph, node, attribute, tensor.

A tensor is a place in a file until it is read. Attributes and notes are parsed for the nodes that someone asks about.
Fields: onnx/onnx.proto.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from converters.files import quote
from converters.onnx.wire import FIXED32, FIXED64, SPAN, VARINT, Field, Window, signed

MOST_AXES = 32
DEEPEST = 4  # subgraphs in subgraphs
NODE_COST = 700  # bytes of a node's objects, without its strings

Span = tuple[int, int]
STORES = {
    4: (SPAN, FIXED32),
    5: (SPAN, VARINT),
    7: (SPAN, VARINT),
    9: (SPAN,),
    10: (SPAN, FIXED64),
    11: (SPAN, VARINT),
}
"""The fields of a tensor that hold its values, and their wire types: packed, or one number a field."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor: where it is, and nothing of what it holds.

    `kind` is the number of its type in onnx.proto. `packed` says how the bytes at `places` hold the values: "raw", or
    "varint". `external` is set where they are in another file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    packed: str = "raw"
    places: tuple[Span, ...] = ()
    external: dict[str, str] | None = None

    def renamed(self, name: str) -> "Tensor":
        """The tensor under another name."""
        return replace(self, name=name)


@dataclass(slots=True)
class Node:
    """One operation. `op` has its domain before it unless that is ONNX's own: "com.microsoft.MatMulNBits"."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Field, ...]
    notes: tuple[Field, ...]


@dataclass(slots=True)
class GraphMessage:
    """A graph as it is stored."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ModelMessage:
    """A model as it is stored; `functions` counts the operations that it defines itself, `notes` are key and value."""

    producer: str
    graph: GraphMessage
    functions: int
    notes: tuple[Field, ...]


def read_model(window: Window) -> ModelMessage:
    """The whole file.

    Raises:
        ValueError: it is no ONNX model, or has none or several graphs.
    """
    producer, functions, graphs, notes = "", 0, [], []
    for item in window.fields(0, window.size):
        if item.number == 2:
            producer = window.text(item, "the producer's name")
        elif item.number == 7:
            graphs.append(item)
        elif item.number == 14:
            window.spend(150)
            notes.append(item)
        functions += item.number == 25
    if len(graphs) != 1 or graphs[0].wire != SPAN:
        raise ValueError(f"{window.path}: {len(graphs)} graphs, expected one; the file is damaged or no ONNX model")
    return ModelMessage(producer, read_graph(window, graphs[0]), functions, tuple(notes))


def read_graph(window: Window, place: Field) -> GraphMessage:
    """One graph; its subgraphs stay attributes."""
    graph = GraphMessage()
    for item in spans(window, place):
        if item.number == 1:
            graph.nodes.append(read_node(window, item))
        elif item.number == 5:
            graph.tensors.append(read_tensor(window, item))
        elif item.number == 11:
            graph.inputs.append(first_text(window, item, "an input's name"))
        elif item.number == 12:
            graph.outputs.append(first_text(window, item, "an output's name"))
        elif item.number == 15:
            raise window.error("sparse tensors are not read", item.begin)
    return graph


def spans(window: Window, place: Field) -> Iterator[Field]:
    """The fields of a message that itself is a field."""
    if place.wire != SPAN:
        raise window.error(f"field {place.number} holds no message", place.begin)
    return window.fields(place.begin, place.end)


def first_text(window: Window, place: Field, what: str) -> str:
    """The first field of a message, a name."""
    return next((window.text(item, what) for item in spans(window, place) if item.number == 1), "")


def read_node(window: Window, place: Field) -> Node:
    """One node; attributes and notes stay where they are."""
    window.spend(NODE_COST)
    names: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    attributes, notes = [], []
    for item in spans(window, place):
        if item.number in names:
            names[item.number].append(window.text(item, "a name in a node"))
        elif item.number in (5, 9):
            window.spend(150)
            (attributes if item.number == 5 else notes).append(item)
    op, domain = last(names[4]), last(names[7])
    if domain not in ("", "ai.onnx"):
        op = f"{domain}.{op}"
    return Node(op, last(names[3]), tuple(names[1]), tuple(names[2]), tuple(attributes), tuple(notes))


def last(texts: list[str]) -> str:
    """Of a field that may stand once, the last counts."""
    return texts[-1] if texts else ""


def read_tensor(window: Window, place: Field) -> Tensor:
    """A tensor's name, type, shape and place.

    Raises:
        ValueError: a negative or absurd shape, or values stored in more than one way.
    """
    window.spend(500)
    name, kind, location = "", 0, 0
    dims: list[int] = []
    stored: dict[int, list[Span]] = {}
    external: dict[str, str] = {}
    for item in spans(window, place):
        match item.number:
            case 1:
                dims += window.numbers(item)
                if len(dims) > MOST_AXES:
                    raise window.error(f"a tensor has over {MOST_AXES} axes", item.begin)
            case 2:
                kind = item.value
            case 4 | 5 | 7 | 9 | 10 | 11 if item.wire in STORES[item.number]:
                stored.setdefault(item.number, []).append((item.begin, item.end))
                window.spend(100)
            case 8:
                name = window.text(item, "a tensor's name")
            case 13:
                key, value = read_pair(window, item)
                external[key] = value
            case 14:
                location = item.value
    if any(size < 0 for size in dims):
        raise window.error(f"tensor {quote(name)} has shape {dims}", place.begin)
    if len(stored) > 1:
        raise window.error(f"tensor {quote(name)} is stored in several ways", place.begin)
    way, places = next(iter(stored.items()), (9, []))
    packed = "varint" if VARINT in STORES[way] else "raw"
    return Tensor(name, tuple(dims), kind, packed, tuple(places), external if location == 1 else None)


def read_pair(window: Window, place: Field) -> tuple[str, str]:
    """A key and its value."""
    pair = {1: "", 2: ""}
    for item in spans(window, place):
        if item.number in pair:
            pair[item.number] = window.text(item, "a note")
    return pair[1], pair[2]


def read_pair_of(window: Window, place: Field, key: str) -> str:
    """The value of a note if it has this key, else an empty string; notes can be long and are read one by one."""
    value = None
    for item in spans(window, place):
        if item.number == 1 and window.peek(item.begin, item.end - item.begin, item.end) != key.encode():
            return ""
        value = item if item.number == 2 else value
    return "" if value is None else window.text(value, "a note")


def read_notes(window: Window, places: Iterable[Field], prefix: str) -> tuple[tuple[str, str], ...]:
    """The notes whose keys begin with a prefix: the rest of the key, and the value. Others may be long: not read."""
    found = []
    for place in places:
        keys = [item for item in spans(window, place) if item.number == 1 and item.wire == SPAN]
        if any(window.peek(item.begin, len(prefix), item.end) == prefix.encode() for item in keys):
            key, value = read_pair(window, place)
            found.append((key.removeprefix(prefix), value))
    return tuple(found)


Value = int | float | bytes | list[int] | Tensor | Field | None


def read_attribute(window: Window, place: Field) -> tuple[str, Value]:
    """The name and the value of an attribute; a graph as its place, and None for what no decoder's node has."""
    name, value = "", None
    ints: list[int] = []
    for item in spans(window, place):
        match item.number:
            case 1:
                name = window.text(item, "an attribute's name")
            case 2 if item.wire == FIXED32:
                value = struct.unpack("<f", window.peek(item.begin, 4, item.end))[0]
            case 3 if item.wire == VARINT:
                value = signed(item.value)
            case 4 if item.wire == SPAN:
                value = window.text(item, "an attribute").encode()
            case 5:
                value = read_tensor(window, item)
            case 6:
                value = item
            case 8:
                ints += window.numbers(item)
    return name, ints or value
