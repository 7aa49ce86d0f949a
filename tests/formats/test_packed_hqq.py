"""HQQ's layouts against the plainest formula, one code after another, and back to the same bytes."""

from typing import Any

import numpy as np
import pytest
from packed_files import assert_written_again, dense, module

from forge_jax.tensor import QTensor

R = np.random.default_rng(5)
WORDS = {1: ("1bit_u8", 8), 2: ("2bit_u8", 4), 3: ("3bit_32", 10), 4: ("4bit_u8", 2), 8: ("8bit_u8", 1)}
SAID = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}, "skip_modules": ["lm_head"]}


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """Every test draws the same numbers, whichever were run before it."""
    R.bit_generator.state = np.random.default_rng(5).bit_generator.state


def hqq(bits: int, axis: int, group: int, shape: tuple[int, int] = (24, 80)) -> tuple[dict[str, np.ndarray], Any]:
    """The tensors of a module, and its weight."""
    packing, count = WORDS[bits]
    groups = shape[0] * shape[1] // group
    grid = (groups, group) if axis else (group, groups)
    codes = R.integers(0, 2**bits, grid)
    scale, zero = (R.uniform(0.1, 9, (groups, 1) if axis else (1, groups)).astype(np.float16) for _ in range(2))
    expected = np.empty(grid, np.float32)
    for row in range(grid[0]):
        for column in range(grid[1]):
            at = (row, 0) if axis else (0, column)
            expected[row, column] = (np.float32(codes[row, column]) - np.float32(zero[at])) * np.float32(scale[at])
    step = -(-grid[0] // count)
    stored = np.zeros((step, grid[1]), np.int64)
    for row in range(grid[0]):
        stored[row % step] += codes[row] << (bits * (count - 1 - row // step))
    flags = dict.fromkeys(("view_as_float", "quant_scale", "quant_zero", "round_zero"), np.array(0, np.uint8))
    settings = {
        "packing": np.frombuffer(packing.encode(), np.uint8),
        "shape": np.array(shape),
        "axis": np.array(axis, np.int32),
        "group_size": np.array(group, np.int32),
        "nbits": np.array(bits, np.int32),
    }
    words = stored.astype(np.int32 if bits == 3 else np.uint8)
    return module("q", W_q=words, scale=scale, zero=zero, **settings, **flags), expected.reshape(shape)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(
    ("axis", "group", "shape"),
    [(1, 16, (24, 80)), (1, 80, (24, 80)), (1, 40, (24, 20)), (0, 24, (24, 80)), (0, 8, (24, 80)), (1, 12, (24, 12))],
)
def test_hqq(bits: int, axis: int, group: int, shape: tuple[int, int]):
    arrays, expected = hqq(bits, axis, group, shape)
    source = dense(arrays, SAID)
    assert [*source.tensors] == ["q.weight"]
    np.testing.assert_array_equal(source.read("q.weight"), expected)
    w = source.packed("q.weight", source.raw("q.weight"))
    assert isinstance(w, QTensor) == (axis == 1 and shape[1] % group == 0)
    if isinstance(w, QTensor):
        assert_written_again(source, arrays)


def test_hqq_codes_seen_as_floats():
    arrays, expected = hqq(4, 1, 16)
    arrays["q.W_q"], arrays["q.view_as_float"] = arrays["q.W_q"].view(np.float16), np.array(1, np.uint8)
    np.testing.assert_array_equal(dense(arrays, SAID).read("q.weight"), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("packing", np.frombuffer(b"5bit_u8", np.uint8), "'5bit_u8', expected one of"),
        ("packing", np.zeros(1000, np.uint8), "expected one of"),
        ("axis", np.array(2, np.int32), "axis 2"),
        ("group_size", np.array(0, np.int32), "group_size 0"),
        ("group_size", np.array(7, np.int32), "group_size 7"),
        ("shape", np.array([24, 88]), r"expected 4bit_u8 of \[24, 88\]"),
        ("shape", np.array([24]), r"is \[1\], expected \[2\]"),
        ("quant_zero", np.array(1, np.uint8), "quantised scales are not implemented"),
        ("scale", np.ones((3, 1), np.float16), r"is \[3, 1\], expected \[120, 1\]"),
        ("W_q", np.ones((3, 1), np.float16), "expected 4bit_u8"),
    ],
)
def test_hqq_that_does_not_fit(name: str, value: np.ndarray, message: str):
    arrays, _ = hqq(4, 1, 16)
    with pytest.raises(ValueError, match=message):
        dense(arrays | {f"q.{name}": value}, SAID)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_hqq_as_the_package_packs(bits: int, axis: int):
    torch, core = pytest.importorskip("torch"), pytest.importorskip("hqq.core.quantize")
    utils = pytest.importorskip("hqq.core.utils")
    w = torch.tensor(R.normal(size=(24, 80)), dtype=torch.float32)
    words, meta = core.Quantizer.quantize(w, bits, group_size=16, axis=axis, optimize=False, device="cpu")
    meta = {**meta, "compute_dtype": torch.float32, "quant_scale": False, "quant_zero": False}
    arrays = {f"q.{key}": utils.encode_safetensor_type(value).numpy() for key, value in meta.items()}
    found = dense({"q.W_q": words.numpy(), **arrays}, SAID).read("q.weight")
    np.testing.assert_array_equal(found, core.Quantizer.dequantize(words, meta).numpy())
