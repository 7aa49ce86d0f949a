"""Packed checkpoints that do not fit what their config says: one error that names where, what and what was expected."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from packed_files import Memory, dense, module
from safetensors.numpy import load_file, save_file
from test_packed import GROUP, IN, OUT, compressed_config, four_bits, gptq, gptq_config, scales
from tiny_checkpoint import write_golden_directory

from converters.checkpoint import open_checkpoint
from converters.packed import unpacked
from forge_jax import loading
from forge_jax.params import flatten

Arrays = dict[str, np.ndarray]
Q = "model.layers.0.q"


def read_all(arrays: Arrays, said: Any) -> None:
    source = dense(arrays, said)
    for name in source.tensors:
        source.read(name)


def refused(arrays: Arrays, said: Any, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_all(arrays, said)
    for part in ("/models/m.safetensors", *parts):
        assert part in str(caught.value), caught.value


def test_methods_that_are_not_known():
    for said in ({"quant_method": "zip"}, {"quant_method": ["gptq"]}, {"bits": 4}):
        refused({}, said, "quant_method = ", "is not known; expected auto-round, awq")
    refused(
        {}, {"quant_method": "aqlm"}, "quant_method = 'aqlm' is not read (sums of learned codebooks); expected auto"
    )
    refused({}, [4], "quantization_config is list, expected a dict")


def test_without_a_word_about_packing_nothing_changes():
    memory = Memory({"a": np.zeros(3, np.float32)})
    for config in ({"hidden_size": 8}, {"hidden_size": 8, "quantization_config": None}):
        source, rest = unpacked(Path("/m"), memory, config, ())
        assert source is memory
        assert rest == {"hidden_size": 8}


@pytest.mark.parametrize("part", ["qzeros", "scales", "g_idx"])
def test_a_missing_part(part: str):
    arrays, _ = gptq(4, GROUP, less=1)
    del arrays[f"{Q}.{part}"]
    refused(arrays, gptq_config(), f"'{Q}.{part}' is missing", "there are ", "qweight")


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("qzeros", lambda a: a[:, :1], "is [2, 1], expected [2, 2]"),
        ("scales", lambda a: a[:1], f"is [1, {OUT}], expected [2, {OUT}]"),
        ("scales", lambda a: a.astype(np.int32), "is I32, expected F16 or BF16 or F32"),
        ("g_idx", lambda a: a[:5], f"is [5], expected [{IN}]"),
        ("g_idx", lambda a: a + 1, "g_idx has 1 to 2, expected a group of 0 to 1"),
        ("qweight", lambda a: a[0], f"is [{OUT}], expected [any, any]"),
        ("qweight", lambda a: a[:0], f"is [0, {OUT}], expected [any, any]"),
        ("qweight", lambda a: a.astype(np.int16), "is I16, expected I32"),
    ],
)
def test_a_part_of_another_shape_or_type(part: str, change: Callable[[np.ndarray], np.ndarray], expected: str):
    arrays, _ = gptq(4, GROUP, less=1)
    name = f"{Q}.{part}"
    refused(arrays | {name: np.ascontiguousarray(change(arrays[name]))}, gptq_config(), Q, expected)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"bits": 9}, "has bits = 9, group_size = 32; expected one of (2, 3, 4, 5, 6, 7, 8)"),
        ({"bits": 4.0}, "has bits = 4.0"),
        ({"bits": 8}, f"is [{IN}], expected [{IN // 2}] (8 bits"),
        ({"group_size": 0}, "group_size = 0"),
        ({"group_size": 16}, f"is [2, {OUT}], expected [4, {OUT}]"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'; expected 'gptq' or 'gptq_v2'"),
        ({"pack_dtype": "int64"}, "is I32, expected I64"),
        ({"pack_dtype": "int4"}, "pack_dtype = 'int4' is not known; expected int8, int16, int32, int64"),
        ({"is_marlin_format": True}, "is_marlin_format=True"),
        (
            {"rotation": "hadamard"},
            "1 config keys are not understood and could change the numbers: rotation=",
        ),
        ({"dynamic": {"-:.*q": {}}}, "says that model.layers.0.q is not quantised; it has a qweight"),
        ({"dynamic": {".*q": {"rank": 8}}}, "rank=8"),
        ({"dynamic": {"(": {}}}, "'(' is no regular expression"),
        ({"dynamic": {".*": 3}}, "is int, expected a dict"),
        ({"dynamic": [3]}, "dynamic is list, expected a dict"),
    ],
)
def test_a_config_of_gptq_that_does_not_fit(more: dict[str, Any], expected: str):
    arrays, _ = gptq(4, GROUP, less=1)
    refused(arrays, gptq_config() | more, "quantization_config", expected)


def test_codes_that_no_scheme_explains():
    weight = np.zeros((4, 4), np.int8)
    refused(module("q", weight=weight), gptq_config(), "'q.weight' is I8, and no scale beside it says of what")
    arrays, _ = gptq(4, GROUP, less=1)
    refused(arrays | {f"{Q}.weight": scales(OUT, IN)}, gptq_config(), f"'{Q}.weight' is stored, and ['{Q}.qweight'")


def test_awq_that_does_not_fit():
    arrays = module("q", qweight=np.zeros((48, 2), np.int32), qzeros=np.zeros((2, 2), np.int32), scales=scales(2, OUT))
    said = {"quant_method": "awq", "bits": 4, "group_size": 32}
    refused(arrays, said, "'q.qweight' has 48 inputs, no multiple of group_size 32")
    refused(arrays, said | {"group_size": 16}, "'q.qzeros' is [2, 2], expected [3, 2]")
    refused(arrays, said | {"version": "exl"}, "version = 'exl' is not implemented; expected gemm, gemv, gemv_fast")
    refused(arrays, said | {"version": "gemv_fast"}, "'q.qweight' is I32, expected I16")
    refused(arrays, said | {"bits": 8}, "bits = 8, group_size = 32; expected 4")


def test_fp8_that_does_not_fit():
    weight, said = np.zeros((20, 50), ml_dtypes.float8_e4m3fn), {"quant_method": "fp8", "weight_block_size": [16, 16]}
    refused(module("q", weight=weight), said, "'q.weight_scale_inv' is missing (the scale of q.weight)")
    wrong = module("q", weight=weight, weight_scale_inv=np.ones((2, 3), np.float32))
    refused(wrong, said, "'q.weight_scale_inv' is [2, 3], expected [2, 4]")
    refused(wrong, said | {"weight_block_size": None}, "is [2, 3], expected one number or [20, 1]")
    refused(wrong, {"quant_method": "fp8"}, "is [2, 3], expected [1, 1]")
    refused(wrong, said | {"expert_dtype": "fp4"}, "expert_dtype = 'fp4' is not implemented")
    refused(wrong, said | {"weight_block_size": [0, 16]}, "weight_block_size = [0, 16], expected two sizes or null")
    refused({"q": weight[0]}, said, "'q' is float8 of shape [50], expected a matrix")


def test_compressed_tensors_that_do_not_fit():
    arrays = module("q", weight=np.zeros((OUT, IN), np.int8), weight_scale=scales(OUT, 1))
    said = {"num_bits": 8, "type": "int", "strategy": "channel"}
    config = compressed_config("int-quantized", **said)
    dense(arrays, config)
    refused(arrays, compressed_config("marlin-24", **said), "format 'marlin-24'")
    refused(arrays, compressed_config("int-quantized", **said | {"strategy": "token"}), "strategy = 'token'")
    refused(arrays, compressed_config("int-quantized", **said, sparse=2), "sparse=2")
    refused(arrays, compressed_config("int-quantized", **said | {"strategy": ["channel"]}), "strategy = ['channel']")
    refused(arrays, compressed_config("int-quantized", **said | {"type": [1]}), "type [1]")
    refused(arrays, config | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme=")
    refused(arrays, config | {"transform_config": {"config_groups": {"u": 1}}}, "transform_config=")
    refused(arrays, config | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config")
    refused(arrays, config | {"config_groups": {}}, "q is quantised, and is a target of no config group")
    wrong = arrays | {"q.weight_scale": scales(OUT, 2)}
    refused(wrong, config, "'q.weight_scale' is [16, 2], expected [16, 1] (strategy channel)")
    refused(arrays | {"q.weight_zero_point": np.zeros((OUT, 2), np.int8)}, config, "is [16, 2], expected [16, 1]")
    group = compressed_config("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)
    parts = {"weight_packed": np.zeros((OUT, 8), np.int32), "weight_scale": scales(OUT, 2)}
    refused(module("q", **parts), group, "'q.weight_shape' is missing")
    shape = np.array([OUT, 2**40])
    refused(module("q", **parts, weight_shape=shape), group, "'q.weight_packed' is [16, 8], expected [16, ")
    group["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    shape = np.array([OUT, IN])
    refused(module("q", **parts, weight_shape=shape), group, "'q.weight_g_idx' is missing")


def test_mxfp4_that_does_not_fit():
    blocks = {"e.up_blocks": np.zeros((2, OUT, 2, 16), np.uint8)}
    refused(blocks, {"quant_method": "mxfp4"}, "'e.up_scales' is missing")
    wrong = blocks | {"e.up_scales": np.zeros((2, OUT, 3), np.uint8)}
    refused(wrong, {"quant_method": "mxfp4"}, "'e.up_scales' is [2, 16, 3], expected [2, 16, 2]")


def test_bitsandbytes_that_do_not_fit():
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    arrays, _ = four_bits(nested=True)
    for part in ("quant_map", "absmax", "nested_absmax", "nested_quant_map"):
        rest = {name: array for name, array in arrays.items() if name != f"q.weight.{part}"}
        refused(rest, said, f"'q.weight.{part}' is missing")
    refused(arrays | {"q.weight": arrays["q.weight"][:-1]}, said, "'q.weight' has 511 bytes, expected 512 for [16, 64]")
    state = "q.weight.quant_state.bitsandbytes__nf4"
    for change, expected in (
        ({"shape": [OUT, -1]}, "expected sizes"),
        ({"blocksize": 0}, "blocksize and shape are 0"),
        ({"quant_type": "int3"}, "'int3' of 'bfloat16'; expected nf4 or fp4"),
        ({"rotated": 1}, "rotated=1"),
    ):
        text = json.dumps(json.loads(arrays[state].tobytes()) | change)
        refused(arrays | {state: np.frombuffer(text.encode(), np.uint8)}, said, state, expected)
    refused(arrays | {state: np.zeros(3, np.uint8)}, said, state, "not valid JSON")
    eight = module("q", weight=np.zeros((4, 4), np.int8), SCB=np.ones(3, np.float32))
    refused(eight, said, "'q.SCB' is [3], expected [4]")
    eight["q.SCB"], eight["q.weight_format"] = np.ones(4, np.float32), np.array(2, np.uint8)
    refused(eight, said, "'q.weight_format' is 2, expected 0")


# ------------------------------------------------------------------------------------------------ the front door
def packed_directory(directory: Path, said: dict[str, Any], **more: Any) -> Path:
    """A small llama whose down projections are GPTQ with one group."""
    write_golden_directory("llama", directory)
    arrays = load_file(directory / "model.safetensors")
    for name in [name for name in arrays if name.endswith("down_proj.weight")]:
        outputs, inputs = arrays.pop(name).shape
        base = name.removesuffix(".weight")
        arrays |= module(
            base,
            qweight=np.full((inputs // 8, outputs), 0x7777_7777, np.int32),
            qzeros=np.full((1, outputs // 8), 0x4444_4444, np.int32),
            scales=np.full((1, outputs), 0.25, np.float16),
            g_idx=np.zeros(inputs, np.int32),
        )
    save_file(arrays, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": said} | more))
    return directory


def test_a_packed_directory_loads_as_any_other(tmp_path: Path):
    directory = packed_directory(tmp_path / "m", gptq_config(4, -1))
    model = loading.load(directory, progress=False)
    down = [leaf for path, leaf in flatten(model.params) if path.endswith(".down")]
    assert len(down) == len(model.spec.layers)
    assert all((np.asarray(leaf.dense()) == 0.25 * (7 - 5)).all() for leaf in down)
    assert "quantization_config" not in model.config


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_on_an_accelerator_packed_weights_get_the_half_of_the_others(
    tmp_path: Path, half: str, monkeypatch: pytest.MonkeyPatch
):
    directory = packed_directory(tmp_path / "m", gptq_config(4, -1), dtype=half)
    arrays = load_file(directory / "model.safetensors")
    narrow = {name: a.astype(half) if a.dtype == np.float32 else a for name, a in arrays.items()}
    save_file(narrow, directory / "model.safetensors")
    monkeypatch.setattr(loading.jax, "default_backend", lambda: "gpu")
    model = loading.load(directory, progress=False)
    assert {str(leaf.dtype) for _, leaf in flatten(model.params)} == {half}


def test_strictness_stays(tmp_path: Path):
    directory = packed_directory(tmp_path / "m", gptq_config(4, -1))
    arrays = load_file(directory / "model.safetensors")
    save_file(arrays | {"model.layers.0.mlp.down_proj.perm": np.zeros(3, np.int32)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"down_proj.perm \[3\] is used by nothing"):
        loading.load(directory, progress=False)


def test_a_key_that_does_not_matter_can_be_allowed(tmp_path: Path):
    directory = packed_directory(tmp_path / "m", gptq_config(4, -1, colour="red"))
    with pytest.raises(ValueError, match=r"config.json: quantization_config: .*colour='red'"):
        loading.load(directory, progress=False)
    loading.load(directory, progress=False, allow={"colour"})


def test_what_older_quantisers_wrote_beside_the_config(tmp_path: Path):
    directory = packed_directory(tmp_path / "m", {})
    with pytest.raises(ValueError, match="qweight"):
        loading.load(directory, progress=False)
    said = {key: value for key, value in gptq_config(4, -1).items() if key != "quant_method"}
    (directory / "quantize_config.json").write_text(json.dumps(said))
    loading.load(directory, progress=False)
    (directory / "quantize_config.json").write_text(json.dumps(said | {"colour": "red"}))
    with pytest.raises(ValueError, match=r"quantize_config.json: .*colour='red'"):
        loading.load(directory, progress=False)


@pytest.mark.parametrize("inner", [False, True], ids=["outside", "inside"])
def test_the_language_model_of_a_composite(shared: Path, tmp_path: Path, inner: bool):
    """What is said of packing stands beside text_config, or in it; the names are those of the whole."""
    directory = Path(shutil.copytree(shared / "oracle/multimodal/llava", tmp_path / "m"))
    arrays = load_file(directory / "model.safetensors")
    names = [name for name in arrays if "language_model" in name and name.endswith("down_proj.weight")]
    for name in names:
        arrays[name] = np.full(arrays[name].shape, 127, np.int8)
        arrays[name.removesuffix("weight") + "SCB"] = np.full(len(arrays[name]), 0.5, np.float32)
    save_file(arrays, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (config["text_config"] if inner else config)["quantization_config"] = {"quant_method": "bitsandbytes"}
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(directory)
    params = checkpoint.read(lambda _, values: values)
    checkpoint.source.close()
    down = [leaf for path, leaf in flatten(params) if path.endswith(".down")]
    assert len(down) == len(names) > 0
    assert all((leaf == 0.5).all() for leaf in down)
