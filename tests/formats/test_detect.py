"""What a file is, told by its content: right formats under wrong names, and what people pass by mistake."""

import gzip
import io
import json
import zipfile
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
from handmade_torch import state, tensor, text, write

from converters.detect import detect, open_source

GOLDENS = Path(__file__).parent / "goldens"


def put_safetensors(path: Path) -> Path:
    safetensors.numpy.save_file({"from_safetensors": np.ones(2, np.float32)}, path)
    return path


def put_gguf(path: Path, name: str = "from_gguf") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def put_torch(path: Path) -> Path:
    return write(path.parent, state(("from_torch", tensor()))).rename(path)


def put_onnx(path: Path) -> Path:
    """ir_version 8, producer "x", a graph, an opset import: the wire form of onnx.ModelProto.

    The graph has one tensor, two bytes of type 2: dims, data_type, name, raw_data.
    """
    tensor = bytes.fromhex("08021002420966726f6d5f6f6e6e784a020102")
    graph = bytes([0x2A, len(tensor)]) + tensor
    path.write_bytes(bytes.fromhex("0808120178") + bytes([0x3A, len(graph)]) + graph + bytes.fromhex("42021011"))
    return path


PUT = {"safetensors": put_safetensors, "gguf": put_gguf, "torch": put_torch, "onnx": put_onnx}


def opened(path: Path, **options: str) -> tuple[str, set[str]]:
    """Format and names of tensors, with the source closed again."""
    with closing(open_source(path, **options)) as source:
        return source.format, set(source.tensors)


@pytest.mark.parametrize("name", ["model", "model.bin", "model.gguf", "model.safetensors", "model.txt"])
@pytest.mark.parametrize("kind", PUT)
def test_content_decides_whatever_the_name_says(tmp_path, kind, name):
    path = PUT[kind](tmp_path / name)
    assert detect(path) == detect(str(path)) == kind
    assert opened(path) == (kind, {f"from_{kind}"})


def test_the_older_torch_format():
    assert detect(GOLDENS / "torch_legacy.bin") == "torch"
    assert "weight" in opened(GOLDENS / "torch_legacy.bin")[1]


def test_reference_files_of_every_kind(shared):
    folder = shared / "models" / "stories260K"
    assert detect(folder / "onnx" / "model.onnx") == "onnx"
    assert detect(folder / "onnx") == "onnx"
    assert detect(folder / "pytorch_model.bin") == "torch"
    assert detect(folder / "hf") == "huggingface"
    assert detect(folder / "stories260K-f32.gguf") == "gguf"
    with pytest.raises(ValueError, match="several formats .*pytorch_model.bin; GGUF: stories260K-f32.gguf"):
        detect(folder)  # pytorch_model.bin, and GGUFs beside it
    assert opened(folder, file="stories260K-f32.gguf")[0] == "gguf"


# --- directories


def test_a_directory_prefers_safetensors_to_torch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights here .* it holds nothing"):
        detect(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"it holds config.json"):
        open_source(tmp_path)
    for kind, name in (("torch", "pytorch_model.bin"), ("safetensors", "model.safetensors")):
        PUT[kind](tmp_path / name)
        assert detect(tmp_path) == "huggingface"
        assert opened(tmp_path)[0] == kind
        assert opened(tmp_path, file=name)[0] == kind
    (tmp_path / "config.json").unlink()
    assert detect(tmp_path) == "safetensors"


@pytest.mark.parametrize("beside", ["safetensors", "torch", "onnx"])
def test_formats_that_need_not_be_the_same_model_need_a_choice(tmp_path, beside):
    names = {"gguf": "m.gguf", "safetensors": "model.safetensors", "torch": "pytorch_model.bin", "onnx": "m.onnx"}
    for kind in ("gguf", beside):
        PUT[kind](tmp_path / names[kind])
    for function in (detect, open_source):
        with pytest.raises(ValueError, match=rf"several formats \(GGUF: m.gguf; .*: {names[beside]}\); name the file"):
            function(tmp_path)
    for kind in ("gguf", beside):
        assert opened(tmp_path, file=names[kind])[0] == kind


def test_several_ggufs_need_a_choice(tmp_path):
    for name in ("a-Q4_K_M.gguf", "a-Q8_0.gguf"):
        put_gguf(tmp_path / name)
    for function in (detect, open_source):
        with pytest.raises(ValueError, match=r"a-Q4_K_M.gguf, a-Q8_0.gguf.*file="):
            function(tmp_path)
    assert opened(tmp_path, file="a-Q8_0.gguf")[0] == "gguf"
    with pytest.raises(
        FileNotFoundError, match=r"Q5_0.gguf: no such file; the directory holds a-Q4_K_M.gguf, a-Q8_0.gguf"
    ):
        open_source(tmp_path, file="a-Q5_0.gguf")


def test_a_split_gguf_is_one_checkpoint(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name in ("a", "b"):
        writer.add_tensor(name, np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert detect(tmp_path) == "gguf"
    assert opened(tmp_path) == ("gguf", {"a", "b"})
    for file in tmp_path.glob("*.gguf"):
        assert opened(file) == ("gguf", {"a", "b"})
    next(tmp_path.glob("*-00002-of-*.gguf")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 shards missing: m-00002-of-00002.gguf"):
        open_source(tmp_path)


def test_orbax_by_its_marks(tmp_path):
    (tmp_path / "_METADATA").write_text("{}")
    assert detect(tmp_path) == "orbax"
    with pytest.raises(ValueError, match="not the description of an orbax tree"):
        open_source(tmp_path)


def test_an_index_under_any_name(tmp_path):
    put_safetensors(tmp_path / "part.safetensors")
    content = {"weight_map": {"from_safetensors": "part.safetensors"}}
    (tmp_path / "index").write_text(json.dumps(content))
    assert detect(tmp_path / "index") == "safetensors"
    assert opened(tmp_path / "index") == ("safetensors", {"from_safetensors"})


def test_shards_of_two_formats_are_refused(tmp_path):
    put_safetensors(tmp_path / "a")
    put_gguf(tmp_path / "b")
    (tmp_path / "index").write_text(json.dumps({"weight_map": {"from_safetensors": "a", "from_gguf": "b"}}))
    with pytest.raises(ValueError, match="different formats: gguf, safetensors"):
        open_source(tmp_path / "index")


def test_key_reaches_the_torch_reader_and_no_other(tmp_path):
    inner = b"}" + text("x") + tensor() + b"s"
    path = write(tmp_path, state(("model", inner), ("ema", inner)))
    assert opened(path, key="ema") == ("torch", {"x"})
    with pytest.raises(ValueError, match="key='ema' chooses an entry of a torch file; this is safetensors"):
        open_source(put_safetensors(tmp_path / "s"), key="ema")


# --- mistakes


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, "x" * 100)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98362432\n"
MISTAKES = {
    "git-lfs pointer": (LFS, "git-lfs pointer.*git lfs pull"),
    "empty file": (b"", "is empty"),
    "web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "web page without doctype": (b"<HTML>", "a web page"),
    "error of an object store": (b'<?xml version="1.0"?><Error>', "an XML text"),
    "config.json": (b'{"model_type": "llama"}', "JSON file without weights; give the directory"),
    "list in JSON": (b"[1]", "JSON file without weights"),
    "JSON cut off": (b'{"weight_map": {"a"', "not valid JSON"),
    "gzip": (gzip.compress(b"x"), "gzip-compressed; unpack"),
    "npz": (zipped("a.npy"), "zip file, but no torch checkpoint: it holds a.npy"),
    "zip cut off": (zipped("a.npy")[:-30], "was cut off"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "it holds nothing"),
    "npy": (b"\x93NUMPY\x01\x00", "single NumPy array"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "old ggml": (b"tjgg\x03\x00\x00\x00", "older than GGUF"),
    "pickle": (b"\x80\x04\x95\x10\x00", "bare Python pickle.*never loaded"),
    "tar": (bytes(257) + b"ustar\x0000", "tar archive"),
    "noise": (bytes(range(200, 256)), "begins with c8 c9 ca cb cc cd ce cf"),
    "protobuf that is no model": (bytes.fromhex("08080a0178"), "no known checkpoint"),
    "one byte": (b"\x08", "no known checkpoint"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_with_what_to_do(tmp_path, case):
    content, message = MISTAKES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for function, target in ((detect, path), (open_source, path), (detect, tmp_path), (open_source, tmp_path)):
        with pytest.raises(ValueError, match=message) as caught:
            function(target)
        assert "model.safetensors" in str(caught.value)


def test_a_missing_path(tmp_path):
    for function in (detect, open_source):
        with pytest.raises(FileNotFoundError, match="nothing.bin: no such file"):
            function(tmp_path / "nothing.bin")
