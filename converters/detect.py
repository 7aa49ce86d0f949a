"""Says what a checkpoint is by its content, and opens it. Names of files only say which files are weights.

What is no checkpoint is refused with what it looks like and what to do about it.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from converters.files import BoundedFile, read_json
from converters.orbax import ROOT_FILE, find_trees, open_orbax
from converters.safetensors_file import MAX_HEADER_BYTES, SafetensorsSource
from converters.shards import Shards, check_kinds, find_shards, read_index
from converters.source import TensorSource
from converters.stored_zip import list_names
from converters.torch_pickle import START_BYTES, TorchSource, find_torch_shards, is_legacy, is_pickle_entry

_START = 512  # bytes that tell most kinds apart

# What people pass by mistake: how the file begins, what it is, what to do.
_MISTAKES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com",
        "a git-lfs pointer, not the file itself",
        "run `git lfs pull` in its directory",
    ),
    (b"<!doctype html", "a web page", "the download gave a page (an error or a login); download the file itself"),
    (b"<html", "a web page", "the download gave a page (an error or a login); download the file itself"),
    (b"<?xml", "an XML text", "the download gave an error message; download the file itself"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first"),
    (b"\xfd7zXZ", "xz-compressed", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras, TensorFlow)", "convert it to safetensors with the library that made it"),
    (b"\x93NUMPY", "a single NumPy array", "save named arrays with safetensors.numpy.save_file"),
    (b"lmgg", "a ggml file older than GGUF", "convert it to GGUF with the llama.cpp of its time"),
    (b"tjgg", "a ggjt file older than GGUF", "convert it to GGUF with the llama.cpp of its time"),
    (b"fmgg", "a ggmf file older than GGUF", "convert it to GGUF with the llama.cpp of its time"),
    (
        b"\x80",
        "a bare Python pickle",
        "pickles can run code and are never loaded; save model.state_dict() with torch.save",
    ),
)


def detect(path: Path | str) -> str:
    """Name the format of a file or directory.

    Returns:
        "safetensors", "gguf", "torch", "onnx" or "orbax"; "huggingface" for a directory with a config.json beside
        safetensors or torch weights. Safetensors go before torch files, the same weights by the custom of the hub.

    Raises:
        FileNotFoundError: no such path, or a directory without weights.
        ValueError: no checkpoint; the message says what it looks like and what to do. Or a directory with weights in
            formats that need not be the same model, such as a GGUF beside safetensors; one file must be named.
    """
    path = Path(path)
    if not path.is_dir():
        return _detect_file(path)
    if _is_orbax(path):
        return "orbax"
    kind = _detect_file(_weights(path).files[0])
    return "huggingface" if kind in ("safetensors", "torch") and (path / "config.json").is_file() else kind


def open_source(path: Path | str, *, file: str | None = None, key: str | None = None) -> TensorSource:
    """Open a checkpoint of any format: headers only.

    Args:
        path: a file, an index file, or a directory.
        file: which file of the directory, where it holds several checkpoints.
        key: which entry of a torch file is the state dict, where it holds several.

    Raises:
        FileNotFoundError, ValueError: as `detect`, and as the format's reader.
    """
    path = Path(path)
    if file is not None and path.is_file():
        if file.lower() not in path.name.lower():
            raise ValueError(f"{path} is a file; file={file!r} chooses one in a directory")
    elif file is not None:
        if not (path / file).exists():
            raise FileNotFoundError(f"{path / file}: no such file; the directory holds {_listing(path)}")
        path = path / file
    if path.is_dir() and _is_orbax(path):
        return open_orbax(path)
    shards = _weights(path) if path.is_dir() else _file_shards(path)
    kinds = {_detect_file(shard) for shard in shards.files}
    if len(kinds) > 1:
        raise ValueError(f"{path}: the shards are of different formats: {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "torch":
        return TorchSource(shards, key)
    if key is not None:
        raise ValueError(f"{path}: key={key!r} chooses an entry of a torch file; this is {kind}")
    return _open(kind, shards)


def _open(kind: str, shards: Shards) -> TensorSource:
    if kind == "safetensors":
        return SafetensorsSource(shards)
    if kind == "gguf":
        from converters.gguf.reader import open_gguf

        return open_gguf(shards.files[0])
    from converters.onnx.source import OnnxSource

    return OnnxSource(shards.files[0])


def _is_orbax(directory: Path) -> bool:
    """Whether the directory is an orbax checkpoint, or has the trees of one in it and no weights of its own."""
    if find_trees(directory) == [directory] or (directory / ROOT_FILE).is_file():
        return True
    return bool(find_trees(directory)) and _finder(directory) is None


_FINDERS: tuple[tuple[tuple[str, ...], Callable[[Path], Shards]], ...] = (
    ((".safetensors",), lambda folder: find_shards(folder, ".safetensors", ("model.safetensors",))),
    ((".bin", ".pt", ".pth"), find_torch_shards),
    ((".gguf",), lambda folder: find_shards(folder, ".gguf", ())),
    ((".onnx",), lambda folder: find_shards(folder, ".onnx", ("model.onnx",))),
)
"""Suffixes of weights, and what finds those that belong together, in the order of preference of `detect`."""


def _finder(directory: Path) -> Callable[[Path], Shards] | None:
    """What finds the weights of a directory; None if there are none.

    Raises:
        ValueError: there are weights in formats that need not be the same model.
    """
    check_kinds([item.name for item in directory.iterdir()], str(directory))
    for suffixes, find in _FINDERS:
        if any(
            any(directory.glob(f"*{suffix}")) or any(directory.glob(f"*{suffix}.index.json")) for suffix in suffixes
        ):
            return find
    return None


def _weights(directory: Path) -> Shards:
    """The files of the directory's checkpoint."""
    find = _finder(directory)
    if find is None:
        raise FileNotFoundError(
            f"{directory}: no weights here (*.safetensors, *.bin, *.pt, *.pth, *.gguf, *.onnx, or an orbax "
            f"checkpoint); it holds {_listing(directory)}"
        )
    return find(directory)


def _listing(directory: Path) -> str:
    names = sorted(item.name for item in directory.iterdir()) if directory.is_dir() else []
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"


def _file_shards(path: Path) -> Shards:
    return read_index(path) if _is_index(path) else Shards((path,))


def _is_index(path: Path) -> bool:
    with closing(BoundedFile(path)) as file:
        if file.read_bytes(0, min(file.size, 1)) != b"{":
            return False
    content = read_json(path)
    return isinstance(content, dict) and "weight_map" in content


def _detect_file(path: Path) -> str:
    with closing(BoundedFile(path)) as file:
        start = file.read_bytes(0, min(file.size, _START))
        if start[:4] == b"GGUF":
            return "gguf"
        if int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES and start[8:9] == b"{":
            return "safetensors"
        if is_legacy(start[:START_BYTES]):
            return "torch"
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return _detect_zip(file)
        if _is_onnx(file):
            return "onnx"
    if start[:1] == b"{" and _is_index(path):
        return _detect_file(read_index(path).files[0])
    raise ValueError(f"{path}: {_describe(start)}")


def _detect_zip(file: BoundedFile) -> str:
    names = list_names(file)
    if any(map(is_pickle_entry, names)):
        return "torch"
    listed = ", ".join(name[:60] for name in names[:4]) or "nothing"
    raise ValueError(
        f"{file.path}: a zip file, but no torch checkpoint: it holds {listed}; unpack it if the model is inside"
    )


def _is_onnx(file: BoundedFile) -> bool:
    """Walk the fields of a protobuf ModelProto (onnx.proto): ir_version first, and a graph among the others."""
    start = file.read_bytes(0, min(file.size, 2))
    if len(start) < 2 or start[0] != 0x08 or not 1 <= start[1] < 64:
        return False
    at = 2
    for _ in range(64):
        head = file.read_bytes(at, min(11, file.size - at))
        if not head or head[0] & 7 not in (0, 2):
            return False
        if head[0] == 0x3A:  # field 7, the graph
            return True
        value, length = _varint(head[1:])
        if not length:
            return False
        at += 1 + length + (value if head[0] & 7 == 2 else 0)
        if head[0] >> 3 not in (2, 3, 4, 5, 6, 8, 14) or at >= file.size:
            return False
    return False


def _varint(raw: bytes) -> tuple[int, int]:
    """A protobuf varint and the number of its bytes, 0 if it does not end."""
    value = 0
    for i, byte in enumerate(raw):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, i + 1
    return value, 0


def _describe(start: bytes) -> str:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return "the file is empty; its download was interrupted"
    for mark, what, advice in _MISTAKES:
        if text[: len(mark)].lower() == mark.lower():
            return f"this is {what}; {advice}"
    if start[257:262] == b"ustar":
        return "this is a tar archive; unpack it first"
    if text[:1] in (b"{", b"["):
        return "this is a JSON file without weights; give the directory that holds it, or the file of weights"
    return (
        f"no known checkpoint format: it begins with {start[:8].hex(' ')}; "
        "expected safetensors, GGUF, a torch file or ONNX; it is damaged or something else"
    )
