"""Checkpoints whose weights are packed: GPTQ, AWQ, FP8, compressed-tensors, MXFP4, bitsandbytes."""

from converters.packed.source import Packed, unpacked

__all__ = ["Packed", "unpacked"]
