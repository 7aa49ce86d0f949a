"""Writing GGUF: gguf-py reads it, types survive, tensors stream, and nothing half-written stays."""

import errno
import resource
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from converters.gguf import GGML_TYPES, Typed, encode, open_gguf, write_gguf

gguf = pytest.importorskip("gguf")

EVERY_TYPE = {
    "a.uint8": Typed("uint8", 255),
    "a.int8": Typed("int8", -128),
    "a.uint16": Typed("uint16", 65535),
    "a.int16": Typed("int16", -32768),
    "a.uint32": Typed("uint32", 2**32 - 1),
    "a.int32": Typed("int32", -(2**31)),
    "a.uint64": Typed("uint64", 2**64 - 1),
    "a.int64": Typed("int64", -(2**63)),
    "a.float32": Typed("float32", 0.1),
    "a.float64": Typed("float64", 0.1),
    "a.bool": Typed("bool", False),
    "a.string": Typed("string", "tëxt\n{{ 🦙 }}"),
    "b.uint8": Typed("uint8[]", [0, 255]),
    "b.int8": Typed("int8[]", [-1, 1]),
    "b.uint16": Typed("uint16[]", np.array([1, 2], np.uint16)),
    "b.int16": Typed("int16[]", (3,)),
    "b.uint32": Typed("uint32[]", [7, 8]),
    "b.int32": Typed("int32[]", [-7]),
    "b.uint64": Typed("uint64[]", [2**63]),
    "b.int64": Typed("int64[]", [-1]),
    "b.float32": Typed("float32[]", [0.5, float("inf")]),
    "b.float64": Typed("float64[]", [1e-300, 3]),
    "b.bool": Typed("bool[]", [True, False, True]),
    "b.string": Typed("string[]", ["", "ü", "x" * 1000]),
}


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, tuple) else value


def test_every_value_type_survives_and_gguf_py_agrees(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, EVERY_TYPE, [])
    source, reader = open_gguf(path), gguf.GGUFReader(path)
    for key, typed in EVERY_TYPE.items():
        assert source.types[key] == typed.type
        names = ["ARRAY"] * typed.type.endswith("[]") + [typed.type.removesuffix("[]").upper()]
        assert [kind.name for kind in reader.fields[key].types] == names
        expected = np.float32(0.1).item() if key == "a.float32" else plain(typed.value)
        assert plain(source.metadata[key]) == reader.fields[key].contents() == expected
    write_gguf(tmp_path / "again.gguf", source.typed_metadata(), [])
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    source.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "string"),
        (True, "bool"),
        (0.5, "float32"),
        (5, "uint32"),
        (-5, "int32"),
        (2**32, "uint64"),
        (-(2**31) - 1, "int64"),
        (np.uint16(3), "uint16"),
        (np.bool_(True), "bool"),
        (np.arange(3, dtype=np.int8), "int8[]"),
        (np.array([True]), "bool[]"),
        ([1, -2], "int32[]"),
        ([2**31], "int64[]"),
        ([1, 0.5], "float32[]"),
        (["a"], "string[]"),
        ((True, False), "bool[]"),
    ],
)
def test_plain_values_get_their_usual_type(tmp_path: Path, value: Any, expected: str) -> None:
    write_gguf(tmp_path / "m.gguf", {"k": value}, [])
    source = open_gguf(tmp_path / "m.gguf")
    assert (source.types["k"], plain(source.metadata["k"])) == (expected, plain(value))
    source.close()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"k": []}, "'k': found an empty list; give the type with Typed"),
        ({"k": [1, "a"]}, "'k': found int, str"),
        ({"k": [True, 2]}, "'k': found bool, int"),
        ({"k": None}, "'k': found NoneType"),
        ({"k": 2**64}, "do not fit into 64 bits"),
        ({"k": Typed("uint8", 256)}, "'k': 256 does not fit into uint8"),
        ({"k": Typed("uint64", -1)}, "'k': -1 does not fit into uint64"),
        ({"k": Typed("int64", 2**63)}, "does not fit into int64"),
        ({"k": Typed("uint64", 2**64)}, "found object"),
        ({"k": Typed("float32", 1e300)}, "does not fit into float32"),
        ({"k": Typed("int32", 1.5)}, "found float64 of .1., expected int32 values"),
        ({"k": Typed("int32", True)}, "found bool"),
        ({"k": Typed("string", 3)}, "found 3, expected a string"),
        ({"k": Typed("bool[]", [1])}, "found 1, expected a bool"),
        ({"k": Typed("int32[]", [[1]])}, "found int64 of .1, 1., expected int32"),
        ({"k": "\ud800"}, "'k': a string that is not Unicode text"),
        ({"k": np.zeros((2, 2))}, "holds no 2-dimensional float64"),
        ({"k": np.zeros(2, np.complex64)}, "holds no 1-dimensional complex64"),
        ({"": 1}, "has 0 bytes, expected 1 ... 65535"),
        ({"k" * 65536: 1}, "has 65536 bytes"),
        ({"general.alignment": 3}, "expected a power of two as uint32"),
        ({"general.alignment": Typed("uint64", 32)}, "is 32 .uint64., expected a power of two as uint32"),
    ],
)
def test_metadata_that_gguf_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, [])
    assert list(tmp_path.iterdir()) == []


def test_typed_knows_its_types() -> None:
    with pytest.raises(ValueError, match=r"unknown metadata type 'int'; expected one of uint8, .* \[\]"):
        Typed("int", 3)


@pytest.mark.parametrize("alignment", [32, 8, 4096])
def test_gguf_py_reads_every_written_tensor_type(tmp_path: Path, alignment: int) -> None:
    values = {name: weights(3, 4, 64, seed=i) for i, name in enumerate(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])}
    integers = {name: np.arange(-3, 3, dtype=GGML_TYPES[name].values).reshape(2, 3) for name in ("I8", "I32", "F64")}
    tensors = [(f"t.{name}", a.shape, name, lambda a=a: a) for name, a in {**values, **integers}.items()]
    tensors += [("vector", (5,), "F32", lambda: np.ones(5, np.float32)), ("scalar", (), "F32", lambda: np.float32(2))]
    path = tmp_path / "m.gguf"
    write_gguf(path, {"general.architecture": "llama", "general.alignment": alignment}, tensors)
    reader, source = gguf.GGUFReader(path), open_gguf(path)
    assert [tensor.name for tensor in reader.tensors] == list(source.tensors) == [one[0] for one in tensors]
    for tensor in reader.tensors:
        assert tensor.data_offset % alignment == 0
        assert source.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
        assert source.raw(tensor.name).tobytes() == tensor.data.tobytes()
    for name, expected in values.items():
        quant = gguf.GGMLQuantizationType[name]
        wanted = gguf.dequantize(gguf.quantize(expected, quant), quant).reshape(expected.shape)
        np.testing.assert_array_equal(source.read(f"t.{name}").astype(np.float32), wanted)
    for name, expected in integers.items():
        np.testing.assert_array_equal(source.read(f"t.{name}"), expected)
    np.testing.assert_array_equal(source.read("scalar"), np.float32(2))
    source.close()


def test_packed_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (3, 2 * 144), np.uint8)
    write_gguf(tmp_path / "m.gguf", {}, [("w", (3, 512), "Q4_K", lambda: raw), ("v", [2], "BF16", lambda: raw[0, :4])])
    source = open_gguf(tmp_path / "m.gguf")
    np.testing.assert_array_equal(source.raw("w"), raw)
    np.testing.assert_array_equal(source.read("v"), raw[0, :4].view(ml_dtypes.bfloat16))
    source.close()


def test_a_reference_file_is_written_back_bit_for_bit(tmp_path: Path, shared: Path) -> None:
    for name in ("Q4_K_M", "BF16", "IQ2_XS"):
        source = open_gguf(shared / f"oracle/gguf/llama/{name}.gguf")
        tensors = [
            (info.name, info.shape, info.dtype, lambda info=info, source=source: source.raw(info.name))
            for info in source.tensors.values()
        ]
        write_gguf(tmp_path / "m.gguf", source.typed_metadata(), tensors)
        assert (tmp_path / "m.gguf").read_bytes() == (shared / f"oracle/gguf/llama/{name}.gguf").read_bytes()
        source.close()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("w", (4,), "F32", None), ("w", (4,), "F32", None)], "'w' is given twice"),
        ([("w" * 64, (4,), "F32", None)], "has 64 bytes, expected 1 ... 63"),
        ([("w", (1, 1, 1, 1, 4), "F32", None)], r"shape \(1, 1, 1, 1, 4\), expected up to 4 dimensions"),
        ([("w", (4, 0), "F32", None)], r"shape \(4, 0\), expected"),
        ([("w", (2, 33), "Q8_0", None)], r"'w' of \(2, 33\): Q8_0 packs 32 elements"),
        ([("w", (4,), "F8", None)], "unknown ggml type 'F8'"),
    ],
)
def test_tensors_that_gguf_cannot_hold_are_refused_before_anything_is_written(
    tmp_path: Path, tensors: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert list(tmp_path.iterdir()) == []


def fail(error: BaseException) -> Callable[[], np.ndarray]:
    def fetch() -> np.ndarray:
        raise error

    return fetch


@pytest.mark.parametrize(
    ("fetch", "error", "message"),
    [
        (fail(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
        (fail(OSError(errno.ENOSPC, "No space left")), OSError, "No space left"),
        (lambda: weights(5), ValueError, r"'b' is Q8_0 \(64,\) of 68 bytes, but its function gave float32 \(5,\)"),
        (lambda: np.full(64, np.nan), ValueError, "'b': Q8_0 holds no NaN"),
        (lambda: np.arange(64), ValueError, "'b': Q8_0 encodes floating-point values, not int64"),
    ],
)
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, fetch: Callable[[], np.ndarray], error: type[BaseException], message: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"before")
    tensors = [("a", (1024,), "F32", lambda: weights(1024)), ("b", (64,), "Q8_0", fetch)]
    with pytest.raises(error, match=message):
        write_gguf(path, {}, tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"before"


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    """The system refuses to let the file grow, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_gguf(tmp_path / "m.gguf", {}, [("w", (1 << 16,), "F32", lambda: weights(1 << 16))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_writing_into_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_gguf(tmp_path / "none" / "m.gguf", {}, [])


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    # 2 MB of values each, 1 MB in the file.
    tensors = [(f"t{i}", (512, 1024), "F16", lambda i=i: np.full((512, 1024), i, np.float32)) for i in range(12)]
    tracemalloc.start()
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20
    source = open_gguf(tmp_path / "m.gguf")
    np.testing.assert_array_equal(source.raw("t5"), encode("F16", np.full((512, 1024), 5, np.float32)))
    source.close()
