"""ONNX files that lie: each is a ValueError that says where and what, at once and without allocating what it claims."""

import os
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.files import SLACK_BYTES
from converters.onnx.source import OnnxSource
from converters.onnx.uses import uses
from converters.onnx.wire import varints

ONES = np.ones((2, 3), np.float32)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def span(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def graph(content: bytes) -> bytes:
    return number(1, 8) + span(7, content)


def tensor(*dims: int, kind: int = 1, data: bytes = b"") -> bytes:
    """A graph with one tensor of raw bytes."""
    sizes = b"".join(number(1, size % 2**64) for size in dims)
    return graph(span(5, sizes + number(2, kind) + span(8, b"t") + span(9, data)))


def model(nodes: list[onnx.NodeProto], *tensors: onnx.TensorProto) -> bytes:
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()


def stored(name: str, values: np.ndarray = ONES) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def nested(depth: int) -> bytes:
    """Graphs in graphs in graphs."""
    inner = helper.make_graph([], "g", [], [])
    for _ in range(depth):
        inner = helper.make_graph([helper.make_node("If", ["x"], [], then_branch=inner)], "g", [], [])
    return helper.make_model(inner).SerializeToString()


def mul(*inputs: str) -> onnx.NodeProto:
    return helper.make_node("Mul", list(inputs), ["y"], "/n/Mul")


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 graphs, expected one"),
    "two graphs": (graph(b"") + span(7, b""), "2 graphs, expected one"),
    "a graph that is a number": (number(1, 8) + number(7, 5), "1 graphs, expected one"),
    "a length past the end": (
        number(1, 8) + varint(7 << 3 | 2) + varint(100),
        "field 7 ends at byte .*, its message at",
    ),
    "a length of 2^63": (number(1, 8) + varint(7 << 3 | 2) + varint(1 << 63), "field 7 ends at byte 922337203685477"),
    "a number without an end": (number(1, 8) + b"\xff" * 30, "at byte 2: a number does not end"),
    "a group": (number(1, 8) + b"\x3b", "field 7 has wire type 3, which ONNX does not use"),
    "field 0": (b"\x00\x00", "0 is no number of a field"),
    "a node's name past its node": (graph(span(1, b"\x1a\x7fab")), "field 3 ends at byte"),
    "a name that is not UTF-8": (graph(span(1, span(3, b"\xff\xfe"))), "a name in a node is not UTF-8"),
    "a name that is a number": (graph(span(1, number(3, 7))), "a name in a node is no string"),
    "a name of 2 MB": (graph(span(1, span(3, bytes(2 << 20)))), "is no string of at most 1048576 bytes"),
    "a negative axis": (tensor(-1, 4, data=bytes(16)), r"tensor 't' has shape \[-1, 4\]"),
    "too few bytes": (tensor(2, 3, data=bytes(20)), r"tensor 't' is \[2, 3\] F32, which 20 bytes cannot be"),
    "2^62 numbers": (tensor(1 << 31, 1 << 31, data=bytes(8)), "which is larger than any file"),
    "2^62 times nothing": (tensor(0, 1 << 62), "which is larger than any file"),
    "200 axes": (tensor(*[1] * 200, data=bytes(4)), "a tensor has over 32 axes"),
    "a bool of 2": (tensor(2, kind=9, data=b"\1\2"), "only 0 and 1 are allowed"),
    "values in two ways": (
        graph(span(5, number(1, 1) + number(2, 1) + span(8, b"t") + span(9, bytes(4)) + span(4, bytes(4)))),
        "tensor 't' is stored in several ways",
    ),
    "a varint too few": (
        graph(span(5, number(1, 9) + number(2, 6) + span(8, b"t") + span(5, b"\1\2\3"))),
        r"tensor 't' is \[9\] I32, which 3 bytes cannot be",
    ),
    "varints without an end": (
        graph(span(5, number(1, 2) + number(2, 6) + span(8, b"t") + span(5, b"\1\2\x83"))),
        "the last number does not end",
    ),
    "varints that are too many": (
        graph(span(5, number(1, 2) + number(2, 6) + span(8, b"t") + span(5, b"\1\2\3"))),
        "tensor 't' holds 3 numbers, expected 2",
    ),
    "a byte of 300": (
        graph(span(5, number(1, 1) + number(2, 2) + span(8, b"t") + span(5, varint(300)))),
        "tensor 't' is U8 and holds numbers beyond its range",
    ),
    "a tensor without a name": (model([], stored("")), "'' is the name of two tensors, or of none"),
    "two tensors of one name": (model([], stored("a"), stored("a")), "'a' is the name of two tensors"),
    "a value made twice": (model([mul("a", "b"), mul("c", "d")]), "'y' is made twice"),
    "a node that makes a tensor": (model([mul("a", "b")], stored("y")), "'y' is made twice"),
    "a sparse tensor": (graph(span(15, b"")), "sparse tensors are not read"),
    "graphs in graphs in graphs": (nested(20), "there are too many graphs in graphs"),
    "functions": (graph(b"") + span(25, b""), "defines 1 operators of its own; export it again without functions"),
}


def read_all(path: Path) -> int:
    """Open, walk and read everything; gives how many weights there are."""
    with closing(OnnxSource(path)) as source:
        values = {name: source.read(name) for name in source.tensors}
        found = list(uses(source.graph))
        for use in found:
            use.expr.value(values)
        return len(found)


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_lies(name: str, tmp_path: Path):
    raw, message = BAD[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            read_all(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2 * len(raw) + SLACK_BYTES


def node(op: str, inputs: list[str], **attributes: Any) -> bytes:
    """A graph with a node of one operator over floats [2, 3], and bytes beside."""
    last = {"q": np.zeros((2, 3), np.uint8), "s": np.ones(2, np.float32), "v": np.ones(5, np.float32)}
    tensors = [stored("w"), *(stored(name, x) for name, x in last.items())]
    domain = "com.microsoft" if op in ("MatMulNBits", "GatherBlockQuantized") else ""
    made = helper.make_node(op, inputs, ["c"], "/n/op", domain=domain, **attributes)
    return model([made, mul("x", "c")], *tensors)


NODES: dict[str, tuple[bytes, str]] = {
    "an order that is none": (node("Transpose", ["w"], perm=[0, 0]), r"the order \[0, 0\] is none of 2 axes"),
    "an axis that is not 1": (node("Squeeze", ["w"], axes=[0]), r"the axes \[0\] of \[2, 3\] are not of size 1"),
    "one axis twice": (node("Unsqueeze", ["w"], axes=[0, 0]), r"axes \[0, 0\] are not different"),
    "scales that do not fit": (node("DequantizeLinear", ["q", "v"]), r"scales \[5\] do not fit \[2, 3\]"),
    "zeros that do not fit": (
        node("DequantizeLinear", ["q", "s", "q"], axis=0),
        r"scales \[2\] and zero points \[2, 3\] do not fit",
    ),
    "a negative block": (node("DequantizeLinear", ["q", "s"], axis=0, block_size=-4), "do not fit"),
    "zeros that are floats": (node("DequantizeLinear", ["q", "s", "s"], axis=0), "zero points are F32"),
    "7 bits": (node("MatMulNBits", ["x", "q", "s"], K=6, N=2, bits=7, block_size=16), "7 bits in blocks of 16"),
    "a block of 0": (node("MatMulNBits", ["x", "q", "s"], K=6, N=2, block_size=0), "4 bits in blocks of 0"),
    "too few blocks": (node("MatMulNBits", ["x", "q", "s"], K=600, N=2, block_size=16), r"its weight is \[2, 3\]"),
    "weights that flow": (node("MatMulNBits", ["x", "x", "s"], K=6, N=2, block_size=16), "are not stored"),
    "weights that are floats": (node("MatMulNBits", ["x", "w", "s"], K=6, N=2, block_size=16), "an operand is F32"),
    "a table of floats": (node("GatherBlockQuantized", ["w", "x", "s"], block_size=16), "its table is F32"),
    "a factor": (node("Gemm", ["x", "w"], alpha=2.0), "alpha is 2.0; expected 1"),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_whose_operands_do_not_fit(name: str, tmp_path: Path):
    raw, message = NODES[name]
    (tmp_path / "model.onnx").write_bytes(raw)
    with pytest.raises(ValueError, match=f"model.onnx: node '/n/op' .*{message}"):
        read_all(tmp_path / "model.onnx")


def test_a_block_larger_than_the_table_costs_nothing(tmp_path: Path):
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["c"], axis=0, block_size=1 << 62), mul("x", "c")]
    tensors = [stored("q", np.ones((2, 3), np.uint8)), stored("s", np.ones((1, 3), np.float32))]
    (tmp_path / "model.onnx").write_bytes(model(nodes, *tensors))
    assert read_all(tmp_path / "model.onnx") == 1


# ------------------------------------------------------------------------------------------------ graphs without an end
def chain(first: str, count: int, op: str = "Identity", copies: int = 1) -> list[onnx.NodeProto]:
    """Nodes of which each takes what the one before makes."""
    names = [first, *(f"v{i}" for i in range(count))]
    return [helper.make_node(op, [names[i]] * copies, [names[i + 1]]) for i in range(count)]


GRAPHS: dict[str, Callable[[], list[onnx.NodeProto]]] = {
    "a circle": lambda: [
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["a"]),
        mul("x", "a"),
    ],
    "a value made of itself": lambda: [helper.make_node("Add", ["a", "one"], ["a"]), mul("x", "a")],
    "a chain of 20,000": lambda: [*chain("w", 20_000), mul("x", "v19999")],
    "sums of sums": lambda: [*chain("one", 23, "Add", 2), mul("x", "v22")],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_without_an_end_has_no_weights(name: str, tmp_path: Path):
    tensors = [stored("w"), stored("one", np.ones(1, np.float32))]
    (tmp_path / "model.onnx").write_bytes(model(GRAPHS[name](), *tensors))
    assert read_all(tmp_path / "model.onnx") == 0


def test_a_million_nodes_of_nothing_cost_no_more_than_their_file(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(span(1, b"") * 1_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its graph would take more than twice its 2000006 bytes of memory"):
            OnnxSource(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + SLACK_BYTES


# ------------------------------------------------------------------------------------------------ files beside
def external(**said: str) -> bytes:
    """A tensor of 24 bytes in another file."""
    one = TensorProto(name="t", dims=(2, 3), data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in said.items():
        one.external_data.add(key=key, value=value)
    return model([], one)


OUTSIDE: dict[str, tuple[dict[str, str], str]] = {
    "nowhere": ({}, "names the file ''; expected one in the model's directory"),
    "above": ({"location": "../secret.bin"}, "'../secret.bin'; expected one in the model's directory"),
    "above, later": ({"location": "data/../../secret.bin"}, "expected one in the model's directory"),
    "from the root": ({"location": "/etc/passwd"}, "'/etc/passwd'; expected one in the model's directory"),
    "a drive": ({"location": "C:\\secret.bin"}, "expected one in the model's directory"),
    "a link": ({"location": "link.bin"}, "'link.bin', a link out of the model's directory"),
    "a folder that is a link": ({"location": "elsewhere/secret.bin"}, "a link out of the model's directory"),
    "past the end": ({"location": "data.bin", "offset": "90"}, "ends at byte 114 of data.bin, which has 100"),
    "an offset of 2^200": ({"location": "data.bin", "offset": str(2**200)}, "expected a number of bytes"),
    "a negative offset": ({"location": "data.bin", "offset": "-4"}, "offset of its external data is '-4'"),
    "another length": ({"location": "data.bin", "length": "20"}, "24 bytes; its length is 20"),
    "a folder": ({"location": "folder"}, "folder: not a regular file"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's directory, and a secret beside it."""
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    here = tmp_path / "model"
    here.mkdir()
    (here / "folder").mkdir()
    (here / "data.bin").write_bytes(bytes(100))
    os.symlink(tmp_path / "secret.bin", here / "link.bin")
    os.symlink(tmp_path, here / "elsewhere")
    return here


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_beside_that_is_not_the_models(name: str, folder: Path):
    said, message = OUTSIDE[name]
    (folder / "model.onnx").write_bytes(external(**said))
    with pytest.raises(ValueError, match=message):
        OnnxSource(folder / "model.onnx")


def test_a_file_beside_that_is_missing(folder: Path):
    (folder / "model.onnx").write_bytes(external(location="model.onnx.data"))
    with pytest.raises(
        FileNotFoundError, match=r"model.onnx.data: no such file; .* tensor 't' is in it. Put it beside"
    ):
        OnnxSource(folder / "model.onnx")


def test_a_download_cache_keeps_all_files_as_links_to_one_place(tmp_path: Path):
    blobs, here = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    here.mkdir()
    (blobs / "1").write_bytes(external(location="data.bin", offset="8"))
    (blobs / "2").write_bytes(bytes(8) + ONES.tobytes())
    for name, blob in (("model.onnx", "1"), ("data.bin", "2")):
        os.symlink(blobs / blob, here / name)
    with closing(OnnxSource(here / "model.onnx")) as source:
        np.testing.assert_array_equal(source.read("t"), ONES)


def test_tensors_that_overlap(folder: Path):
    parts = []
    for name, offset in (("a", "0"), ("b", "12")):
        parts.append(TensorProto(name=name, dims=(2, 3), data_type=1, data_location=TensorProto.EXTERNAL))
        for key, value in (("location", "data.bin"), ("offset", offset)):
            parts[-1].external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model([], *parts))
    with pytest.raises(ValueError, match=r"data.bin: two tensors overlap at byte 12"):
        OnnxSource(folder / "model.onnx")
    parts[1].external_data[1].value = "0"  # the same tensor twice is a tied one
    (folder / "model.onnx").write_bytes(model([], *parts))
    OnnxSource(folder / "model.onnx").close()


def test_varints():
    numbers = [0, 1, 127, 128, 300, 2**31, 2**63 - 1]
    raw = np.frombuffer(b"".join(map(varint, numbers)), np.uint8)
    assert varints(raw).tolist() == numbers
    assert varints(np.frombuffer(varint(2**64 - 5), np.uint8)).tolist() == [-5]
    assert varints(np.zeros(0, np.uint8)).tolist() == []
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        varints(np.frombuffer(b"\x80" * 11 + b"\1", np.uint8))
