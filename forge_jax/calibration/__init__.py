"""Fewer bits with the help of a text: what weights are multiplied by says how to round them."""

from forge_jax.calibration.rounding import gptq

__all__ = ["gptq"]
