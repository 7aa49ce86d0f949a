"""Fewer bits with the help of a text: what weights are multiplied by says how to round them.

Nothing is hooked: an `Observed` leaf gives sums over its inputs as a gradient, so that any layer can be watched as it
is. One layer is looked at after the other, and the sums of one are held at a time.
"""

from forge_jax.calibration.importance import means, squares
from forge_jax.calibration.observing import Report, matrices
from forge_jax.calibration.rounding import gptq
from forge_jax.calibration.scaling import awq

__all__ = ["Report", "awq", "gptq", "matrices", "means", "squares"]
