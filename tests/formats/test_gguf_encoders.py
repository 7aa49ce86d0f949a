"""Packing into ggml's block types: the bytes of ggml's own quantisers, with and without an importance matrix."""

import json
import tracemalloc

import numpy as np
import pytest
from ggml_goldens import GOLDENS, ONLY_WEIGHED, OTHERWISE, checksums, error, importance, numbers

from converters.gguf import GGML_TYPES, decode, encode
from forge_jax.quantization.ggml.codec import ENCODERS

WANTED = json.loads(GOLDENS.read_text())


@pytest.mark.parametrize(("name", "given"), [(name, given) for given in ("plain", "weighed") for name in WANTED[given]])
def test_rows_are_the_bytes_of_ggml(name: str, given: str) -> None:
    x, wanted = numbers(), np.array(WANTED[given][name])
    found = np.array(checksums(encode(name, x, importance() if given == "weighed" else None)))
    same = np.delete(np.arange(len(x)), OTHERWISE.get(name, ()))
    np.testing.assert_array_equal(found[same], wanted[same])


@pytest.mark.parametrize("name", OTHERWISE)
def test_rows_that_ggml_gets_wrong_are_no_worse(name: str) -> None:
    rows = [i for i in OTHERWISE[name] if i not in (6, 7)]  # those are about as small as the smallest float16
    ours = np.array(error(name, encode(name, numbers(), importance())))
    theirs = np.array(WANTED["errors"][name])
    assert (ours[rows] <= 1.01 * theirs[rows]).all(), ours / theirs


@pytest.mark.parametrize("name", ONLY_WEIGHED)
def test_types_of_few_bits_need_an_importance(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs an importance for each column"):
        encode(name, numbers())


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_a_stack_of_matrices_has_an_importance_for_each(name: str) -> None:
    """Chunks begin anywhere in a row of any matrix."""
    columns = 256 * 45
    x = np.random.RandomState(2).standard_normal((3, 5, columns)).astype(np.float32)
    weights = np.random.RandomState(3).gamma(0.3, size=(3, columns)).astype(np.float32)
    stacked = encode(name, x, weights)
    for i in range(3):
        np.testing.assert_array_equal(stacked[i], encode(name, x[i], weights[i]))
        np.testing.assert_array_equal(stacked[i, 2], encode(name, x[i, 2], weights[i]))
    np.testing.assert_array_equal(encode(name, x, weights[0])[2], encode(name, x[2], weights[0]))


@pytest.mark.parametrize("name", [name for name in WANTED["weighed"] if name not in ONLY_WEIGHED])
def test_importance_lowers_the_error_that_it_weighs(name: str) -> None:
    x = np.random.RandomState(4).standard_normal((16, 1024)).astype(np.float32)
    weights = np.random.RandomState(5).gamma(0.3, size=1024).astype(np.float32)
    weighed, plain = (encode(name, x, given) for given in (weights, None))
    if name in ("Q8_0", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"):
        np.testing.assert_array_equal(weighed, plain)  # nothing is searched
    else:
        errors = [float(((decode(name, raw) - x) ** 2 * weights).mean()) for raw in (weighed, plain)]
        assert errors[0] < 0.99 * errors[1]


def test_every_packed_type_is_written() -> None:
    assert set(ENCODERS) == {name for name, kind in GGML_TYPES.items() if not kind.plain}


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ4_XS", "Q4_0"])
def test_encoding_needs_little_memory_beside_the_result(name: str) -> None:
    x = np.zeros((4, 1 << 18), np.float32)
    x[:, ::7] = 1
    weights = np.ones(1 << 18, np.float32)
    tracemalloc.start()
    raw = encode(name, x, weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raw.shape == (4, GGML_TYPES[name].row_bytes(1 << 18))
    assert peak < raw.nbytes + (8 << 20)


def test_8_bit_types_of_activations() -> None:
    """Q8_1 is Q8_0 with d times the sum of the codes; Q8_K has the largest element at -127 and sums of 16 codes."""
    x = numbers()
    kinds = {name: GGML_TYPES[name] for name in ("Q8_0", "Q8_1", "Q8_K")}
    q8_0, q8_1, q8_k = (encode(name, x).reshape(-1).view(kind.layout) for name, kind in kinds.items())
    np.testing.assert_array_equal(q8_1["d"], q8_0["d"])
    np.testing.assert_array_equal(q8_1["qs"], q8_0["qs"])
    d = np.abs(x.reshape(-1, 32)).max(axis=-1) / np.float32(127)
    np.testing.assert_array_equal(q8_1["s"], (q8_0["qs"].sum(axis=-1) * d).astype(np.float16))
    np.testing.assert_array_equal(q8_k["bsums"], q8_k["qs"].reshape(-1, 16, 16).sum(axis=-1))
    blocks = x.reshape(-1, 256)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(q8_k["d"], largest / -127, rtol=1e-6)
    np.testing.assert_array_equal(q8_k["qs"].min(axis=-1), np.where(largest == 0, 0, -127))
    assert np.abs(decode("Q8_K", encode("Q8_K", x)).reshape(-1, 256) - blocks).max() <= np.abs(largest).max() / 253


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            np.ones(512, np.float32),
            r"importance is float32 \[512\]; for values \[2, 3, 256\] it must be float32 \[256\]",
        ),
        (np.ones(256, np.float64), r"importance is float64 \[256\]"),
        (np.ones((3, 256), np.float32), r"\[256\] or \[2, 256\]"),
        (np.full(256, -1, np.float32), "negative, infinite or NaN"),
        (np.full(256, np.nan, np.float32), "negative, infinite or NaN"),
    ],
)
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0"])
def test_importance_that_cannot_be_is_refused(name: str, weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(name, np.ones((2, 3, 256), np.float32), weights)


@pytest.mark.parametrize("name", [name for name in WANTED["weighed"] if name not in OTHERWISE])
def test_huge_importances_do_not_overflow(name: str) -> None:
    found = np.array(checksums(encode(name, numbers(), importance() * np.float32(2.0**100))))
    usual = np.delete(np.arange(12), (6, 7))  # of tiny numbers ggml's sums underflow
    np.testing.assert_array_equal(found[usual], np.array(WANTED["weighed"][name])[usual])


@pytest.mark.parametrize("name", [name for name in ENCODERS if GGML_TYPES[name].block > 32])
def test_numbers_too_large_for_a_scale_are_refused(name: str) -> None:
    x = np.full((1, 256), 3e38, np.float32)
    if name == "Q8_K":  # has a float32 scale
        np.testing.assert_allclose(decode(name, encode(name, x)), x, rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=f"up to 3e\\+38 are too large for {name}"):
            encode(name, x, np.ones(256, np.float32))
