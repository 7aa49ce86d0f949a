"""Builds torch's zip files and the pickles inside by hand, so that tests can make them lie. Needs no torch."""

import struct
import zipfile
from pathlib import Path


def make_zip(path: Path, content: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in content.items():
            file.writestr(f"archive/{name}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a" + bytes([9]) + value.to_bytes(9, "little", signed=True)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", numel: int = 4, kind: str = "torch\nFloatStorage", view: bytes = b"") -> bytes:
    return (
        b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu") + number(numel) + view + b"tQ"
    )


def tensor(
    held: bytes | None = None, offset: int = 0, shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,)
) -> bytes:
    arguments = (storage() if held is None else held) + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89N" + b"tR"


def state(*items: tuple[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in items) + b"u."


def write(path: Path, pickled: bytes, data: bytes = bytes(16), **content: bytes) -> Path:
    return make_zip(path / "m.pt", {"data.pkl": pickled, "version": b"3", "data/0": data} | content)
