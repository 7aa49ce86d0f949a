"""ggml blocks: decoding and encoding against gguf-py bit for bit, and against scalar code for what it cannot decode."""

import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from converters.gguf import GGML_TYPES, decode, encode, open_gguf
from forge_jax.quantization.ggml import grids

gguf = pytest.importorskip("gguf")

INTEGERS = ("I8", "I16", "I32", "I64", "F64")
NOT_IN_GGUF_PY = ("Q8_1", "Q8_K", "Q1_0", "Q2_0")
DECODED_BY_GGUF_PY = [name for name in GGML_TYPES if name not in INTEGERS + NOT_IN_GGUF_PY]
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4")
"""Types that gguf-py writes."""


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Any bytes are a valid block: every code, every scale, NaN and infinity among them."""
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * GGML_TYPES[name].nbytes), np.uint8)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal as bits, -0 and 0 apart. Which NaN comes out of an operation on two is the processor's choice."""
    equal = left.view(np.uint32) == np.ascontiguousarray(right).view(np.uint32)
    return left.shape == right.shape and bool(np.all(equal | np.isnan(left) & np.isnan(right)))


def reference(name: str, raw: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[name])


def test_table_of_types_agrees_with_gguf_py() -> None:
    for name, kind in GGML_TYPES.items():
        if name != "Q2_0":  # newer than gguf 0.19
            number = gguf.GGMLQuantizationType[name]
            # gguf-py counts Q8_1 with float32 scales, as ggml did before May 2024; the struct has two halves.
            size = (32, 36) if name == "Q8_1" else tuple(gguf.GGML_QUANT_SIZES[number])
            assert (kind.id, kind.block, kind.nbytes) == (number.value, *size), name
    assert (GGML_TYPES["Q2_0"].id, GGML_TYPES["Q2_0"].block, GGML_TYPES["Q2_0"].nbytes) == (42, 64, 18)
    assert len(GGML_TYPES) == len({kind.id for kind in GGML_TYPES.values()}) == 35


@pytest.mark.parametrize("name", DECODED_BY_GGUF_PY)
def test_random_bytes_decode_to_the_bits_of_gguf_py(name: str) -> None:
    raw = random_blocks(name, rows=5, blocks=64 if GGML_TYPES[name].block > 1 else 1024)
    assert same_bits(decode(name, raw), reference(name, raw))


@pytest.mark.parametrize("name", DECODED_BY_GGUF_PY)
def test_every_byte_value_in_every_place_decodes_as_in_gguf_py(name: str) -> None:
    nbytes = GGML_TYPES[name].nbytes
    raw = np.zeros((nbytes * 256, nbytes), np.uint8)
    raw[:, -min(nbytes, 2) :] = 0x3C  # a scale of about 1 for the types that keep it last
    raw[np.arange(len(raw)), np.arange(len(raw)) // 256] = np.arange(len(raw)) % 256
    assert same_bits(decode(name, raw), reference(name, raw))


@pytest.mark.parametrize(
    ("name", "levels"), [("TQ1_0", [-1, 0, 1]), ("TQ2_0", [-1, 0, 1]), ("MXFP4", [-6, -4, -3, -1, 0, 0.5, 1.5, 2])]
)
def test_values_on_the_levels_of_a_type_survive_gguf_py_and_back(name: str, levels: list[float]) -> None:
    """Every element in its place: order within the block, sign and scale at once."""
    values = np.random.default_rng(1).choice(np.array(levels, np.float32) / 4, (3, 512))
    values[:, ::32] = levels[0] / 4  # the largest magnitude, in each block
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(decode(name, raw), values)


def test_grids_are_those_of_gguf_py() -> None:
    tables = {
        "IQ2_XXS": grids.IQ2_XXS_GRID,
        "IQ2_XS": grids.IQ2_XS_GRID,
        "IQ2_S": grids.IQ2_S_GRID,
        "IQ3_XXS": grids.IQ3_XXS_GRID,
        "IQ3_S": grids.IQ3_S_GRID,
        "IQ1_S": grids.IQ1_GRID,
    }
    for name, table in tables.items():
        quant = getattr(gguf.quants, name)
        quant.init_grid()
        np.testing.assert_array_equal(table, quant.grid.reshape(quant.grid_shape), err_msg=name)


def scalar_blocks(name: str, raw: bytes) -> list[float]:
    """The C definitions of the types that gguf-py does not decode, one element at a time."""
    out: list[float] = []
    if name == "Q1_0":  # half d; 128 bits, lowest first: set is d, clear is -d
        for at in range(0, len(raw), 18):
            (d,) = struct.unpack_from("<e", raw, at)
            out += [d if raw[at + 2 + i // 8] >> i % 8 & 1 else -d for i in range(128)]
    if name == "Q2_0":  # half d; 64 codes of two bits, four consecutive ones to a byte: (code - 1) * d
        for at in range(0, len(raw), 18):
            (d,) = struct.unpack_from("<e", raw, at)
            out += [((raw[at + 2 + i // 4] >> 2 * (i % 4) & 3) - 1) * d for i in range(64)]
    if name == "Q8_1":  # half d, half s = d * sum; 32 signed bytes
        for at in range(0, len(raw), 36):
            d, _, *codes = struct.unpack_from("<ee32b", raw, at)
            out += [code * d for code in codes]
    if name == "Q8_K":  # float d; 256 signed bytes; 16 sums of 16 as int16
        for at in range(0, len(raw), 292):
            d, *codes = struct.unpack_from("<f256b", raw, at)
            out += [float(np.float32(code) * np.float32(d)) for code in codes]
    return out


@pytest.mark.parametrize("name", NOT_IN_GGUF_PY)
def test_types_gguf_py_lacks_decode_as_their_c_definition(name: str) -> None:
    raw = random_blocks(name, rows=1, blocks=16, seed=3)
    blocks = raw.reshape(16, -1)
    scales = blocks[:, :4].view(np.float32) if name == "Q8_K" else blocks[:, :2].view(np.float16)
    scales[:, 0] = np.linspace(-3, 3, 16)  # finite: the scalar code above computes in float64
    decoded = decode(name, raw)
    np.testing.assert_array_equal(decoded[0], np.array(scalar_blocks(name, raw.tobytes()), np.float32))


@pytest.mark.parametrize(("name", "agreement"), [("Q1_0", 1.0), ("Q2_0", 0.999)])
def test_files_of_llama_cpp_hold_their_float_weights_rounded(shared, name: str, agreement: float) -> None:
    """Q1_0 keeps sign and mean magnitude, Q2_0 the nearest of -1, 0, 1 times the largest magnitude of a block.

    Q2_0 agrees but for ties, which float32 and float16 scales break differently.
    """
    packed = open_gguf(shared / f"oracle/gguf/llama/{name}.gguf")
    floats = open_gguf(shared / "oracle/gguf/llama/F32.gguf")
    names = [tensor for tensor, info in packed.tensors.items() if info.dtype == name]
    assert len(names) >= 7
    for tensor in names:
        x = floats.read(tensor).reshape(-1, GGML_TYPES[name].block)
        y = packed.read(tensor).reshape(x.shape)
        size = np.abs(x)
        if name == "Q1_0":
            wanted = np.sign(x) * size.mean(axis=-1, keepdims=True).astype(np.float16)
        else:
            d = size.max(axis=-1, keepdims=True)
            wanted = np.sign(x) * np.floor(size / d + 0.5) * d.astype(np.float16)
        assert np.mean(y == wanted) >= agreement, tensor
    packed.close()
    floats.close()


def normals(name: str, seed: int = 0) -> np.ndarray:
    """Weights of all sizes, with zero blocks, ties and repeated extremes among them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(8, 512)).astype(np.float32)
    values[1] *= 1e-6
    values[2] *= 1e4
    values[3] = np.round(values[3] * 4) / 4
    values[4, :64] = 0
    values[5] = np.abs(values[5])
    values[6] = -1
    values[7] = np.where(np.arange(512) % 32, np.arange(512) % 32 * np.where(np.arange(512) % 3, 1, -1) - 0.5, 127)
    return values


@pytest.mark.parametrize("name", WRITTEN)
def test_encodes_to_the_bytes_of_gguf_py(name: str) -> None:
    values = normals(name)
    wanted = gguf.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
    encoded = encode(name, values)
    np.testing.assert_array_equal(encoded, wanted)
    assert encoded.shape == (8, GGML_TYPES[name].row_bytes(512))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_nan_and_infinity_survive_plain_types(name: str) -> None:
    payload = np.array([0x7FC12345, 0xFF800001, 0x7F800000, 0xFF800000], np.uint32).view(np.float32)
    values = np.tile(payload, (2, 8))
    with np.errstate(invalid="ignore"):
        wanted = gguf.quantize(values, gguf.GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(encode(name, values), wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_encode_takes_any_float_dtype(dtype: type) -> None:
    values = normals("Q8_0").astype(dtype)
    np.testing.assert_array_equal(encode("Q8_0", values), encode("Q8_0", values.astype(np.float32)))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_encode_as_they_are_and_only_from_their_dtype(name: str) -> None:
    values = np.arange(-3, 3).astype(GGML_TYPES[name].values)
    assert encode(name, values).tobytes() == values.tobytes()
    with pytest.raises(ValueError, match="not int32|not int64"):
        encode(name, np.arange(3, dtype=np.int64 if name == "I32" else np.int32))
    with pytest.raises(ValueError, match="do not fit into float32"):
        decode(name, encode(name, values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("IQ1_S", np.zeros(256, np.float32), "IQ1_S needs an importance for each column"),
        ("Q9_9", np.zeros(32, np.float32), "unknown ggml type 'Q9_9'; expected one of F32"),
        ("Q8_0", np.zeros(33, np.float32), "packs 32 elements"),
        ("Q8_0", np.zeros(32, np.int32), "encodes floating-point values, not int32"),
        ("Q8_0", np.full(32, np.nan, np.float32), "holds no NaN and no infinity, and 32 of"),
        ("Q4_1", np.full(32, np.inf, np.float32), "holds no NaN and no infinity"),
        ("Q8_0", np.full(32, 1e9, np.float32), "up to 1e\\+09 are too large for Q8_0"),
        ("Q4_1", np.full(32, -1e6, np.float32), "too large for Q4_1"),
        ("F16", np.full(2, 1e5, np.float32), "up to 100000 are too large for F16"),
        ("BF16", np.full(2, 3.4e38, np.float32), "too large for BF16"),
        ("F32", np.full(2, 1e300), "too large for F32"),
        ("F32", np.float32(1), "not a single one"),
    ],
)
def test_encode_refuses(name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(name, values)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("Q4_0", np.zeros(17, np.uint8), r"multiple of 18 bytes, not uint8 \[17\]"),
        ("Q4_0", np.zeros(18, np.int8), "decodes uint8 rows"),
        ("Q4_2", np.zeros(18, np.uint8), "unknown ggml type"),
        ("F32", np.uint8(1), "decodes uint8 rows"),
    ],
)
def test_decode_refuses(name: str, raw: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(name, raw)


def test_decode_keeps_leading_axes_and_takes_views() -> None:
    raw = random_blocks("Q4_0", rows=12, blocks=4)
    decoded = decode("Q4_0", raw)
    assert same_bits(decode("Q4_0", raw.reshape(3, 4, -1)), decoded.reshape(3, 4, 128))
    assert same_bits(decode("Q4_0", raw[::2, 18:]), decoded[::2, 32:])
    assert decode("Q6_K", np.zeros((0, 210), np.uint8)).shape == (0, 256)


@pytest.mark.parametrize("name", [name for name, kind in GGML_TYPES.items() if not kind.plain])
def test_decoding_in_chunks_needs_little_memory_beside_the_result(name: str) -> None:
    kind = GGML_TYPES[name]
    raw = random_blocks(name, rows=1, blocks=(1 << 20) // kind.block)  # 4 MB of float32: several chunks
    with np.errstate(all="ignore"):
        halves = [decode(name, part) for part in np.split(raw.reshape(-1, kind.nbytes), 2)]
        tracemalloc.start()
        decoded = decode(name, raw)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert same_bits(decoded.reshape(-1, kind.block), np.concatenate(halves))
    assert peak < decoded.nbytes + (3 << 20)
