"""Packed weights written: as they were stored byte for byte, and in other formats that hold the same numbers."""

from pathlib import Path

import pytest

from forge_jax.exporting_packed import export_packed
from forge_jax.loading import load

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
