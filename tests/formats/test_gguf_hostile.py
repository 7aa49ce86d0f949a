"""GGUF files that lie: each is a ValueError that says where and what, at once and without allocating what it claims."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from converters.gguf import header, open_gguf


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, type: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", type) + value


def tensor(name: bytes, dims: list[int], type: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type, offset)


def model(keys: list[bytes], tensors: list[bytes], data: int = 0, alignment: int = 32) -> bytes:
    """A file of version 3 with the given parts and `data` bytes of tensor data."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % alignment if data else 0) + bytes(data)


NAME = key(b"general.name", 8, string(b"x"))
HUGE = struct.pack("<Q", 1 << 62)
HUGEST = struct.pack("<Q", 1 << 63)

BAD = {
    "empty file": (b"", "at byte 0: the magic number takes 4 bytes, but 0 are left"),
    "wrong magic": (b"GGML" + bytes(40), "found b'GGML', expected b'GGUF'"),
    "version 99": (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "at byte 4: found GGUF version 99, expected 1, 2 or 3"),
    "version 0": (b"GGUF" + bytes(20), "found GGUF version 0"),
    "2^63 tensors": (b"GGUF" + struct.pack("<I", 3) + HUGEST + bytes(8), "at byte 8: the number of tensors is"),
    "2^62 keys": (b"GGUF" + struct.pack("<IQ", 3, 0) + HUGE, "at byte 16: the number of metadata keys is"),
    "array of 2^63 strings": (model([key(b"k", 9, struct.pack("<I", 8) + HUGEST)], []), "elements of 'k' is 9223372"),
    "array of 2^63 bytes": (model([key(b"k", 9, struct.pack("<I", 0) + HUGEST)], []), "elements of 'k' is 9223372"),
    "array of 2^62 doubles": (model([key(b"k", 9, struct.pack("<I", 12) + HUGE)], []), "elements of 'k' is"),
    "array of 2^63 booleans": (model([key(b"k", 9, struct.pack("<I", 7) + HUGEST)], []), "elements of 'k' is"),
    "string of 2^62": (model([key(b"k", 8, HUGE)], []), "the length of the value of 'k' is 4611686018427387904"),
    "string one too long": (model([key(b"k", 8, struct.pack("<Q", 2) + b"x")], []), "is 2, .* but 1 are left"),
    "string in array too long": (
        model([key(b"k", 9, struct.pack("<IQ", 8, 2) + string(b"a") + HUGE)], []),
        "the length of element 1 of 'k' is",
    ),
    "key of 2^62": (model([HUGE + bytes(50)], []), "the length of a metadata key is"),
    "key of 70000": (model([key(b"k" * 70000, 4, bytes(4))], []), "has 70000 bytes, expected at most 65535"),
    "key that is not UTF-8": (model([key(b"\xff", 4, bytes(4))], []), "a metadata key is not UTF-8"),
    "duplicate key": (model([NAME, NAME], []), "the metadata key 'general.name' appears twice"),
    "value type 13": (model([key(b"k", 13, bytes(8))], []), "'k' has the value type 13, expected 0 ... 12"),
    "array of arrays": (model([key(b"k", 9, struct.pack("<IQ", 9, 0))], []), "an array of the type 9"),
    "boolean of 2": (model([key(b"k", 7, b"\2")], []), "holds a boolean of 2, expected 0 or 1"),
    "alignment 3": (model([key(b"general.alignment", 4, struct.pack("<I", 3))], []), "is 3 .uint32., expected a power"),
    "alignment 0": (model([key(b"general.alignment", 4, bytes(4))], []), "is 0 .uint32., expected a power of two"),
    "alignment as text": (model([key(b"general.alignment", 8, string(b"32"))], []), "is '32' .string., expected"),
    "tensor name of 64": (model([], [tensor(b"n" * 64, [4])], 16), "has 64 bytes, expected at most 63"),
    "tensor name of 2^62": (model([], [HUGE + bytes(40)]), "the length of a tensor's name is"),
    "200 dimensions": (model([], [tensor(b"t", [1] * 200)], 32), "'t' has 200 dimensions, expected at most 4"),
    "2^32 - 1 dimensions": (model([], [string(b"t") + b"\xff" * 4 + bytes(40)]), "has 4294967295 dimensions"),
    "product overflows": (model([], [tensor(b"t", [1 << 33, 1 << 33])], 32), "elements, expected 1 ... 2.63"),
    "product wraps to 0": (model([], [tensor(b"t", [1 << 32, 1 << 32])], 32), "elements, expected 1 ... 2.63"),
    "no elements": (model([], [tensor(b"t", [0, 1 << 62])], 32), "has 0 elements"),
    "2^62 elements": (model([], [tensor(b"t", [1 << 62])], 32), "takes the bytes .* but the file has"),
    "unknown type": (model([], [tensor(b"t", [4], type=99)], 32), "'t' has the ggml type 99, which is not known"),
    "removed type": (model([], [tensor(b"t", [4], type=31)], 32), "31 .Q4_0_4_4, removed from ggml"),
    "half a block": (model([], [tensor(b"t", [33], type=2)], 64), "Q4_0 packs 32 elements to a block"),
    "offset past the end": (model([], [tensor(b"t", [8], offset=32)], 32), "takes the bytes .* but the file has"),
    "offset of 2^63": (model([], [tensor(b"t", [8], offset=1 << 63)], 32), "takes the bytes"),
    "unaligned": (model([], [tensor(b"t", [4], offset=8)], 64), "has the offset 8, expected a multiple of 32"),
    "overlap": (
        model([], [tensor(b"a", [9]), tensor(b"b", [4], offset=32)], 64),
        "'a' and 'b' overlap: the first ends at byte",
    ),
    "same place": (model([], [tensor(b"b", [4]), tensor(b"a", [4])], 64), "'b' and 'a' overlap"),
    "duplicate tensor": (model([], [tensor(b"a", [8]), tensor(b"a", [8], offset=32)], 64), "'a' appears twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_lie_is_a_clear_error_at_once(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert peak < 2 << 20


def sound() -> bytes:
    """A small file with one of everything, whose every tensor byte is needed."""
    keys = [
        NAME,
        key(b"n", 4, struct.pack("<I", 7)),
        key(b"words", 9, struct.pack("<IQ", 8, 2) + string(b"one") + string(b"two")),
        key(b"flags", 9, struct.pack("<IQ", 7, 3) + b"\0\1\1"),
        key(b"scores", 9, struct.pack("<IQ", 6, 2) + struct.pack("<2f", 1, 2)),
    ]
    tensors = [tensor(b"f", [3, 2]), tensor(b"q", [32], 2, 32), tensor(b"h", [5], 1, 64), tensor(b"s", [], 0, 96)]
    return model(keys, tensors, 100)


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(sound())
    source = open_gguf(path)
    assert [source.read(name).shape for name in source.tensors] == [(2, 3), (32,), (5,), ()]
    source.close()


def test_every_truncation_is_noticed_when_opening(tmp_path: Path) -> None:
    data, path = sound(), tmp_path / "m.gguf"
    for length in {*range(0, len(data), 7), len(data) - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="m.gguf"):
            open_gguf(path)


def test_mutations_never_crash_or_swell(tmp_path: Path) -> None:
    """Flipped bytes and edges, in a header that is most of the file: ValueError or a source that reads."""
    rng = np.random.default_rng(0)
    path, good = tmp_path / "m.gguf", np.frombuffer(sound(), np.uint8)
    opened = 0
    for _ in range(600):
        data = good.copy()
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        path.write_bytes(data[: rng.integers(1, len(data))] if rng.random() < 0.1 else data)
        tracemalloc.start()
        try:
            source = open_gguf(path)
        except ValueError:
            source = None
        if source is not None:
            opened += 1
            for name, info in source.tensors.items():
                assert source.read(name).shape == info.shape
            source.close()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 << 20
    assert opened > 50


def test_text_that_takes_far_more_memory_than_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings of two letters: 10 bytes each in the file, about 60 as Python objects."""
    monkeypatch.setattr(header, "ALLOWANCE", 1 << 20)
    count = 100_000
    words = np.zeros(count, np.dtype([("n", "<u8"), ("text", "S2")]))
    words["n"], words["text"] = 2, b"ab"
    path = tmp_path / "m.gguf"
    path.write_bytes(model([key(b"k", 9, struct.pack("<IQ", 8, count) + words.tobytes())], []))
    tracemalloc.start()
    with pytest.raises(ValueError, match="the header would take over 30486.. bytes of memory"):
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (17 << 20)  # the window of a megabyte holds 8 MB of such strings


def test_one_wide_character_in_a_long_text_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python stores a string with one emoji in 4 bytes a character."""
    monkeypatch.setattr(header, "ALLOWANCE", 1 << 20)
    path = tmp_path / "m.gguf"
    path.write_bytes(model([key(b"k", 8, string(b"x" * (8 << 20) + "🦙".encode()))], []))
    tracemalloc.start()
    with pytest.raises(ValueError, match="bytes of memory"):
        open_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * path.stat().st_size
    path.write_bytes(model([key(b"k", 8, string(b"x" * (8 << 20)))], []))
    source = open_gguf(path)
    assert len(source.metadata["k"]) == 8 << 20
    source.close()


@pytest.mark.parametrize("part", ["tensors", "booleans", "strings"])
def test_many_small_entries_read_the_file_once(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count, read = 3_000, []
    names = [b"%05d" % i for i in range(count)]
    if part == "tensors":
        data = model([], [tensor(name, [1], offset=32 * i) for i, name in enumerate(names)], 32 * count)
    else:
        data = model([key(name, 7, b"\1") if part == "booleans" else key(name, 8, string(b"")) for name in names], [])
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    original = header.read_exactly
    monkeypatch.setattr(header, "read_exactly", lambda *given: read.append(given[1]) or original(*given))
    source = open_gguf(path)
    assert len(source.tensors) + len(source.metadata) == count
    assert sum(read) == len(data)
    source.close()


def test_a_folder_or_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")
    with pytest.raises(IsADirectoryError):
        open_gguf(tmp_path)
