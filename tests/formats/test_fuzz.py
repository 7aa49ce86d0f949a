"""Damaged and forged files by the thousand: each is read or refused, within 1 s of CPU and twice its size + 64 MB.

A case follows from the name of its seed and its number: `run_case(seeds[name], name, number, tmp_path)` repeats it.
The ordinary run takes the first 100 cases of each seed; `-m slow` takes 11,900 others.
"""

import pickletools
import random
import re
import signal
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from handmade_torch import make_zip
from onnx import TensorProto, helper, numpy_helper

from converters.files import SLACK_BYTES
from converters.gguf.reader import open_gguf
from converters.onnx.source import OnnxSource
from converters.onnx.uses import uses
from converters.onnx.view import Weight, Weights
from converters.safetensors_file import open_safetensors
from converters.source import TensorSource
from converters.torch_pickle import open_torch

GOLDENS = Path(__file__).parent / "goldens"
CPU_SECONDS = 1.0
ORDINARY, MORE = 100, 1700  # of each seed: 700 and 11,900 in all
EXTREMES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**40]
EXTREMES += [2**61 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@dataclass(frozen=True)
class Seed:
    """A valid file: the bytes that are mutated, what is put around them, and the reader.

    Where the bytes are a language, `words` are its words in order and `foreign` words that do not belong there.
    """

    payload: bytes
    wrap: Callable[[Path, bytes], None]
    open: Callable[[Path], TensorSource]
    words: tuple[bytes, ...] = ()
    foreign: tuple[bytes, ...] = ()


def as_is(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)


def as_header(path: Path, payload: bytes) -> None:
    """A safetensors header of the right length before its data."""
    path.write_bytes(len(payload).to_bytes(8, "little") + payload + bytes(194))


def as_pickle(path: Path, payload: bytes) -> None:
    """The pickle of a zip file that is right in everything else."""
    make_zip(path, {"data.pkl": payload, "version": b"3\n", **{f"data/{i}": bytes(96) for i in range(20)}})


def safetensors_file() -> bytes:
    tensors = {
        "a.weight": np.ones((4, 5), np.float32),
        "b": np.arange(6, dtype=np.int64),
        "c": np.ones((8, 4), np.float16),
    }
    return safetensors.numpy.save(tensors | {"flag": np.array([True, False])}, {"format": "pt"})


def safetensors_header() -> bytes:
    raw = safetensors_file()
    return raw[8 : 8 + int.from_bytes(raw[:8], "little")].replace(b" ", b"")


def gguf_file(folder: Path) -> bytes:
    """Every type of metadata, and plain and packed tensors."""
    writer = gguf.GGUFWriter(folder / "seed.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_string("general.name", "naïve")
    for name, kind in (("u8", "uint8"), ("i8", "int8"), ("u16", "uint16"), ("i16", "int16"), ("u64", "uint64")):
        getattr(writer, f"add_{kind}")(f"test.{name}", 7)
    writer.add_float64("test.f64", 0.5)
    writer.add_bool("test.flag", True)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "bc", "☃"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0, -3.0])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1])
    rng = np.random.default_rng(0)
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):
        packed = gguf.quants.quantize(rng.standard_normal((2, 64), np.float32), kind)
        writer.add_tensor(f"blk.0.{kind.name}", packed, raw_dtype=kind)
    for kind in (gguf.GGMLQuantizationType.Q6_K, gguf.GGMLQuantizationType.IQ4_XS, gguf.GGMLQuantizationType.MXFP4):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(f"blk.0.{kind.name}", rng.integers(0, 256, (1, size), np.uint8), raw_dtype=kind)
    writer.add_tensor("output.weight", np.ones((3, 4), np.float16))
    writer.add_tensor("norm.weight", np.ones(5, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "seed.gguf").read_bytes()


def onnx_file() -> bytes:
    """Tensors of most types, stored in most ways, and a node of most operators that have weights."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    arrays = {
        **{"embed": floats(7, 8), "w": floats(8, 6), "norm": floats(6).astype(np.float16), "order": np.array([1, 0])},
        **{"q": rng.integers(0, 256, (6, 4)).astype(np.uint8), "scale": floats(4), "zero": np.zeros(4, np.uint8)},
        **{"blocks": rng.integers(0, 256, (5, 2, 8)).astype(np.uint8), "scales": floats(5, 2)},
        **{"experts": rng.integers(0, 256, (2, 4, 8)).astype(np.uint8), "units": floats(2, 4, 2)},
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors.append(helper.make_tensor("b", TensorProto.FLOAT, [6], floats(6).tolist()))
    tensors.append(helper.make_tensor("shape", TensorProto.INT64, [2], [6, 8]))
    tensors.append(helper.make_tensor("half", TensorProto.FLOAT16, [3], [1.0, 2.0, 3.0]))
    nodes = [
        helper.make_node("Gather", ["embed", "ids"], ["x"], "/embed/Gather"),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Reshape", ["wt", "shape"], ["wr"]),
        helper.make_node("Gemm", ["x", "wr", "b"], ["y"], "/fc/Gemm", transB=1),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones((), np.float32), "")),
        helper.make_node("Cast", ["norm"], ["wide"], to=1),
        helper.make_node("Add", ["wide", "one"], ["scaled"]),
        helper.make_node("Mul", ["y", "scaled"], ["z"], "/norm/Mul"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dense"], axis=1),
        helper.make_node("MatMul", ["z", "dense"], ["u"], "/o/MatMul"),
        helper.make_node(
            "MatMulNBits", ["u", "blocks", "scales"], ["v"], domain="com.microsoft", K=32, N=5, block_size=16
        ),
        helper.make_node(
            "QMoE",
            ["v", "ids", "experts", "units", "", "experts", "units"],
            ["w2"],
            domain="com.microsoft",
            activation_type="swiglu",
            swiglu_fusion=1,
            block_size=8,
        ),
    ]
    nodes[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'm', 'x']")
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()


def open_onnx(path: Path) -> TensorSource:
    """A graph with its weights found and decoded."""
    source = OnnxSource(path)
    found = enumerate(uses(source.graph))
    return Weights(source, [Weight(f"weight {i}", use.expr) for i, use in found], source.tensors)


def golden_pickle() -> bytes:

    with zipfile.ZipFile(GOLDENS / "torch_zip.bin") as file:
        return file.read(next(name for name in file.namelist() if name.endswith("/data.pkl")))


def json_words(text: bytes) -> tuple[bytes, ...]:
    return tuple(re.findall(rb'"[^"]*"|\d+|.', text))


def pickle_words(program: bytes) -> tuple[bytes, ...]:
    starts = [at for _, _, at in pickletools.genops(program) if at is not None]
    return tuple(program[i:j] for i, j in zip(starts, [*starts[1:], len(program)], strict=True))


JSON_FOREIGN = (b"null", b"true", b"-1", b"1.5", b"{}", b"[]", b'""', *(str(n).encode() for n in EXTREMES))
PICKLE_FOREIGN = (
    *(b"N", b")", b"]", b"}", b"0", b"1", b"2", b"(", b"t", b"\x85", b"R", b"b", b"Q", b"\x8f", b"h\x00", b"q\x00"),
    *(b"\x8a\x09" + n.to_bytes(9, "little") for n in EXTREMES),
    *(b"c__builtin__\n%s\n" % name for name in (b"set", b"eval", b"getattr")),
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, Seed]:
    return make_seeds(tmp_path_factory.mktemp("seed"))


def make_seeds(folder: Path) -> dict[str, Seed]:
    header, program = safetensors_header(), golden_pickle()
    return {
        "safetensors": Seed(safetensors_file(), as_is, open_safetensors),
        "safetensors header": Seed(header, as_header, open_safetensors, json_words(header), JSON_FOREIGN),
        "gguf": Seed(gguf_file(folder), as_is, open_gguf),
        "torch zip": Seed((GOLDENS / "torch_zip.bin").read_bytes(), as_is, open_torch),
        "torch legacy": Seed((GOLDENS / "torch_legacy.bin").read_bytes(), as_is, open_torch),
        "onnx": Seed(onnx_file(), as_is, open_onnx),
        "torch pickle": Seed(program, as_pickle, open_torch, pickle_words(program), PICKLE_FOREIGN),
    }


NAMES = ["safetensors", "safetensors header", "gguf", "torch zip", "torch legacy", "torch pickle", "onnx"]


# --- mutations: each takes bytes and a generator, and gives other bytes


def place(raw: bytearray, rng: random.Random) -> int:
    """Anywhere, but half of the time near the start, where the headers are."""
    return rng.randrange(len(raw)) if rng.random() < 0.5 else rng.randrange(min(len(raw), 512))


def truncate(raw: bytearray, rng: random.Random) -> None:
    del raw[place(raw, rng) :]


def flip(raw: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 4, 32])):
        raw[place(raw, rng)] ^= 1 << rng.randrange(8)


def overwrite_integer(raw: bytearray, rng: random.Random) -> None:
    size, at = rng.choice([1, 2, 4, 8]), place(raw, rng)
    value = rng.choice(EXTREMES) % 2 ** (8 * size)
    raw[at : at + size] = value.to_bytes(size, rng.choice(["little", "little", "big"]))


def overwrite_digits(raw: bytearray, rng: random.Random) -> None:
    found = list(re.finditer(rb"\d+", raw))
    if found:
        match = rng.choice(found)
        raw[match.start() : match.end()] = str(rng.choice([*EXTREMES, -1, "1e9", "9" * 5000])).encode()


def splice(raw: bytearray, rng: random.Random) -> None:
    source, target, size = place(raw, rng), place(raw, rng), rng.randrange(1, 64)
    raw[target : target + size] = raw[source : source + size]


def duplicate(raw: bytearray, rng: random.Random) -> None:
    at, size = place(raw, rng), rng.randrange(1, 256)
    raw[at:at] = raw[at : at + size] * rng.choice([1, 1, 8])


def insert(raw: bytearray, rng: random.Random) -> None:
    at = place(raw, rng)
    raw[at:at] = rng.randbytes(rng.randrange(1, 16))


def remove(raw: bytearray, rng: random.Random) -> None:
    at = place(raw, rng)
    del raw[at : at + rng.randrange(1, 32)]


MUTATIONS = [truncate, flip, overwrite_integer, overwrite_integer, overwrite_digits, splice, duplicate, insert, remove]


def reword(seed: Seed, rng: random.Random) -> bytes:
    """Replace, insert or remove whole words, so that what comes out is still made of words."""
    words = list(seed.words)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, new = rng.randrange(len(words)), rng.choice(rng.choice([seed.words, seed.foreign]))
        words[at : at + rng.choice([0, 1, 1])] = rng.choice([[new], [new], []])
    return b"".join(words)


def mutated(seed: Seed, rng: random.Random) -> bytes:
    if seed.words and rng.random() < 0.5:
        return reword(seed, rng)
    raw = bytearray(seed.payload)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if raw:
            rng.choice(MUTATIONS)(raw, rng)
    return bytes(raw)


# --- one case


@contextmanager
def bounded(path: Path) -> Iterator[None]:
    """Fail the test if the block takes more CPU time or memory than the reader promises."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {CPU_SECONDS} s of CPU time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # CPU time: a busy machine makes nothing late
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    limit = 2 * path.stat().st_size + SLACK_BYTES
    assert peak <= limit, f"{peak} bytes for a file of {path.stat().st_size}"


def run_case(seed: Seed, name: str, number: int, folder: Path) -> bool:
    """Read one mutation completely; True if it was accepted."""
    path = folder / "case"
    seed.wrap(path, mutated(seed, random.Random(f"{name} {number}")))
    refusal, values = "", {}
    try:
        with bounded(path):
            try:
                values = read_all(seed.open(path))
            except (ValueError, FileNotFoundError) as error:
                refusal = str(error)
        assert not refusal or str(path) in refusal, f"the message does not name the file: {refusal}"
        if not refusal and name.startswith("safetensors"):
            agree_with_package(path, values)
    except Exception as error:
        error.add_note(f"fuzz case {name!r}, {number}")
        raise
    return not refusal


def read_all(source: TensorSource) -> dict[str, np.ndarray]:
    with closing(source):
        values = {}
        for name, info in source.tensors.items():
            values[name] = source.read(name)
            assert values[name].shape == info.shape
        return values


def agree_with_package(path: Path, values: dict[str, np.ndarray]) -> None:
    """Whatever is accepted here, the safetensors package accepts and reads as the same bytes."""
    theirs = dict(safetensors.deserialize(path.read_bytes()))
    assert {name: entry["dtype"] != "F4" and bytes(entry["data"]) for name, entry in theirs.items()} == {
        name: theirs[name]["dtype"] != "F4" and value.tobytes() for name, value in values.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_themselves_are_read(seeds, name, tmp_path):
    seed = seeds[name]
    seed.wrap(tmp_path / "case", seed.payload)
    with bounded(tmp_path / "case"):
        assert read_all(seed.open(tmp_path / "case"))


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_read_or_refused(seeds, name, tmp_path):
    accepted = sum(run_case(seeds[name], name, number, tmp_path) for number in range(ORDINARY))
    assert accepted < ORDINARY  # the mutations do bite


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_more_mutations_are_read_or_refused(seeds, name, tmp_path):
    for number in range(ORDINARY, ORDINARY + MORE):
        run_case(seeds[name], name, number, tmp_path)


def test_the_bounds_do_bite(tmp_path):
    (tmp_path / "case").write_bytes(b"x")

    def spin():
        with bounded(tmp_path / "case"):
            while True:
                struct.pack("<Q", 1)

    def hoard():
        with bounded(tmp_path / "case"):
            np.ones(SLACK_BYTES + 3, np.uint8)

    with pytest.raises(AssertionError, match="CPU time"):
        spin()
    with pytest.raises(AssertionError, match="bytes for a file of 1"):
        hoard()
