"""GPTQ, AWQ and FP8 as other programs tell them: against formulas written out, and back to the same bytes."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_files import WHERE, Memory, assert_written_again, dense, module, stream

from converters.packed import unpacked

R = np.random.default_rng(11)
OUT, IN, GROUP = 32, 128, 32
E4M3 = ml_dtypes.float8_e4m3fn
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """Every test draws the same numbers, whichever were run before it."""
    R.bit_generator.state = np.random.default_rng(11).bit_generator.state


def gptq(bits: int, less: int, width: int = 32) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a module without g_idx in words of a width, and its weight."""
    q, z = R.integers(0, 2**bits, (IN, OUT)), R.integers(1, 2**bits, (IN // GROUP, OUT))
    s = R.uniform(0.01, 0.1, z.shape).astype(np.float16)
    each = np.arange(IN) // GROUP
    expected = s[each].astype(np.float32) * np.float32(q - z[each])
    kind = f"int{width}"
    qweight = np.ascontiguousarray(stream(q.T, bits).view(kind).T)
    return {"qweight": qweight, "qzeros": stream(z - less, bits).view(kind), "scales": s}, expected.T


def check(parts: dict[str, np.ndarray], said: Any, expected: np.ndarray) -> None:
    """A module is read as expected, and written again."""
    arrays = module("model.layers.0.q", **parts)
    source = dense(arrays, said)
    assert [*source.tensors] == ["model.layers.0.q.weight"]
    np.testing.assert_array_equal(source.read("model.layers.0.q.weight"), expected)
    assert_written_again(source, arrays)


# ------------------------------------------------------------------------------------------------ GPTQ
@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_in_words_of_other_widths(width: int, bits: int):
    parts, expected = gptq(bits, 1, width)
    said = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "pack_dtype": f"torch.int{width}"}
    check(parts, said, expected)


def test_gptq_whose_inputs_have_no_groups_where_they_should():
    parts, _ = gptq(4, 1)
    said = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}
    with pytest.raises(ValueError, match="'q.g_idx' is missing"):
        dense(module("q", **parts), said)
    with pytest.raises(ValueError, match="has 3 bits in words of 16; expected words of 32"):
        dense(module("q", **gptq(3, 1, 16)[0]), said | {"bits": 3, "pack_dtype": "int16"})


def test_a_quantised_head():
    parts, expected = gptq(4, 1)
    source = dense(
        module("lm_head", **parts), {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "lm_head": True}
    )
    np.testing.assert_array_equal(source.read("lm_head.weight"), expected)


# ------------------------------------------------------------------------------------------------ auto-round
@pytest.mark.parametrize(
    ("packing", "less"), [(None, 1), ("auto_round:auto_gptq", 1), ("auto_round", 0), ("auto_round:gptqmodel", 0)]
)
@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_auto_round(packing: str | None, less: int, method: str, bits: int):
    parts, expected = gptq(bits, less)
    said = {"quant_method": method, "bits": bits, "group_size": GROUP, "sym": False, "iters": 200, "data_type": "int"}
    check(parts, said | ({} if packing is None else {"packing_format": packing}), expected)


def test_auto_round_of_several_schemes_and_of_awq():
    parts, expected = gptq(8, 1)
    own = {"model.layers.0.q": {"bits": 8}, "lm_head": {"bits": 16}, ".*down.*": {"bits": 2}}
    said = {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "extra_config": own}
    check(parts, said, expected)
    with pytest.raises(ValueError, match="says that lm_head is not quantised"):
        dense(module("lm_head", **parts), said)
    words = {
        "qweight": np.zeros((IN, OUT // 8), np.int32),
        "qzeros": np.zeros((4, OUT // 8), np.int32),
        "scales": parts["scales"],
    }
    plain = {"quant_method": "auto-round", "bits": 4, "group_size": GROUP, "packing_format": "auto_round:auto_awq"}
    check(words, plain, np.zeros((OUT, IN), np.float32))
    for more in ({"packing_format": "auto_round:fake"}, {"data_type": "mx_fp"}, {"extra_config": [1]}):
        with pytest.raises(ValueError, match=[*more][0]):
            dense(module("q", **parts), said | more)


# ------------------------------------------------------------------------------------------------ AWQ
def test_awq_gemv_fast():
    """Each value goes where the layout says, one at a time: a nibble of a word of 16 bits."""
    q = R.integers(0, 16, (OUT, IN))
    groups = IN // GROUP
    s, shift = np.zeros((32, OUT), np.float16), np.zeros((32, OUT), np.float16)
    s[:groups], shift[:groups] = R.uniform(0.01, 0.1, (groups, OUT)), R.normal(size=(groups, OUT))
    words = np.zeros((OUT // 4, IN), np.uint32)
    for o, i in np.ndindex(OUT, IN):
        block, inside = divmod(i % 64, 32)
        # of 32 inputs: pairs of the four eights lie together, then in each eight the even places before the odd
        eight, pair, odd = inside // 8, inside % 8 // 2, inside % 2
        place = pair * 8 + odd * 4 + eight
        at = 32 * block + place
        words[o // 4, i // 64 * 64 + o % 4 * 16 + at // 4] |= q[o, i] << (4 * (at % 4))
    parts = {"qweight": words.astype(np.uint16).view(np.int16), "scales": s, "qzeros": shift}
    each = np.arange(IN) // GROUP
    expected = np.float32(q.T) * s[each].astype(np.float32) + shift[each].astype(np.float32)
    check(parts, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemv_fast"}, expected.T)


def test_awq_with_groups_of_a_module_of_its_own():
    parts: dict[str, np.ndarray] = {
        "qweight": np.ones((IN, OUT // 8), np.int32),
        "qzeros": np.zeros((2, OUT // 8), np.int32),
    }
    parts["scales"] = R.uniform(1, 2, (2, OUT)).astype(np.float16)
    said = {"quant_method": "awq", "bits": 4, "group_size": 32, "dynamic": {".*q": {"group_size": 64}}}
    expected = np.zeros((OUT, IN), np.float32)
    expected[::8] = np.repeat(parts["scales"].T[::8].astype(np.float32), 64, 1)
    check(parts, said, expected)


# ------------------------------------------------------------------------------------------------ modelopt
def test_modelopt_nvfp4():
    q, s = R.integers(0, 16, (OUT, IN)), R.uniform(1, 100, (OUT, IN // 16)).astype(E4M3)
    whole = np.array(0.003, np.float32)
    expected = np.empty((OUT, IN), np.float32)
    for o, i in np.ndindex(OUT, IN):
        expected[o, i] = np.float32(FP4[q[o, i]]) * (np.float32(s[o, i // 16]) * whole)
    parts = {"weight": (q[:, ::2] + 16 * q[:, 1::2]).astype(np.uint8), "weight_scale": s, "weight_scale_2": whole}
    parts["input_scale"] = np.array(0.5, np.float32)
    check(parts, {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, expected)


@pytest.mark.parametrize("shape", [(), (1,), (OUT,), (OUT, 1)])
def test_modelopt_fp8(shape: tuple[int, ...]):
    weight, scale = R.normal(size=(OUT, IN)).astype(E4M3), np.asarray(R.uniform(1, 2, shape), np.float32)
    parts = {"weight": weight, "weight_scale": scale, "input_scale": np.ones((), np.float32)}
    nested = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    check(parts, {"quant_method": "modelopt"} | nested, weight.astype(np.float32) * scale.reshape(-1, 1))


def test_modelopt_that_does_not_fit():
    parts = {"weight": np.zeros((OUT, IN // 2), np.uint8), "weight_scale": np.zeros((OUT, 8), E4M3)}
    said = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    with pytest.raises(ValueError, match="'q.weight_scale_2' is missing"):
        dense(module("q", **parts), said)
    with pytest.raises(ValueError, match="quant_algo = 'W4A16_AWQ' is not implemented"):
        dense(module("q", **parts), said | {"quant_algo": "W4A16_AWQ"})
    with pytest.raises(ValueError, match="quantization: 1 config keys are not understood.*rotation"):
        dense(module("q", **parts), said | {"quantization": {"rotation": 3}})


# ------------------------------------------------------------------------------------------------ caches
def test_scales_of_a_cache_are_not_dropped_in_silence():
    weight = R.normal(size=(OUT, IN)).astype(E4M3)
    arrays = module("q", weight=weight, weight_scale=np.ones(1, np.float32), k_scale=np.ones((), np.float32))
    said = {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8}}
    with pytest.raises(ValueError, match="1 tensors scale a cache in few bits, for example 'q.k_scale'"):
        dense(arrays, said)
    del arrays["q.k_scale"]
    with pytest.raises(ValueError, match="kv_cache_scheme=.*load with allow={'kv_cache_scheme'}"):
        dense(arrays, said)
    arrays["q.k_scale"] = np.ones((), np.float32)
    source, _ = unpacked(WHERE, Memory(arrays), {"quantization_config": said}, ("kv_cache_scheme",))
    assert [*source.tensors] == ["q.weight"]
