"""Checkpoints whose weights are packed: GPTQ, AWQ, FP8, compressed-tensors, MXFP4, bitsandbytes."""

from converters.packed.packing import Packing, packing_of
from converters.packed.source import Packed, unpacked

__all__ = ["Packed", "Packing", "packing_of", "unpacked"]
