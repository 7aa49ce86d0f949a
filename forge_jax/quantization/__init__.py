"""Weights in fewer bits: functions from tree to tree. The decoder never learns of them."""

from forge_jax.quantization.packers import packer
from forge_jax.quantization.policy import choose
from forge_jax.quantization.trees import encode_leaf, quantize, rows_of

__all__ = ["choose", "encode_leaf", "packer", "quantize", "rows_of"]
