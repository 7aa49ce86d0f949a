"""Rows in fewer bits: every number becomes the nearest that its scale allows, and scales are those of the papers."""

import numpy as np
import pytest

from forge_jax.params import Param
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.floats import FP4, NF4
from forge_jax.quantization.schemes import E2M1

INTEGERS = [
    *(f"int{bits}" for bits in (3, 4, 8)),
    *(f"int{bits}-g32" for bits in range(2, 9)),
    *(f"int{bits}-g64-asym" for bits in (2, 3, 4, 5, 8)),
]
E4M3 = np.array([m * 2.0**e for e in range(-9, 6) for m in range(16) if m * 2.0**e <= 448])
TABLES = {
    "fp8": (E4M3, 0),
    "fp8-block": (E4M3, 128),
    "mxfp4": (E2M1, 32),
    "nvfp4": (E2M1, 16),
    "nf4": (NF4, 64),
    "fp4": (FP4, 64),
}


def rows() -> np.ndarray:
    """Normal rows, and among them one of zeros, one of one number, one with an outlier, tiny and huge ones."""
    x = np.random.default_rng(0).standard_normal((140, 256)).astype(np.float32)
    x[3], x[5], x[7, 40], x[9], x[11], x[13] = 0, 0.3, 90, x[9] * 1e-6, x[11] * 1e6, np.abs(x[13])
    x[15, :64] = 0
    return x


def parts_of(x: np.ndarray, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The parts of a matrix, and its rows again in float64."""
    found = encode_leaf(x, Param(x.shape, (None, None), inputs=0), packer(name))
    return found.parts, found.rows().astype(np.float64)


def wide(scale: np.ndarray, size: int) -> np.ndarray:
    """A number for every element of a row, float64."""
    values = scale.astype(np.float64)
    return np.repeat(values, -(-size // values.shape[1]), axis=1)[:, :size]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    """The nearest code of a scale whose squared error is at most that of half a step, the range over its codes."""
    x = rows()
    parts, found = parts_of(x, name)
    bits, asymmetric = int(name[3]), name.endswith("asym")
    half, most = 2 ** (bits - 1), 2**bits - 1
    scale = wide(parts["scale"], x.shape[1])
    zero = wide(parts["zero"], x.shape[1]) if asymmetric else half
    least = 1 if bits == 8 and not asymmetric else 0
    assert np.all((zero >= 0) & (zero <= most))
    nearest = np.min([np.abs((code - zero) * scale - x) for code in range(least, most + 1)], axis=0)
    assert (np.abs(np.abs(found - x) - nearest) <= 1e-5 * np.abs(scale) + np.abs(x) * 2.0**-22).all()
    groups = x.astype(np.float64).reshape(len(x), parts["scale"].shape[1], -1)
    low, high = groups.min(-1).clip(None, 0), groups.max(-1).clip(0)
    step = (high - low) / most if asymmetric else np.maximum(high, -low) / (half - 1)
    mean = np.square((found - x).reshape(groups.shape)).mean(-1)
    assert (mean <= (step * (0.5 + 2.0**-7)) ** 2).all()
    assert (found[3] == 0).all()


@pytest.mark.parametrize("bits", [7, 8])
def test_an_integer_is_within_half_a_step(bits: int) -> None:
    """Where no scale clips; bfloat16 rounds the step by 2^-8 of it at most."""
    x = rows()
    parts, found = parts_of(x, f"int{bits}-g32-asym")
    assert (np.abs(found - x) <= wide(parts["scale"], x.shape[1]) * (0.5 + 1e-4)).all()
    groups = x.astype(np.float64).reshape(len(x), -1, 32)
    step = (groups.max(-1).clip(0) - groups.min(-1).clip(None, 0)) / (2**bits - 1)
    assert (parts["scale"].astype(np.float64) <= step * (1 + 2.0**-7)).all()


@pytest.mark.parametrize("name", TABLES)
def test_values_of_tables(name: str) -> None:
    """The nearest of the table's values, of either sign, under the scale that the format prescribes."""
    x = rows()
    table, group = TABLES[name]
    parts, found = parts_of(x, name)
    groups = np.abs(x.astype(np.float64)).reshape(len(x), -1, group or x.shape[1])
    largest = groups.max(-1)
    scale = parts["scale"].astype(np.float64)
    if name == "mxfp4":
        scale = 2.0 ** (scale - 127)
        some = largest > 0
        assert (scale[some] == 2.0 ** (np.floor(np.log2(largest[some])) - 2)).all()
    elif name == "nvfp4":
        divisor = float(parts["divisor"][0, 0])
        assert divisor == pytest.approx(448 * 6 / np.abs(x).max(), rel=1e-6)
        wanted = largest / 6 * divisor
        assert (np.abs(scale - wanted) <= np.maximum(wanted * 2.0**-4, 2.0**-10) * (1 + 1e-6)).all()
        scale = scale / divisor
    elif name == "fp8-block":
        blocks = np.maximum.reduceat(largest, [0, 128], axis=0)  # the last block has 12 rows
        np.testing.assert_allclose(scale, np.repeat(blocks, 128, axis=0)[: len(x)] / 448, rtol=1e-6)
    else:
        np.testing.assert_allclose(scale, largest / (448 if name == "fp8" else 1), rtol=1e-6)
    numbers = np.unique(np.concatenate([table, -table] if name.startswith("fp8") else [table])).astype(np.float64)
    nearest = np.full(x.shape, np.inf)
    for value in numbers:
        np.minimum(nearest, np.abs(value * wide(scale, x.shape[1]) - x), out=nearest)
    rounding = np.abs(found) * 2.0 ** (-8 if name == "nvfp4" else -22)  # its values are bfloat16
    assert (np.abs(found - x) <= nearest * (1 + 1e-5) + rounding + 1e-6 * wide(scale, x.shape[1])).all()
    assert (found[3] == 0).all()


def test_tables_are_those_of_bitsandbytes() -> None:
    """FP4 has a sign, two bits of exponent and one of mantissa; NF4 is made of quantiles and has an exact 0."""
    half = [0, 0.00520833333, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]
    np.testing.assert_allclose(FP4, [*half, *(-v for v in half)], rtol=1e-6)
    assert NF4[[0, 7, 15]].tolist() == [-1, 0, 1]
    assert (np.diff(NF4) > 0).all()


def test_errors_fall_with_bits() -> None:
    """Root mean squares on a normal matrix; of equal bits, the one with finer scales or more of them is better."""
    x = np.random.default_rng(1).standard_normal((256, 512)).astype(np.float32)
    order = "Q8_0 int8-g64 int8 int7-g64 Q6_K int6-g64 fp8 Q5_K Q5_1 Q5_0 int5-g64 Q4_K IQ4_NL Q4_1 int4-g32 Q4_0"
    order += " int4-g64 nf4 nvfp4 int4-g128 int4 mxfp4 fp4 Q3_K int3-g64 Q2_K int2-g64"
    errors = {name: np.square(parts_of(x, name)[1] - x).mean() ** 0.5 for name in order.split()}
    assert sorted(errors, key=errors.__getitem__) == order.split()


def test_what_is_packed_by_steps_is_what_is_packed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrices are packed a few rows at a time, blocks of rows in whole."""
    x = rows()
    for name in ("int4-g32", "fp8-block", "nvfp4", "nf4"):
        whole, _ = parts_of(x, name)
        with monkeypatch.context() as patched:
            patched.setattr("forge_jax.quantization.packers.CHUNK", 3000)
            for part, values in parts_of(x, name)[0].items():
                np.testing.assert_array_equal(values, whole[part])


def test_importance_moves_errors_to_where_they_matter_less() -> None:
    """Weighted errors fall; the importance of a column is what its squared error is multiplied by."""
    x = np.random.default_rng(2).standard_normal((64, 128)).astype(np.float32)
    weight = np.random.default_rng(3).uniform(0, 1, 128).astype(np.float32) ** 8
    param = Param(x.shape, (None, None), inputs=0)
    for name in ("int4-g32", "int3-g64-asym", "Q4_0"):
        plain, weighed = (encode_leaf(x, param, packer(name), w).rows() - x for w in (None, weight))
        assert (np.square(weighed) * weight).sum() < 0.95 * (np.square(plain) * weight).sum()


@pytest.mark.parametrize("name", ["int4-g32", "int8", "fp8", "mxfp4", "nvfp4", "nf4", "Q4_0"])
def test_what_is_not_finite_is_refused(name: str) -> None:
    x = rows()
    x[2, 2] = np.nan
    with pytest.raises(ValueError, match="a weight has NaN or infinite numbers"):
        parts_of(x, name)


def test_names() -> None:
    for name in ("int9", "int4-g0", "int4-asym-g64", "Q4_7", "int8-g64-dynamic"):
        with pytest.raises(ValueError, match=rf"there is no scheme '{name}'; did you mean "):
            packer(name)
    assert packer("int3-g20").block == 40  # whole groups and whole bytes
    assert packer("int4").block == 2
