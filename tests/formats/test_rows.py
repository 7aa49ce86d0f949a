"""Rules on rows that stay packed: what the same rules do to dense weights, and back to the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from converters import rows
from converters.checkpoint import open_checkpoint
from forge_jax.params import flatten
from forge_jax.tensor import QTensor

GGUF = ("llama/Q4_K_M", "gemma2/Q4_K_M", "gpt2/Q4_K_M", "mixtral/Q4_K_M", "llama/IQ2_XS", "llama/TQ1_0")
QUANT = ("gptq_3b_g32_actorder_asym", "awq_g32", "fp8_block_qwen3_moe", "mxfp4_gpt_oss", "bnb_nf4_dq", "bnb_int8")
QUANT += ("ct_nvfp4", "ct_w8a8", "ct_fp8_block", "ct_mxfp4a16", "gptq_2b_g32_asym")
CASES = [f"gguf/{name}.gguf" for name in GGUF] + [f"quant/{name}" for name in QUANT]


@pytest.mark.parametrize("case", CASES)
def test_rows_are_moved_as_numbers_are_and_back(shared: Path, case: str) -> None:
    path = shared / "oracle" / case
    if not path.exists():
        pytest.skip(f"{case} is not there")
    checkpoint = open_checkpoint(path)
    dense = dict(flatten(checkpoint.read(lambda _, values: values)))
    packed = dict(flatten(checkpoint.read(lambda _, values: values, packed=True)))
    kept = {name for name, leaf in packed.items() if isinstance(leaf, QTensor)}
    assert len(kept) >= 3 * len(checkpoint.spec.layers)
    for name, leaf in packed.items():
        assert leaf.shape == dense[name].shape
        values = leaf.dense() if name in kept else leaf
        np.testing.assert_array_equal(values, dense[name], err_msg=name)
    source = checkpoint.source
    for instance in checkpoint.found:
        if not kept.issuperset(instance.paths):
            continue
        stored = source.packed(instance.theirs, source.raw(instance.theirs))
        assert isinstance(stored, QTensor)
        again = rows.tensor(instance, [packed[path] for path in instance.paths], stored.first)
        assert again is not None, instance.theirs
        assert again.scheme == stored.scheme
        assert again.shape == stored.shape
        for part, values in stored.parts.items():
            wide = np.broadcast_to(values, again.parts[part].shape)
            np.testing.assert_array_equal(again.parts[part], wide, err_msg=f"{instance.theirs} {part}")
    source.close()
