"""Weights in fewer bits: functions from tree to tree. The decoder never learns of them."""

from forge_jax.quantization.int8 import quantize_int8

__all__ = ["quantize_int8"]
