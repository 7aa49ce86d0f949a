"""Packed weights, decoded: against reference values bit for bit, against formulas written out, and refused."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import read_golden
from packed_files import WHERE, Memory, assert_written_again, dense, module, stream
from safetensors.numpy import save_file

import forge_jax as forge
from converters.checkpoint import open_checkpoint
from converters.packed import unpacked
from converters.packed.weight import fields
from forge_jax.loading import load
from forge_jax.tensor import QTensor

R = np.random.default_rng(7)
OUT, IN, GROUP = 16, 64, 32
E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


@pytest.fixture(autouse=True)
def drawn_anew() -> None:
    """Every test draws the same numbers, whichever were run before it."""
    R.bit_generator.state = np.random.default_rng(7).bit_generator.state


def scales(*shape: int) -> np.ndarray:
    return R.uniform(0.01, 0.1, shape).astype(np.float16)


def codes(bits: int, *shape: int) -> np.ndarray:
    return R.integers(0, 2**bits, shape)


# ------------------------------------------------------------------------------------------------ references
def test_every_reference_weight_bit_for_bit(shared: Path):
    """No tolerance: the reference decodes in float32 too (NVFP4: then rounds to bfloat16, and so do we)."""
    found = 0
    for case in sorted((shared / "oracle/quant").iterdir()):
        checkpoint = open_checkpoint(case)
        with np.load(case / "ref.npz") as file:
            for key in (key for key in file.files if key.startswith("dequant/")):
                ours = checkpoint.source.read(key.removeprefix("dequant/") + ".weight")
                np.testing.assert_array_equal(ours.astype(np.float32), file[key], err_msg=case.name)
                found += 1
        checkpoint.source.close()
    assert found


@pytest.mark.parametrize("name", ["gptq_3b_g32_actorder_asym", "fp8_block_qwen3_moe", "mxfp4_gpt_oss"])
def test_logits_of_reference_checkpoints(shared: Path, name: str):
    from oracle_loader import load

    case = shared / "oracle/quant" / name
    if not case.exists():
        pytest.skip(f"{case} is not there")
    with np.load(case / "ref.npz") as file:
        ours = load(case)(file["input_ids"])
        assert np.abs(ours - file["logits"]).max() / np.abs(file["logits"]).max() < 1e-5


# ------------------------------------------------------------------------------------------------ bits
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 32, 45])
def test_fields_of_a_stream_of_bits(bits: int, count: int):
    values = codes(bits, 3, count)
    np.testing.assert_array_equal(fields(stream(values, bits), bits, count), values)


# ------------------------------------------------------------------------------------------------ GPTQ
def gptq(bits: int, size: int, *, less: int, ordered: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a module and its weight; zeros are stored `less`, inputs belong to groups in any order."""
    groups = 1 if size == -1 else IN // size
    q, z, s = codes(bits, IN, OUT), codes(bits, groups, OUT), scales(groups, OUT)
    g = np.arange(IN) * groups // IN
    g = R.permutation(g) if ordered else g
    expected = np.empty((OUT, IN), np.float32)
    for i in range(IN):
        for o in range(OUT):
            expected[o, i] = np.float32(s[g[i], o]) * np.float32(q[i, o] - z[g[i], o])
    parts = {
        "qweight": np.ascontiguousarray(stream(q.T, bits).T),
        "qzeros": stream((z - less) % 2**bits, bits),
        "scales": s,
        "g_idx": g.astype(np.int32),
    }
    return module("model.layers.0.q", **parts), expected


def gptq_config(bits: int = 4, size: int = GROUP, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": True, "sym": False, **more}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("size", [GROUP, -1])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [True, False])
def test_gptq(bits: int, size: int, version: str, ordered: bool):
    arrays, expected = gptq(bits, size, less=int(version == "gptq"), ordered=ordered)
    source = dense(arrays, gptq_config(bits, size, checkpoint_format=version))
    assert list(source.tensors) == ["model.layers.0.q.weight"]
    np.testing.assert_array_equal(source.read("model.layers.0.q.weight"), expected)
    assert_written_again(source, arrays)
    assert source.tensors["model.layers.0.q.weight"].nbytes == sum(array.nbytes for array in arrays.values())


def test_gptq_of_several_schemes():
    first, expected = gptq(4, GROUP, less=1)
    second, other = gptq(8, -1, less=1)
    second = {name.replace("layers.0.q", "layers.1.down"): array for name, array in second.items()}
    plain = {"lm_head.weight": scales(3, 4)}
    dynamic = {r"-:lm_head": {}, r"+:.*\.down": {"bits": 8, "group_size": -1}, r".*": {}}
    source = dense(first | second | plain, gptq_config(dynamic=dynamic))
    np.testing.assert_array_equal(source.read("model.layers.0.q.weight"), expected)
    np.testing.assert_array_equal(source.read("model.layers.1.down.weight"), other)
    np.testing.assert_array_equal(source.read("lm_head.weight"), plain["lm_head.weight"])


def test_gptq_of_a_model_whose_matrices_have_inputs_first():
    arrays, expected = gptq(4, GROUP, less=1)
    arrays = {name.replace("layers.0.q", "h.0.attn.c_attn"): array for name, array in arrays.items()}
    source, _ = unpacked(WHERE, Memory(arrays), {"quantization_config": gptq_config(), "model_type": "gpt2"}, ())
    assert source.tensors["model.h.0.attn.c_attn.weight"].shape == (IN, OUT)
    np.testing.assert_array_equal(source.read("model.h.0.attn.c_attn.weight"), expected.T)


# ------------------------------------------------------------------------------------------------ AWQ
def test_awq_gemm():
    q, z, s = codes(4, IN, OUT), codes(4, IN // GROUP, OUT), scales(IN // GROUP, OUT)
    nibble = [0, 2, 4, 6, 1, 3, 5, 7]  # the output that lies in each nibble of a word
    order = np.concatenate([8 * word + np.array(nibble) for word in range(OUT // 8)])
    arrays = module("q", qweight=stream(q[:, order], 4), qzeros=stream(z[:, order], 4), scales=s)
    source = dense(arrays, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"})
    expected = [[np.float32(s[i // GROUP, o]) * (q[i, o] - z[i // GROUP, o]) for i in range(IN)] for o in range(OUT)]
    np.testing.assert_array_equal(source.read("q.weight"), np.array(expected, np.float32))


def test_awq_gemv():
    q, z, s = codes(4, OUT, IN), codes(4, OUT, 8), scales(OUT, 8)
    arrays = module("q", qweight=stream(q, 4), qzeros=stream(z, 4), scales=s)
    source = dense(arrays, {"quant_method": "awq", "w_bit": 4, "q_group_size": GROUP, "version": "GEMV"})
    expected = [[np.float32(s[o, i // GROUP]) * (q[o, i] - z[o, i // GROUP]) for i in range(IN)] for o in range(OUT)]
    np.testing.assert_array_equal(source.read("q.weight"), np.array(expected, np.float32))


def test_awq_gemv_is_written_again():
    q, z, s = codes(4, OUT, IN), codes(4, OUT, 8), scales(OUT, 8)
    z[:, IN // GROUP :], s[:, IN // GROUP :] = 0, 0  # no group is there
    arrays = module("q", qweight=stream(q, 4), qzeros=stream(z, 4), scales=s)
    said = {"quant_method": "awq", "w_bit": 4, "q_group_size": GROUP, "version": "GEMV"}
    assert_written_again(dense(arrays, said), arrays)


# ------------------------------------------------------------------------------------------------ FP8
@pytest.mark.parametrize("shape", [(20, 50), (3, 20, 50)], ids=["matrix", "experts"])
@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_fp8_in_blocks(shape: tuple[int, ...], kind: type):
    weight, scale = R.normal(size=shape).astype(kind), R.normal(size=(*shape[:-2], 2, 4)).astype(np.float32)
    source = dense({"q": weight, "q_scale_inv": scale}, {"quant_method": "fp8", "weight_block_size": [16, 16]})
    expected = np.empty(shape, np.float32)
    for at in np.ndindex(shape):
        expected[at] = np.float32(weight[at]) * scale[(*at[:-2], at[-2] // 16, at[-1] // 16)]
    assert list(source.tensors) == ["q"]
    np.testing.assert_array_equal(source.read("q"), expected)
    assert_written_again(source, {"q": weight, "q_scale_inv": scale})


@pytest.mark.parametrize("shape", [(), (1,), (20, 1)])
@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_fp8_with_a_scale_of_the_tensor_or_a_row(shape: tuple[int, ...], kind: type):
    weight, scale = R.normal(size=(20, 50)).astype(kind), R.uniform(1, 2, shape).astype(np.float32)
    arrays = module("q", weight=weight, weight_scale=np.asarray(scale), input_scale=np.ones(1, np.float32))
    source = dense(arrays, {"quant_method": "fp8", "activation_scheme": "static"})
    np.testing.assert_array_equal(source.read("q.weight"), weight.astype(np.float32) * scale)
    assert_written_again(source, arrays)
    assert list(source.tensors) == ["q.weight"]


def test_a_directory_in_e5m2_loads_and_computes(tmp_path: Path):
    """It reaches to 57344, E4M3 to 448."""
    golden = read_golden("llama")
    arrays, expected = dict(golden.arrays), {}
    for name, matrix in golden.arrays.items():
        if name.endswith("_proj.weight"):
            weight = (matrix.astype(np.float32) * 40000).astype(E5M2)
            arrays |= {name: weight, f"{name}_scale": np.array([2.5e-5], np.float32)}
            expected[name] = weight.astype(np.float32) * np.float32(2.5e-5)
    (tmp_path / "config.json").write_text(json.dumps(golden.config | {"quantization_config": {"quant_method": "fp8"}}))
    save_file(arrays, tmp_path / "model.safetensors")
    packed, plain = (load(tmp_path, packed=packed, progress=False) for packed in (True, False))
    down = packed.params["layers"]["1"]["mlp"]["down"]
    assert isinstance(down, QTensor)
    assert np.abs(np.asarray(down.parts["codes"], np.float32)).max() > 448
    for model in (packed, plain):
        found = model.params["layers"]["1"]["mlp"]["down"]
        np.testing.assert_array_equal(forge.unpacked(found), expected["model.layers.1.mlp.down_proj.weight"].T)
    ours, wanted = (forge.forward(m.spec, m.params, forge.inputs(np.arange(12)[None]))[0] for m in (packed, plain))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_fp8_scales_that_are_powers_of_two_and_blocks_that_are_not_named():
    weight = R.normal(size=(3, 130)).astype(E4M3)
    scale = np.array([[0.5, 4.0]]).astype(ml_dtypes.float8_e8m0fnu)
    arrays = module("q", weight=weight, weight_scale_inv=scale)
    source = dense(arrays, {"quant_method": "fp8"})
    assert_written_again(source, arrays)
    each = np.array([0.5] * 128 + [4.0] * 2, np.float32)
    np.testing.assert_array_equal(source.read("q.weight"), weight.astype(np.float32) * each)


def test_fp8_experts_with_a_scale_an_output():
    weight, scale = R.normal(size=(2, 6, 5)).astype(E4M3), R.uniform(1, 2, (2, 1, 5)).astype(np.float32)
    source = dense({"e.down": weight, "e.down_scale": scale}, {"quant_method": "fbgemm_fp8"})
    assert_written_again(source, {"e.down": weight, "e.down_scale": scale})
    np.testing.assert_array_equal(source.read("e.down"), weight.astype(np.float32) * scale)


# ------------------------------------------------------------------------------------------------ compressed-tensors
def compressed_config(format: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_compressed_integers_in_groups(bits: int, symmetric: bool, ordered: bool):
    half, groups = 2 ** (bits - 1), IN // GROUP
    q, s = codes(bits, OUT, IN) - half, scales(OUT, groups)
    z = np.zeros((OUT, groups), int) if symmetric else codes(bits, OUT, groups) - half
    g = np.arange(IN) // GROUP
    g = R.permutation(g) if ordered else g
    parts = {"weight_packed": stream(q + half, bits), "weight_scale": s, "weight_shape": np.array([OUT, IN])}
    parts |= {} if symmetric else {"weight_zero_point": np.ascontiguousarray(stream((z + half).T, bits).T)}
    parts |= {"weight_g_idx": g.astype(np.int32)} if ordered else {}
    said = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": symmetric}
    said |= {"actorder": "group"} if ordered else {}
    expected = [[np.float32(s[o, g[i]]) * (q[o, i] - z[o, g[i]]) for i in range(IN)] for o in range(OUT)]
    source = dense(module("q", **parts), compressed_config("pack-quantized", **said))
    assert_written_again(source, module("q", **parts))
    np.testing.assert_array_equal(source.read("q.weight"), np.array(expected, np.float32))


def test_compressed_integers_with_one_zero_and_an_order_that_was_never_filled_in():
    q, zero = codes(4, OUT, IN), np.array([3], np.int8)
    parts = {"weight_packed": stream(q, 4), "weight_scale": scales(1), "weight_shape": np.array([OUT, IN])}
    said = {"num_bits": 4, "type": "int", "strategy": "tensor", "symmetric": False, "actorder": "group"}
    arrays = module("q", **parts, weight_zero_point=zero, weight_g_idx=np.full(IN, -1))
    source = dense(arrays, compressed_config("pack-quantized", **said))
    assert_written_again(source, arrays)
    found = source.read("q.weight")
    np.testing.assert_array_equal(found, np.float32(parts["weight_scale"][0]) * np.float32(q - 8 - 3))


def test_compressed_integers_by_row_with_zeros():
    q, s = R.integers(-128, 128, (OUT, IN)).astype(np.int8), scales(OUT, 1)
    z = R.integers(-8, 8, (OUT, 1)).astype(np.int8)
    said = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}
    arrays = module("q", weight=q, weight_scale=s, weight_zero_point=z)
    source = dense(arrays, compressed_config("int-quantized", **said))
    assert_written_again(source, arrays)
    found = source.read("q.weight")
    np.testing.assert_array_equal(found, s.astype(np.float32) * (q.astype(np.float32) - z))


def test_compressed_groups_are_chosen_by_name_pattern_and_class():
    said = compressed_config("int-quantized", num_bits=8, type="int", strategy="channel")
    tensor = {"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}, "targets": ["re:.*down$"]}
    said["config_groups"]["group_1"] = tensor | {"format": "float-quantized"}
    q, s = R.integers(-128, 128, (OUT, IN)).astype(np.int8), scales(OUT, 1)
    f, t = R.normal(size=(OUT, IN)).astype(E4M3), scales(1)
    source = dense(module("q", weight=q, weight_scale=s) | module("down", weight=f, weight_scale=t), said)
    np.testing.assert_array_equal(source.read("q.weight"), s.astype(np.float32) * q)
    np.testing.assert_array_equal(source.read("down.weight"), t.astype(np.float32) * f.astype(np.float32))


def test_compressed_mxfp8():
    weight, power = R.normal(size=(OUT, IN)).astype(E4M3), R.integers(120, 130, (OUT, IN // 32)).astype(np.uint8)
    said = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    source = dense(module("q", weight=weight, weight_scale=power), compressed_config("mxfp8-quantized", **said))
    assert_written_again(source, module("q", weight=weight, weight_scale=power))
    expected = weight.astype(np.float32) * np.repeat(2.0 ** (power.astype(np.float32) - 127), 32, -1)
    np.testing.assert_array_equal(source.read("q.weight"), expected)


FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


def bytes_of(nibbles: np.ndarray) -> np.ndarray:
    """Two a byte, the first in the low half."""
    return (nibbles[..., ::2] + 16 * nibbles[..., 1::2]).astype(np.uint8)


def test_compressed_nvfp4():
    q, s = codes(4, OUT, IN), R.uniform(1, 100, (OUT, IN // 16)).astype(E4M3)
    whole = np.array([300.0], np.float32)
    said = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    arrays = module("q", weight_packed=bytes_of(q), weight_scale=s, weight_global_scale=whole, input_global_scale=whole)
    source = dense(arrays, compressed_config("nvfp4-pack-quantized", **said))
    assert list(source.tensors) == ["q.weight"]
    scale = [[np.float32(s[o, i // 16]) / whole[0] for i in range(IN)] for o in range(OUT)]
    expected = [[np.float32(FP4[q[o, i]]) * scale[o][i] for i in range(IN)] for o in range(OUT)]
    np.testing.assert_array_equal(source.read("q.weight"), np.array(expected).astype(ml_dtypes.bfloat16))


def test_compressed_mxfp4():
    q, s = codes(4, OUT, IN), R.integers(120, 130, (OUT, IN // 32)).astype(np.uint8)
    said = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    source = dense(
        module("q", weight_packed=bytes_of(q), weight_scale=s), compressed_config("mxfp4-pack-quantized", **said)
    )
    expected = [[FP4[q[o, i]] * 2.0 ** (int(s[o, i // 32]) - 127) for i in range(IN)] for o in range(OUT)]
    np.testing.assert_array_equal(source.read("q.weight"), np.array(expected, np.float32))


# ------------------------------------------------------------------------------------------------ MXFP4
def test_mxfp4_of_experts():
    q, s = codes(4, 2, OUT, IN), R.integers(0, 250, (2, OUT, IN // 32)).astype(np.uint8)
    arrays = {"e.up_blocks": bytes_of(q).reshape(2, OUT, IN // 32, 16), "e.up_scales": s}
    source = dense(arrays, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    expected = np.empty((2, IN, OUT), np.float32)
    for e, i, o in np.ndindex(expected.shape):
        expected[e, i, o] = FP4[q[e, o, i]] * 2.0 ** (int(s[e, o, i // 32]) - 127)
    np.testing.assert_array_equal(source.read("e.up"), expected)
    arrays["e.up_scales"][1] = 254  # 6 * 2^127 is infinite in float32: no warning, but the value
    assert np.isinf(dense(arrays, {"quant_method": "mxfp4"}).read("e.up")).any()
    arrays["e.up_scales"][1, 2, 1] = 255
    with pytest.raises(ValueError, match="'e.up': a scale has the exponent 255"):
        dense(arrays, {"quant_method": "mxfp4"}).read("e.up")


# ------------------------------------------------------------------------------------------------ bitsandbytes
def test_bitsandbytes_of_8_bits():
    q, s = R.integers(-127, 128, (OUT, IN)).astype(np.int8), R.uniform(1, 9, OUT).astype(np.float32)
    arrays = module("q", weight=q, SCB=s, weight_format=np.array(0, np.uint8))
    source = dense(arrays, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert list(source.tensors) == ["q.weight"]
    expected = q.astype(np.float64) * s[:, None] / 127  # the reference multiplies, rounds, divides: 1 ulp of float32
    np.testing.assert_allclose(source.read("q.weight"), expected, rtol=2**-23)


def four_bits(nested: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a module of 4-bit codes and its weight."""
    q, table = codes(4, OUT * IN), np.sort(R.normal(size=16)).astype(np.float32)
    blocks = OUT * IN // 64
    largest = R.uniform(1, 2, blocks).astype(np.float32)
    said: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [OUT, IN]}
    parts = {"weight": (16 * q[::2] + q[1::2]).astype(np.uint8)[:, None], "weight.quant_map": table}
    if nested:
        index, inner = codes(8, blocks).astype(np.uint8), np.sort(R.normal(size=256)).astype(np.float32)
        outer = R.uniform(1, 2, blocks // 8).astype(np.float32)
        largest = np.array([inner[k] * outer[b // 8] + np.float32(0.25) for b, k in enumerate(index)], np.float32)
        said |= {"nested_blocksize": 8, "nested_offset": 0.25, "nested_dtype": "float32"}
        parts |= {"weight.absmax": index, "weight.nested_absmax": outer, "weight.nested_quant_map": inner}
    else:
        parts["weight.absmax"] = largest
    parts["weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    expected = [table[k] * largest[j // 64] for j, k in enumerate(q)]
    return module("q", **parts), np.array(expected, np.float32).reshape(OUT, IN)


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_of_4_bits(nested: bool):
    arrays, expected = four_bits(nested)
    source = dense(arrays, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    assert list(source.tensors) == ["q.weight"]
    np.testing.assert_array_equal(source.read("q.weight"), expected)
