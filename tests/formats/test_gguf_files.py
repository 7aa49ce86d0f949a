"""GGUF files that are right: versions, byte orders, splits, every metadata type, gguf-py as the oracle."""

import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from converters.gguf import GGML_TYPES, GGUFSource, Typed, encode, open_gguf, write_gguf
from converters.source import TensorSource

gguf = pytest.importorskip("gguf")


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], metadata: Mapping[str, Any]) -> Path:
    write_gguf(path, metadata, [(name, a.shape, kind, lambda a=a: a) for name, (kind, a) in tensors.items()])
    return path


def by_gguf_py(path: Path, big_endian: bool = False) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """A file with every scalar and array type and every plain tensor type, written by gguf-py."""
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    scalars = {
        "uint8": 200,
        "int8": -100,
        "uint16": 60000,
        "int16": -30000,
        "uint32": 4_000_000_000,
        "int32": -2_000_000_000,
        "uint64": 2**63 + 5,
        "int64": -(2**62),
        "float32": 0.15625,
        "float64": 1e-300,
        "bool": True,
    }
    for name, value in scalars.items():
        writer.add_key_value(f"a.{name}", value, gguf.GGUFValueType[name.upper()])
    writer.add_string("a.string", "grüße ☃ 🦙")
    arrays = {"tokens": ["a", "", "ü🦙", "x" * 300], "scores": [0.5, -1.25], "types": [1, -6], "flags": [True, False]}
    for name, value in arrays.items():
        writer.add_array(f"b.{name}", value)
    tensors = {
        "f32": weights(3, 4, 5),
        "f16": weights(6, 2).astype(np.float16),
        "f64": weights(7).astype(np.float64),
        "i8": np.arange(-5, 5, dtype=np.int8).reshape(2, 5),
        "i16": np.arange(-5, 5, dtype=np.int16).reshape(5, 2),
        "i32": np.arange(-5, 5, dtype=np.int32),
        "i64": np.arange(-5, 5, dtype=np.int64).reshape(1, 1, 2, 5),
    }
    for name, value in tensors.items():
        writer.add_tensor(name, value.copy())  # gguf-py swaps the bytes of its argument in place
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors, {f"a.{k}": v for k, v in scalars.items()} | {f"b.{k}": v for k, v in arrays.items()}


@pytest.mark.parametrize("big_endian", [False, True])
def test_reads_what_gguf_py_wrote(tmp_path: Path, big_endian: bool) -> None:
    path, tensors, metadata = by_gguf_py(tmp_path / "m.gguf", big_endian)
    source = open_gguf(path)
    assert isinstance(source, TensorSource)
    assert source.format == "gguf"
    assert list(source.tensors) == list(tensors)
    for name, expected in tensors.items():
        info, values = source.tensors[name], source.read(name)
        assert (info.shape, info.dtype, info.nbytes, info.file) == (
            expected.shape,
            name.upper(),
            expected.nbytes,
            path,
        )
        assert values.dtype == expected.dtype
        assert values.flags.writeable
        np.testing.assert_array_equal(values, expected)
        assert source.raw(name).tobytes() == expected.tobytes()
        assert source.raw(name).shape == (expected.size // expected.shape[-1], expected.itemsize * expected.shape[-1])
    for key, expected in metadata.items():
        value = source.metadata[key]
        if key.startswith("a."):
            assert value == expected
            assert type(value) is type(expected)
            assert source.types[key] == key.removeprefix("a.")
        else:
            assert list(value) == expected
    assert source.metadata["a.string"] == "grüße ☃ 🦙"
    assert [source.types[f"b.{name}"] for name in ("tokens", "scores", "types", "flags")] == [
        "string[]",
        "float32[]",
        "int32[]",
        "bool[]",
    ]
    assert source.metadata["b.flags"].dtype == np.bool_
    source.close()


def swap_fields(name: str, raw: np.ndarray) -> np.ndarray:
    """What a big-endian machine stores, from the C structs: (offset, width, count) of the fields wider than a byte."""
    multi = {
        "Q4_0": [(0, 2, 1)],
        "Q4_1": [(0, 2, 2)],
        "Q5_1": [(0, 2, 2), (4, 4, 1)],
        "Q8_0": [(0, 2, 1)],
        "Q2_K": [(80, 2, 2)],
        "Q4_K": [(0, 2, 2)],
        "Q6_K": [(208, 2, 1)],
        "Q8_K": [(0, 4, 1), (260, 2, 16)],
        "IQ2_XS": [(0, 2, 33)],
        "IQ3_XXS": [(0, 2, 1), (66, 4, 8)],
        "IQ1_M": [(48, 2, 4)],
        "MXFP4": [],
        "NVFP4": [],
    }[name]
    swapped = raw.reshape(-1, GGML_TYPES[name].nbytes).copy()
    for offset, width, count in multi:
        for at in range(offset, offset + width * count, width):
            swapped[:, at : at + width] = swapped[:, at : at + width][:, ::-1].copy()
    return swapped.reshape(raw.shape)


BIG_ENDIAN = [
    "Q4_0",
    "Q4_1",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q4_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_M",
    "MXFP4",
    "NVFP4",
]


def big_endian_file(path: Path, name: str, raw: np.ndarray, columns: int) -> Path:
    header = b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + struct.pack(">Q", 1) + b"w"
    header += struct.pack(">IQQIQ", 2, columns, len(raw), GGML_TYPES[name].id, 0)
    path.write_bytes(header + bytes(-len(header) % 32) + swap_fields(name, raw).tobytes())
    return path


@pytest.mark.parametrize("name", BIG_ENDIAN)
def test_packed_blocks_of_big_endian_files_are_brought_into_little_endian_form(tmp_path: Path, name: str) -> None:
    kind = GGML_TYPES[name]
    raw = np.random.default_rng(0).integers(0, 256, (3, 2 * kind.nbytes), np.uint8)
    source = open_gguf(big_endian_file(tmp_path / "big.gguf", name, raw, 2 * kind.block))
    np.testing.assert_array_equal(source.raw("w"), raw)
    assert source.read("w").shape == (3, 2 * kind.block)
    source.close()


def test_big_endian_iq2_xxs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    header = b"GGUF" + struct.pack(">IQQQ", 3, 1, 0, 1) + b"w" + struct.pack(">IQIQ", 1, 256, 16, 0)
    path.write_bytes(header + bytes(200))
    with pytest.raises(ValueError, match="IQ2_XXS, which has no defined big-endian layout"):
        open_gguf(path)


@pytest.mark.parametrize(("version", "count"), [(1, "I"), (2, "Q"), (3, "Q")])
def test_versions_differ_in_the_width_of_counts(tmp_path: Path, version: int, count: str) -> None:
    def string(text: bytes) -> bytes:
        return struct.pack(f"<{count}", len(text)) + text

    header = b"GGUF" + struct.pack(f"<I{count}{count}", version, 1, 2)
    header += string(b"k") + struct.pack("<I", 8) + string(b"text")
    header += string(b"t") + struct.pack(f"<II{count}", 9, 8, 2) + string(b"ab") + string(b"")
    header += string(b"w") + struct.pack(f"<I{count}{count}IQ", 2, 3, 2, 0, 0)
    path = tmp_path / "old.gguf"
    path.write_bytes(header + bytes(-len(header) % 32) + np.arange(6, dtype="<f4").tobytes())
    source = open_gguf(path)
    assert dict(source.metadata) == {"k": "text", "t": ["ab", ""]}
    np.testing.assert_array_equal(source.read("w"), np.arange(6, dtype=np.float32).reshape(2, 3))
    source.close()


def split_model(folder: Path, count: int = 3) -> tuple[list[Path], dict[str, np.ndarray]]:
    """A model in `count` shards of two tensors each, with the metadata that llama.cpp's splitter writes."""
    tensors = {f"t{i}": weights(2, 32, seed=i) for i in range(2 * count)}
    paths = []
    for i in range(count):
        split = {
            "split.no": Typed("uint16", i),
            "split.count": Typed("uint16", count),
            "split.tensors.count": Typed("int32", 2 * count),
        }
        part = {name: ("F32", tensors[name]) for name in (f"t{2 * i}", f"t{2 * i + 1}")}
        path = folder / f"model-{i + 1:05d}-of-{count:05d}.gguf"
        paths.append(write_tensors(path, part, {"general.name": "split"} | split if i == 0 else split))
    return paths, tensors


def assert_same_tensors(source: GGUFSource, tensors: Mapping[str, np.ndarray]) -> None:
    assert list(source.tensors) == list(tensors)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(source.read(name), expected)


def test_split_model_opens_from_any_shard_or_from_all(tmp_path: Path) -> None:
    paths, tensors = split_model(tmp_path)
    for given in (*paths, paths[::-1], str(paths[0])):
        source = open_gguf(given)
        assert_same_tensors(source, tensors)
        assert source.metadata["general.name"] == "split"
        assert source.metadata["split.no"] == 0
        assert source.tensors["t5"].file == paths[2]
        source.close()


def test_split_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    paths, _ = split_model(tmp_path)
    other = tmp_path / "other.gguf"
    other.write_bytes(paths[1].read_bytes())
    with pytest.raises(ValueError, match=r"split.count is 3, so the name should end in -<number>-of-00003.gguf"):
        open_gguf(other)
    with pytest.raises(ValueError, match=r"shard 1 of 3 .*expected shard 0 of 2"):
        open_gguf(paths[1:])
    with pytest.raises(ValueError, match=r"shard 0 of 3 .*expected shard 1 of 3"):
        open_gguf([paths[0], paths[0], paths[1]])
    with pytest.raises(ValueError, match="at least one path"):
        open_gguf([])
    paths[2].unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are missing beside it: model-00003-of-00003.gguf"):
        open_gguf(paths[0])


def test_shards_that_disagree_are_refused(tmp_path: Path) -> None:
    def shard(i: int, name: str, total: int = 2) -> Path:
        split = {"split.no": i, "split.count": 2, "split.tensors.count": total}
        return write_tensors(tmp_path / f"m-{i + 1:05d}-of-00002.gguf", {name: ("F32", weights(4))}, split)

    paths = [shard(0, "a"), shard(1, "a")]
    with pytest.raises(ValueError, match="'a' is also in .*m-00001-of-00002.gguf"):
        open_gguf(paths)
    paths = [shard(0, "a", total=3), shard(1, "b", total=3)]
    with pytest.raises(ValueError, match="split.tensors.count is 3, but the shards hold 2"):
        open_gguf(paths[1])
    with pytest.raises(ValueError, match="split.no is 'x', expected a count"):
        open_gguf(write_tensors(tmp_path / "m.gguf", {}, {"split.no": "x", "split.count": 1}))


def test_reading_needs_an_open_source_and_a_known_name(tmp_path: Path) -> None:
    source = open_gguf(write_tensors(tmp_path / "m.gguf", {"w": ("BF16", weights(2, 3))}, {}))
    assert source.read("w").dtype == ml_dtypes.bfloat16
    with pytest.raises(KeyError, match="no tensor 'x' among the 1 of"):
        source.read("x")
    source.close()
    source.close()
    with pytest.raises(ValueError, match="cannot read 'w', the source is closed"):
        source.read("w")


def test_values_outlive_source_and_file_and_a_file_cut_later_is_noticed(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.gguf", {"a": ("Q8_0", weights(4, 32)), "b": ("F32", weights(5))}, {})
    source = open_gguf(path)
    kept = source.read("a")
    expected = kept.copy()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 20)
    with pytest.raises(ValueError, match=r"m.gguf: the file ended after \d+ of 20 bytes"):
        source.read("b")
    source.close()
    path.unlink()
    np.testing.assert_array_equal(kept, expected)


def test_metadata_that_is_not_utf8_survives_a_round_trip(tmp_path: Path) -> None:
    raw = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IQ", 8, 3) + b"a\xff\xc3"
    (tmp_path / "m.gguf").write_bytes(raw)
    source = open_gguf(tmp_path / "m.gguf")
    write_gguf(tmp_path / "n.gguf", source.typed_metadata(), [])
    source.close()
    assert (tmp_path / "n.gguf").read_bytes().rstrip(b"\0") == raw


def test_strings_and_arrays_longer_than_the_read_window(tmp_path: Path) -> None:
    metadata = {
        "long": "ä" * 3_000_000,
        "tokens": ["x" * (i % 50) for i in range(100_000)] + ["y" * 2_500_000, "z"],
        "scores": np.arange(700_000, dtype=np.float64),
        "empty": Typed("float32[]", []),
        "nothing": Typed("string[]", []),
        "last": "end",
    }
    write_gguf(tmp_path / "m.gguf", metadata, [])
    source = open_gguf(tmp_path / "m.gguf")
    assert source.metadata["long"] == metadata["long"]
    assert source.metadata["tokens"] == metadata["tokens"]
    np.testing.assert_array_equal(source.metadata["scores"], metadata["scores"])
    assert (len(source.metadata["empty"]), source.metadata["nothing"], source.metadata["last"]) == (0, [], "end")
    source.close()


def test_opening_and_reading_one_tensor_does_not_touch_the_others(tmp_path: Path) -> None:
    tensors = {f"t{i}": ("F32", weights(512, 1024, seed=i)) for i in range(8)}  # 2 MB each
    path = write_tensors(tmp_path / "m.gguf", tensors, {})
    tracemalloc.start()
    source = open_gguf(path)
    values = source.read("t5")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(values, tensors["t5"][1])
    assert peak < 5 << 20
    source.close()


def test_every_reference_file_opens_and_agrees_with_gguf_py(shared: Path) -> None:
    paths = sorted((shared / "oracle/gguf").glob("*/*.gguf"))
    assert len(paths) >= 30
    for path in paths:
        if path.name == "Q2_0.gguf":  # newer than gguf-py 0.19; test_gguf_blocks reads it
            continue
        source, reader = open_gguf(path), gguf.GGUFReader(path)
        assert list(source.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            np.testing.assert_array_equal(source.raw(tensor.name).ravel(), tensor.data.view(np.uint8).ravel())
            assert np.isfinite(source.read(tensor.name).astype(np.float32)).all(), (path, tensor.name)
            assert source.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
        source.close()


def test_every_vocabulary_opens_and_agrees_with_gguf_py(shared: Path) -> None:
    paths = sorted((shared / "tokenizers").glob("*.gguf"))
    assert len(paths) >= 5
    for path in paths:
        source = open_gguf(path)
        small = path.name == "ggml-vocab-phi-3.gguf"  # gguf-py takes seconds for each
        reader = gguf.GGUFReader(path) if small else None
        assert len(source.metadata["tokenizer.ggml.tokens"]) == len(source.metadata["tokenizer.ggml.token_type"])
        for key, value in source.metadata.items() if reader else ():
            expected = reader.fields[key].contents()
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected, (path, key)
        source.close()


def test_encode_then_read_is_what_decode_gives(tmp_path: Path) -> None:
    values = weights(3, 64)
    path = write_tensors(tmp_path / "m.gguf", {"w": ("Q5_1", values)}, {})
    source = open_gguf(path)
    np.testing.assert_array_equal(source.raw("w"), encode("Q5_1", values))
    assert np.abs(source.read("w") - values).max() < 0.1
    source.close()
