"""Fast paths for accelerators, in Pallas, for those who ask for them: see `switch`. The plain path beside each stays.

They compile for GPUs by Pallas' Triton backend and for TPUs, and were never timed on either. What makes a call imports
Pallas, which takes a tenth of a second, so who takes a fast path imports `pallas.product` or `pallas.attention` then.
"""

from forge_jax.kernels.pallas.rows import fits
from forge_jax.kernels.pallas.slots import Form, Packed, even, looks, whole
from forge_jax.kernels.pallas.switch import SWITCH, Target, interpreted, target, told

__all__ = ["SWITCH", "Form", "Packed", "Target", "even", "fits", "interpreted", "looks", "target", "told", "whole"]
