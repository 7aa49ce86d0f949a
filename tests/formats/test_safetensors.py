"""safetensors against the safetensors package (values, bytes) and against files that lie."""

import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from converters.safetensors_file import Entry, dtype_name, open_safetensors, write_safetensors, write_sharded
from converters.source import TensorSource

DTYPES = [
    *(np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64),
    *(np.float16, np.float32, np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
    *(ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz),
]


def samples() -> dict[str, np.ndarray]:
    """One tensor of every dtype, every byte pattern kept; a scalar, an empty and a rank-4 tensor."""
    rng = np.random.default_rng(0)
    out = {}
    for i, dtype in enumerate(map(np.dtype, DTYPES)):
        raw = rng.integers(0, 2 if dtype == np.bool_ else 256, (3, 5 * dtype.itemsize), np.uint8)
        out[f"t{i}.{dtype.name}"] = raw.view(dtype)
    scalar, empty = np.array(2.5, np.float32), np.zeros((4, 0, 2), np.float16)
    return out | {"scalar": scalar, "empty": empty, "naïve ☃": np.arange(24, dtype=np.int32).reshape(2, 3, 1, 4)}


def entries(tensors: dict[str, np.ndarray]) -> list[Entry]:
    return [Entry(name, a.shape, dtype_name(a.dtype), lambda a=a: a) for name, a in tensors.items()]


def assert_holds(source: TensorSource, tensors: dict[str, np.ndarray]) -> None:
    assert set(source.tensors) == set(tensors)
    for name, expected in tensors.items():
        value = source.read(name)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.tobytes() == expected.tobytes(), name


def craft(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_package_writes(tmp_path):
    safetensors.numpy.save_file(samples(), tmp_path / "m.safetensors", {"format": "pt"})
    source = open_safetensors(tmp_path / "m.safetensors")
    assert isinstance(source, TensorSource)
    assert source.format == "safetensors"
    assert source.metadata == {"format": "pt"}
    assert_holds(source, samples())
    source.close()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"naïve ☃": 'quote " and \\ and \n'}])
def test_writes_byte_for_byte_what_the_package_writes(tmp_path, metadata):
    safetensors.numpy.save_file(samples(), tmp_path / "theirs", metadata)
    write_safetensors(tmp_path / "ours", entries(samples()), metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_float4_is_unpacked_low_half_first_and_written_back(tmp_path):
    craft(tmp_path / "a", {"x": entry("F4", (2, 4), (0, 4))}, bytes([0x21, 0x43, 0x65, 0xF7]))
    value = open_safetensors(tmp_path / "a").read("x")
    assert value.dtype == ml_dtypes.float4_e2m1fn
    np.testing.assert_array_equal(value.astype(np.float32), [[0.5, 1, 1.5, 2], [3, 4, 6, -6]])
    write_safetensors(tmp_path / "b", [Entry("x", (2, 4), "F4", lambda: value)])
    assert (tmp_path / "b").read_bytes()[-4:] == bytes([0x21, 0x43, 0x65, 0xF7])


def test_float6_is_listed_but_not_read(tmp_path):
    source = open_safetensors(craft(tmp_path / "a", {"x": entry("F6_E2M3", (4,), (0, 3))}, b"abc"))
    assert source.tensors["x"].nbytes == 3
    with pytest.raises(ValueError, match="F6_E2M3.*not standardised"):
        source.read("x")


def test_read_gives_memory_of_its_own(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"x": np.arange(4, dtype=np.float32)}, path)
    source = open_safetensors(path)
    value = source.read("x")
    source.close()
    path.write_bytes(b"gone")
    value[0] = 7
    np.testing.assert_array_equal(value, [7, 1, 2, 3])
    with pytest.raises(ValueError, match="closed"):
        source.read("x")
    with pytest.raises(KeyError):
        source.read("y")


def test_reading_peaks_at_one_tensor(tmp_path):
    tensors = {f"t{i}": np.zeros(2**20, np.float32) for i in range(4)}
    safetensors.numpy.save_file(tensors, tmp_path / "m.safetensors")
    tracemalloc.start()
    source = open_safetensors(tmp_path / "m.safetensors")
    for name in source.tensors:
        source.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20 + 2**18  # one tensor of 4 MB


BAD_HEADERS = {
    "empty file": (b"", b"", None, "is empty or was cut off"),
    "no object": ([1], b"", None, "is a list, not an object"),
    "no JSON": (b"{]", b"", None, "not valid JSON"),
    "no UTF-8": (b'{"\xff":1}', b"", None, "not UTF-8"),
    "half a surrogate pair": (b'{"\\ud800":1}', b"", None, "not UTF-8"),
    "deep nesting": (b'{"a":' + b"[" * 10**5, b"", None, "nested too deeply"),
    "huge number": (b'{"a":' + b"9" * 10**5 + b"}", b"", None, "not valid JSON"),
    "NaN": (b'{"a":NaN}', b"", None, "NaN is not JSON"),
    "length past the end": ({}, b"", 3, "no safetensors file"),
    "length 2^64-1": ({}, b"", 2**64 - 1, "no safetensors file"),
    "name twice": (b'{"a":{},"a":{}}', b"", None, "'a' appears twice"),
    "entry is no object": ({"x": 3}, b"", None, "'x': needs dtype, shape"),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 0]}}, b"", None, "needs dtype, shape"),
    "unknown dtype": ({"x": entry("F33")}, bytes(8), None, "dtype 'F33' is unknown"),
    "dtype is a list": ({"x": entry(["F32"])}, bytes(8), None, "is unknown"),
    "negative size": ({"x": entry(shape=(-2,))}, bytes(8), None, "shape must be"),
    "size is a float": ({"x": entry(shape=(2.0,))}, bytes(8), None, "shape must be"),
    "size is a bool": ({"x": entry(shape=(2, True))}, bytes(8), None, "shape must be"),
    "size 2^64": ({"x": entry(shape=(2**64, 0), offsets=(0, 0))}, b"", None, "shape must be"),
    "too many dimensions": ({"x": entry(shape=[1] * 65)}, bytes(4), None, "at most 64"),
    "product beyond any address": ({"x": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}, b"", None, "below 2\\^60"),
    "half a byte": ({"x": entry("F4", (3,), (0, 1))}, bytes(1), None, "whole number of bytes"),
    "wrong size": ({"x": entry(shape=(3,))}, bytes(8), None, "takes 12 bytes"),
    "three offsets": ({"x": entry(offsets=(0, 8, 8))}, bytes(8), None, "must be .begin, end."),
    "reversed offsets": ({"x": entry(offsets=(8, 0))}, bytes(8), None, "must be .begin, end."),
    "hole at the start": ({"x": entry(offsets=(4, 12))}, bytes(12), None, "leaves a hole"),
    "hole between": (
        {"x": entry(), "y": entry(offsets=(12, 20))},
        bytes(20),
        None,
        "'y' begins at byte 12 of the data, not 8: it leaves a hole",
    ),
    "overlap": ({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12), None, "overlaps"),
    "same data twice": ({"x": entry(), "y": entry()}, bytes(8), None, "overlaps"),
    "truncated": ({"x": entry()}, bytes(7), None, "was cut off"),
    "bytes left over": ({"x": entry()}, bytes(9), None, "no tensor uses"),
    "metadata is a list": ({"__metadata__": ["a"]}, b"", None, "strings to strings"),
    "metadata holds a number": ({"__metadata__": {"a": 1}}, b"", None, "strings to strings"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_is_refused_with_the_reason(tmp_path, case):
    header, data, length, message = BAD_HEADERS[case]
    path = craft(tmp_path / "m.safetensors", header, data, length)
    if case == "empty file":
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=message) as caught:
        open_safetensors(path)
    assert "m.safetensors" in str(caught.value)


def test_header_of_many_values_is_refused_before_it_is_parsed(tmp_path):
    path = craft(tmp_path / "m.safetensors", b'{"a":[' + b"[]," * 10**6 + b"[]]}")
    tracemalloc.start()
    with pytest.raises(ValueError, match="would take"):
        open_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * path.stat().st_size


def test_bool_bytes_other_than_0_and_1_are_refused(tmp_path):
    source = open_safetensors(craft(tmp_path / "m", {"x": entry("BOOL", (2,), (0, 2))}, b"\x01\x02"))
    with pytest.raises(ValueError, match="holds a byte 2"):
        source.read("x")


def test_a_file_that_shrinks_after_opening_is_an_error(tmp_path):
    path = craft(tmp_path / "m", {"x": entry()}, bytes(8))
    source = open_safetensors(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ValueError, match="the file ended at byte"):
        source.read("x")


def test_a_missing_file_and_a_pipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_safetensors(tmp_path / "m.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        open_safetensors(tmp_path / "pipe")


# --- shards


@pytest.fixture
def sharded(tmp_path) -> Path:
    tensors = {f"t{i}": np.full(4, i, np.float32) for i in range(5)}
    files = write_sharded(tmp_path, entries(tensors), 32, {"format": "pt"})
    assert [file.name for file in files] == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    return tmp_path


def rewrite_index(directory: Path, **changes: str) -> None:
    path = directory / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"] |= changes
    path.write_text(json.dumps(content))


def test_shards_open_by_directory_by_index_by_list_and_without_index(sharded):
    tensors = {f"t{i}": np.full(4, i, np.float32) for i in range(5)}
    assert json.loads((sharded / "model.safetensors.index.json").read_text())["metadata"] == {"total_size": 80}
    assert_holds(open_safetensors(sharded), tensors)
    assert_holds(open_safetensors(sharded / "model.safetensors.index.json"), tensors)
    assert_holds(open_safetensors(sorted(sharded.glob("*.safetensors"))), tensors)
    (sharded / "model.safetensors.index.json").unlink()
    source = open_safetensors(sharded)
    assert_holds(source, tensors)
    assert source.tensors["t4"].file.name == "model-00003-of-00003.safetensors"


def test_the_hub_client_reads_the_shards(sharded):
    torch = pytest.importorskip("torch")
    from huggingface_hub import load_torch_model

    module = torch.nn.ParameterDict({f"t{i}": torch.zeros(4) for i in range(5)})
    load_torch_model(module, sharded)
    assert [module[f"t{i}"].tolist()[3] for i in range(5)] == [0, 1, 2, 3, 4]


def test_one_shard_needs_no_index(tmp_path):
    files = write_sharded(tmp_path, entries(samples()), 10**6)
    assert files == [tmp_path / "model.safetensors"]
    assert_holds(open_safetensors(tmp_path), samples())


def test_a_tensor_above_the_limit_gets_its_own_shard(tmp_path):
    tensors = {"small": np.zeros(1, np.float32), "large": np.zeros(100, np.float32), "last": np.zeros(1, np.float32)}
    files = write_sharded(tmp_path, entries(tensors), 16)
    assert [list(open_safetensors(file).tensors) for file in files[:-1]] == [["small"], ["large"], ["last"]]


def test_missing_shard_is_named_with_what_it_holds(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of 3 shards missing: model-00002-of-00003.safetensors \(with 2 ten"
    ):
        open_safetensors(sharded)
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards missing: model-00002-of-00003.safetensors"):
        open_safetensors(sharded)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "", "a\\b", "C:x"])
def test_a_shard_outside_the_directory_is_refused(sharded, name):
    rewrite_index(sharded, t0=name)
    with pytest.raises(ValueError, match="a shard is a file name in this directory"):
        open_safetensors(sharded)


def test_index_that_disagrees_with_its_shards(sharded):
    rewrite_index(sharded, t9="model-00001-of-00003.safetensors")
    with pytest.raises(ValueError, match=r"'t9' is here, but no shard holds it \(1 such"):
        open_safetensors(sharded)
    rewrite_index(sharded, t9="model-00001-of-00003.safetensors", t3="model-00001-of-00003.safetensors")
    with pytest.raises(ValueError, match=r"'t3' is here, but it is in model-00002-of-00003.safetensors \(2 such"):
        open_safetensors(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    content = (sharded / "model-00001-of-00003.safetensors").read_bytes()
    (sharded / "model-00002-of-00003.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="'t0' is also in model-00001-of-00003"):
        open_safetensors(sharded)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}']
)
def test_bad_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="weight_map|a shard is a file name"):
        open_safetensors(sharded)


def test_several_unrelated_files_are_not_guessed_between(tmp_path):
    for name in ("a", "b"):
        safetensors.numpy.save_file({name: np.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"2 checkpoint files, no index \(a.safetensors, b.safetensors\)"):
        open_safetensors(tmp_path)
    safetensors.numpy.save_file({"c": np.zeros(1)}, tmp_path / "model.safetensors")
    assert list(open_safetensors(tmp_path).tensors) == ["c"]  # the usual name wins
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors"):
        open_safetensors(tmp_path / "empty")


# --- writing


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Entry("x", (3,), "F32", lambda: np.zeros(2, np.float32)), "announced as F32"),
        (Entry("x", (2,), "F32", lambda: np.zeros(2, np.float64)), "got float64"),
        (Entry("x", (2,), "Q4_K", lambda: np.zeros(2)), "cannot be written"),
        (Entry("x", (3,), "F4", lambda: np.zeros(3, ml_dtypes.float4_e2m1fn)), "cannot be written"),
        (Entry("__metadata__", (1,), "F32", lambda: np.zeros(1, np.float32)), "the name is taken"),
        (Entry("ok", (1,), "F32", lambda: np.zeros(1, np.float32)), "'ok': the name is taken"),
    ],
)
def test_a_wrong_entry_leaves_nothing_and_spares_the_old_file(tmp_path, item, message):
    (tmp_path / "m").write_bytes(b"old")
    good = Entry("ok", (1,), "F32", lambda: np.zeros(1, np.float32))
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "m", [good, item])
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"old"


def test_dtypes_without_a_safetensors_name():
    assert [dtype_name(np.dtype(dtype)) for dtype in (np.float32, ml_dtypes.bfloat16)] == ["F32", "BF16"]
    with pytest.raises(ValueError, match="no type for complex128"):
        dtype_name(np.dtype(np.complex128))


def test_every_reference_checkpoint_reads_as_the_package_reads_it(shared):
    paths = sorted((shared / "oracle" / "corpus").glob("*/model.safetensors"))[::8]
    assert paths
    for path in paths:
        assert_holds(open_safetensors(path), safetensors.numpy.load_file(path))
