"""Ways to store the same weights that the reference cannot write."""

import numpy as np
from helpers import read_golden

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
    tree = golden.understood(golden.config | {"weight_mode": "fused"}, arrays).read(lambda _, values: values)
    found, expected = dict(flatten(tree)), dict(flatten(golden.params))
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(found[path], np.asarray(values), err_msg=path)
