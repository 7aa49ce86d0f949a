"""Importance matrices of llama.cpp: both formats, and damaged ones."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.gguf.imatrix import read_imatrix
from converters.gguf.writer import write_gguf


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
