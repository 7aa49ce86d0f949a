"""Importance matrices of llama.cpp: both formats, and damaged ones."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from helpers import read_golden

from converters.gguf.imatrix import read_imatrix
from converters.gguf.importance import by_path, write_imatrix
from converters.gguf.writer import write_gguf
from forge_jax.exporting import export_gguf
from forge_jax.loading import Model
from forge_jax.params import abstract, flatten, unflatten


def dat(*entries: tuple[str, int, list[float]], tail: bytes = b"", count: int | None = None) -> bytes:
    """The older format: name, number of calls, sums."""
    out = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, sums in entries:
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(sums))
        out += np.array(sums, "<f4").tobytes()
    return out + tail


def gguf(path: Path, tensors: dict[str, Any]) -> Path:
    arrays = {name: np.array(value, np.float32) for name, value in tensors.items()}
    write_gguf(
        path,
        {"general.type": "imatrix", "imatrix.chunk_count": 2, "imatrix.chunk_size": 512},
        [(name, array.shape, "F32", lambda array=array: array) for name, array in arrays.items()],
    )
    return path


@pytest.mark.parametrize("tail", [b"", struct.pack("<ii4s", 12, 4, b"text")])
def test_older_format(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat(("blk.0.attn_q.weight", 4, [1, 2, 8]), ("blk.0.x.weight", 0, [3, 5]), tail=tail))
    found = read_imatrix(path)
    assert list(found) == ["blk.0.attn_q.weight", "blk.0.x.weight"]
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], np.array([0.25, 0.5, 2], np.float32))
    np.testing.assert_array_equal(found["blk.0.x.weight"], np.array([3, 5], np.float32))
    assert all(values.dtype == np.float32 for values in found.values())


def test_gguf_format_with_experts_of_which_one_was_never_chosen(tmp_path: Path) -> None:
    path = gguf(
        tmp_path / "imatrix.gguf",
        {
            "blk.0.ffn_up_exps.weight.in_sum2": [[2, 4, 6], [9, 9, 9]],
            "blk.0.ffn_up_exps.weight.counts": [[2], [0]],
            "blk.0.attn_q.weight.in_sum2": [[8, 16]],
            "blk.0.attn_q.weight.counts": [[4]],
        },
    )
    found = read_imatrix(path)
    assert set(found) == {"blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"}
    np.testing.assert_array_equal(
        found["blk.0.ffn_up_exps.weight"], np.array([[1, 2, 3], [1, 1, 1]], np.float32), strict=True
    )
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"], np.array([2, 4], np.float32), strict=True)


GOOD = dat(("a", 1, [1.0, 2.0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "takes 4 bytes, but 0 are left"),
        (dat(), "neither a GGUF nor an imatrix.dat"),
        (dat(count=-1), "the number of entries is 4294967295"),
        (dat(("a", 1, [1.0]), count=9), "the number of entries is 9"),
        (GOOD[:-1], "the number of values of a is 2, which needs at least 8 bytes, but 7 are left"),
        (dat(("a", 1, [1.0]), ("a", 1, [1.0])), "entry 1 \\('a'\\) is empty or there twice"),
        (dat(("a", 1, [])), "entry 0 \\('a'\\) is empty"),
        (dat(("a" * 64, 1, [1.0])), "has 64 bytes, expected at most 63"),
        (dat(("a", 1, [-1.0])), "a has numbers that are negative"),
        (dat(("a", 1, [float("nan")])), "a has numbers that are negative, infinite or NaN"),
        (struct.pack("<ii", 1, 2) + b"\xff\xff" + bytes(20), "the name of entry 0"),
    ],
)
def test_damaged_older_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_q.weight": [1.0]}, "no tensor's name ends in .in_sum2"),
        ({"a.in_sum2": [1.0]}, "a needs .in_sum2 and .counts, both F32"),
        ({"a.in_sum2": [1.0, 2, 3], "a.counts": [1.0, 2]}, "a has 3 sums for 2 counts"),
        ({"a.in_sum2": [-1.0], "a.counts": [1.0]}, "a has numbers that are negative"),
        ({"a.in_sum2": [1.0], "a.counts": [float("nan")]}, "a has counts that are negative, infinite or NaN"),
    ],
)
def test_ggufs_that_are_none(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    path = gguf(tmp_path / "imatrix.gguf", tensors)
    with pytest.raises(ValueError, match=message):
        read_imatrix(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_imatrix(tmp_path / "imatrix.dat")


@pytest.mark.parametrize("name", ["mixtral", "phi3", "qwen3_5_text"])
def test_importance_of_our_parameters_and_back(tmp_path: Path, name: str) -> None:
    """What is written for our paths is found for them again, experts each by itself."""
    spec, kind = read_golden(name).spec, str(read_golden(name).config["model_type"])
    described = dict(flatten(abstract(spec)))
    rng, own = np.random.default_rng(0), [path for path in described if path.endswith((".o", ".down"))]
    shapes = {path: (*param.shape[: param.stacked], param.fan_in) for path, param in described.items() if path in own}
    squares = {path: rng.random(shape) for path, shape in shapes.items()}
    counts = {path: np.full((*shape[:-1], 1), 4.0) for path, shape in shapes.items()}
    write_imatrix(tmp_path / "imatrix", spec, kind, squares, counts, chunks=1, length=4)
    found = by_path(read_imatrix(tmp_path / "imatrix"), spec, kind)
    assert found.keys() == squares.keys()
    for path, values in squares.items():
        np.testing.assert_array_equal(found[path], values.astype(np.float32) / 4, strict=True)


def test_importance_lies_where_the_columns_of_a_file_lie(tmp_path: Path) -> None:
    """qwen3_5's files have the heads of values in another order: weights that are their input's number tell which."""
    golden, path = read_golden("qwen3_5_text"), "layers.0.delta.o"
    leaves = dict(flatten(golden.params))
    sizes = leaves[path].shape
    squares = np.arange(sizes[0] * sizes[1], dtype=np.float32)
    leaves[path] = np.broadcast_to(squares.reshape(*sizes[:2], 1), sizes)
    model = Model(golden.spec, unflatten(leaves), None, golden.config)
    export_gguf(model, tmp_path / "model.gguf")
    write_imatrix(
        tmp_path / "imatrix", golden.spec, "qwen3_5_text", {path: squares}, {path: np.ones(1)}, chunks=1, length=1
    )
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "model.gguf").tensors}[
        "blk.0.ssm_out.weight"
    ]
    assert not np.array_equal(stored[0], squares)
    np.testing.assert_array_equal(read_imatrix(tmp_path / "imatrix")["blk.0.ssm_out.weight"], stored[0])


def test_importance_that_does_not_belong_to_a_model() -> None:
    spec = read_golden("llama").spec
    for wrong, message in (
        ({"blk.9.attn_q.weight": np.ones(64, np.float32)}, "1 entries of tensors that this model does not have"),
        ({"blk.0.attn_q.weight": np.ones(60, np.float32)}, "60 numbers for blk.0.attn_q.weight .* column, 64"),
    ):
        with pytest.raises(ValueError, match=message):
            by_path(wrong, spec, "llama")
    latent = read_golden("deepseek_v3").spec
    columns = {"blk.0.attn_k_b.weight": np.arange(1000, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"1000 numbers for blk.0.attn_k_b.weight"):
        by_path(columns, latent, "deepseek_v3")
    size = dict(flatten(abstract(latent)))["layers.0.attention.k"].shape[-1]
    with pytest.raises(ValueError, match=r"not the inputs of layers.0.attention.k; take importance from a text"):
        by_path({"blk.0.attn_k_b.weight": np.arange(size, dtype=np.float32)}, latent, "deepseek_v3")
