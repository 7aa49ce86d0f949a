"""The ways in which checkpoints store the same experts."""

import re

import numpy as np
import pytest
from test_parity import load

from forge_jax.params import flatten


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
def test_fused_experts_are_those_stored_one_by_one(name: str) -> None:
    golden, arrays, experts = load(name), {}, {}
    for key, array in golden.arrays.items():
        if found := re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", key):
            experts.setdefault(found[1], {}).setdefault(found[3], []).append(array)
        else:
            arrays[key] = array
    for theirs, parts in experts.items():
        gate, up, down = (np.stack(parts[part]) for part in ("gate_proj", "up_proj", "down_proj"))
        arrays |= {f"{theirs}.gate_up_proj": np.concatenate([gate, up], 1), f"{theirs}.down_proj": down}
    tree = golden.understood(arrays=arrays).read(lambda _, values: values)
    for (path, found), (_, expected) in zip(flatten(tree), flatten(golden.params), strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=path)
