"""Packed weights written: as they were stored byte for byte, and in other formats that hold the same numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from converters.packed.write import MAKERS
from forge_jax.cli import main
from forge_jax.exporting_packed import export_packed
from forge_jax.loading import Model, load
from forge_jax.params import flatten
from forge_jax.quantization import quantize
from forge_jax.tensor import QTensor, dense

pytestmark = pytest.mark.usefixtures("quick_compiles")

CASES = [
    "awq_g128 awq_g32 awq_skip bnb_int8 bnb_nf4 bnb_nf4_dq ct_fp8_block ct_mxfp4a16 ct_nvfp4 ct_w2a16_g32",
    "ct_w4a16_asym_g32 ct_w4a16_g32 ct_w8a8 fp8_block128 fp8_block32 fp8_block_qwen3_moe fp8_tensor_static",
    "gptq_2b_g32_asym gptq_2b_gall_sym gptq_3b_g32_actorder_asym gptq_3b_gall_sym gptq_4b_g128_qwen2",
    "gptq_4b_g32_actorder gptq_4b_g32_sym gptq_4b_g32_v2 gptq_4b_g32_v2_asym_actorder gptq_8b_g128_sym",
    "gptq_8b_g32_sym mxfp4_gpt_oss",
]


@pytest.mark.parametrize("case", " ".join(CASES).split())
def test_a_checkpoint_is_written_as_it_was_byte_for_byte(shared: Path, tmp_path: Path, case: str):
    original = shared / "oracle/quant" / case
    if not original.exists():
        pytest.skip(f"{original} is not there")
    written = export_packed(load(original, progress=False), tmp_path / "out")
    assert (written / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()


def test_a_format_that_is_only_read_is_written_as_it_was_too(shared: Path, tmp_path: Path):
    original = shared / "oracle/quant/gptq_4b_g32_sym"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    config = json.loads((original / "config.json").read_text())
    said = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    (tmp_path / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes())
    model = load(tmp_path, progress=False)
    written = export_packed(model, tmp_path / "out")
    assert json.loads((written / "config.json").read_text())["quantization_config"] == said
    assert (written / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert_same(model, load(export_packed(model, tmp_path / "awq", method="awq"), progress=False))


# which other formats hold the weights of a checkpoint exactly
OTHERS = {
    "awq_g32": "compressed-tensors gptq",
    "awq_skip": "compressed-tensors gptq",
    "bnb_int8": "",
    "bnb_nf4_dq": "",
    "ct_fp8_block": "fp8",
    "ct_mxfp4a16": "",
    "ct_nvfp4": "",
    "ct_w2a16_g32": "gptq",
    "ct_w4a16_asym_g32": "awq gptq",
    "ct_w4a16_g32": "awq gptq",
    "ct_w8a8": "gptq",
    "fp8_block128": "compressed-tensors",
    "fp8_block_qwen3_moe": "compressed-tensors",
    "fp8_tensor_static": "compressed-tensors",
    "gptq_3b_g32_actorder_asym": "",
    "gptq_4b_g128_qwen2": "awq compressed-tensors",
    "gptq_4b_g32_actorder": "",
    "gptq_4b_g32_v2_asym_actorder": "",
    "gptq_8b_g128_sym": "compressed-tensors",
    "mxfp4_gpt_oss": "",
}


def assert_same(one: Model, two: Model) -> None:
    """The same numbers bit for bit, and the same leaves packed."""
    ours, theirs = dict(flatten(one.params)), dict(flatten(two.params))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert isinstance(leaf, QTensor) == isinstance(theirs[path], QTensor), path
        np.testing.assert_array_equal(on_host(leaf), on_host(theirs[path]), err_msg=path)


def on_host(leaf: Any) -> np.ndarray:
    """A leaf decoded by NumPy."""
    return np.asarray(dense(jax.tree.map(np.asarray, leaf)))


@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_hold_the_same_numbers_or_refuse(shared: Path, tmp_path: Path, case: str):
    """Every format is tried, that of the checkpoint too, as if the model came from nowhere."""
    original = shared / "oracle/quant" / case
    if not original.exists():
        pytest.skip(f"{original} is not there")
    model = load(original, progress=False)
    assert model.packing is not None
    own = model.packing.method
    model = replace(model, packing=None)
    for method in MAKERS:
        if method in (own, *OTHERS[case].split()):
            written = export_packed(model, tmp_path / method, method=method)
            assert json.loads((written / "config.json").read_text())["quantization_config"]["quant_method"] == method
            assert_same(model, load(written, progress=False))
        else:
            with pytest.raises(ValueError, match=rf"as {method}: it .* Formats that can: [a-z\-, 0-9]*{own}"):
                export_packed(model, tmp_path / method, method=method)
            assert not (tmp_path / method).exists()


def test_convert_writes_packed_formats(shared: Path, tmp_path: Path):
    original = shared / "oracle/quant/gptq_4b_g32_sym"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    assert main(["convert", str(original), str(tmp_path / "same"), "--to", "packed"]) == 0
    assert (tmp_path / "same/model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()
    assert main(["convert", str(original), str(tmp_path / "awq"), "--to", "awq", "--max-shard-size", "100KB"]) == 0
    assert_same(load(original, progress=False), load(tmp_path / "awq", progress=False))


def test_what_is_not_packed_is_refused(shared: Path, tmp_path: Path):
    original = shared / "oracle/quant/awq_g32"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    with pytest.raises(ValueError, match="no weight of this model is packed"):
        export_packed(load(original, packed=False, progress=False), tmp_path / "out")
    model = load(original, progress=False)
    with pytest.raises(ValueError, match="'gguf' is unknown; expected auto, awq"):
        export_packed(model, tmp_path / "out", method="gguf")
    params = {**model.params, "head": quantize(model.spec, model.params, "int8", requantize=True)["head"]}
    with pytest.raises(ValueError, match="lm_head.weight is packed and was plain in the checkpoint"):
        export_packed(replace(model, params=params), tmp_path / "out")
    scaled = jax.tree.map(lambda leaf: leaf * 0 if leaf.dtype == np.uint8 else leaf, model.params)
    assert_same(replace(model, params=scaled), load(export_packed(replace(model, params=scaled), tmp_path / "out")))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("case", "method", "package"),
    [
        ("gptq_4b_g32_sym", "compressed-tensors", "compressed_tensors"),
        ("gptq_8b_g32_sym", "compressed-tensors", "compressed_tensors"),
        ("fp8_tensor_static", "compressed-tensors", "compressed_tensors"),
        ("fp8_block128", "compressed-tensors", "compressed_tensors"),
        ("bnb_nf4_dq", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_transformers_reads_what_was_written(shared: Path, tmp_path: Path, case: str, method: str, package: str):
    """As the reference reads the original; bitsandbytes itself computes less exactly than its weights are."""
    pytest.importorskip(package)
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    original = shared / "oracle/quant" / case
    model = load(original, progress=False)
    written = export_packed(replace(model, packing=None), tmp_path / "out", method=method)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        written, dtype=torch.float32, attn_implementation="eager", device_map="cpu"
    )
    with np.load(original / "ref.npz") as file, torch.no_grad():
        logits = theirs(torch.tensor(file["input_ids"])).logits.float().numpy()
        error = np.abs(logits - file["logits"]).max() / np.abs(file["logits"]).max()
    assert error < (0.03 if package == "bitsandbytes" else 1e-5)


def test_a_model_that_came_from_no_format_is_written_in_one(shared: Path, tmp_path: Path):
    original = shared / "oracle/quant/awq_g32"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    plain = load(original, packed=False, progress=False)
    assert plain.packing is None
    model = replace(plain, params=quantize(plain.spec, plain.params, "int8", outside=None))
    written = export_packed(model, tmp_path / "out")
    assert json.loads((written / "config.json").read_text())["quantization_config"]["format"] == "int-quantized"
    assert_same(model, load(written, progress=False))
    model = replace(plain, params=quantize(plain.spec, plain.params, "int8"))
    with pytest.raises(ValueError, match="model.embed_tokens.weight is packed and a table"):
        export_packed(model, tmp_path / "table")
    model = replace(plain, params=quantize(plain.spec, plain.params, "int8-dynamic", outside=None))
    with pytest.raises(ValueError, match="round their inputs .int8-dynamic., which these files do not say"):
        export_packed(model, tmp_path / "dynamic")
