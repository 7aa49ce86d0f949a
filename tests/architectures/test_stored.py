"""Ways to store the same weights that the reference cannot write."""

import re
from typing import Any

import numpy as np
from helpers import Golden, read_golden

from forge_jax.params import flatten

FUSED = {
    "mlstm_layer.qkv_opreact": ("mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact"),
    "mlstm_layer.ifgate_preact": ("mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"),
    "ffn.proj_up_gate_z": ("ffn.proj_up_gate", "ffn.proj_up"),
}


def test_maps_that_are_stored_as_one_are_those_apart() -> None:
    golden = read_golden("xlstm_bias")
    arrays = dict(golden.arrays)
    for layer in range(2):
        for whole, parts in FUSED.items():
            for kind in ("weight", "bias"):
                names = [f"backbone.blocks.{layer}.{part}.{kind}" for part in parts]
                arrays[f"backbone.blocks.{layer}.{whole}.{kind}"] = np.concatenate([arrays.pop(n) for n in names])
    assert_the_same(golden, golden.config | {"weight_mode": "fused"}, arrays)


def test_attention_and_feed_forward_layers_may_be_counted_apart() -> None:
    golden = read_golden("dory_apart")
    turn = {"self_attn": 0, "lambda_1": 0, "mlp": 1, "lambda_2": 1}
    names = {"self_attn": "mixer", "mlp": "mixer", "lambda_1": "attn_alpha", "lambda_2": "mlp_alpha"}
    arrays = {
        re.sub(
            r"layers\.(\d+)\.(\w+)",
            lambda found: f"layers.{2 * int(found[1]) + turn[found[2]]}.{names[found[2]]}",
            name,
        ): values
        for name, values in golden.arrays.items()
    }
    assert any(name.startswith("backbone.layers.7.mixer.up_proj") for name in arrays)
    assert_the_same(golden, golden.config, arrays)


def assert_the_same(golden: Golden, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    tree = golden.understood(config, arrays).read(lambda _, values: values)
    found, expected = dict(flatten(tree)), dict(flatten(golden.params))
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(found[path], np.asarray(values), err_msg=path)
