"""MXFP4 as gpt-oss stores its experts: 4-bit floats with a power of two for every 32 of them.

Layout: of a tensor `name` whose transpose is [E, out, in],
    name_blocks uint8 [E, out, in / 32, 16], two values in a byte, the low nibble first;
    name_scales uint8 [E, out, in / 32], exponents with a bias of 127.
    name[e, i, o] = E2M1[nibble] * 2^(scale - 127)
E2M1: a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from converters.packed.weight import Stored, Weight
from converters.take import Take
from forge_jax.quantization.schemes import Floats
from forge_jax.tensor import QTensor

GROUP = 32
BLOCKS, SCALES = "_blocks", "_scales"


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised tensors of a checkpoint: those that have `_blocks`; ValueError for parts that do not fit."""
    take.ignore("modules_to_not_convert", "dequantize")
    for name, info in stored.source.tensors.items():
        if not name.endswith(BLOCKS):
            continue
        own = name.removesuffix(BLOCKS)
        experts, outputs, groups, _ = stored.part(name, ("U8",), (None, None, None, GROUP // 2)).shape
        stored.part(own + SCALES, ("U8", "F8_E8M0"), (experts, outputs, groups), f"{name} is {list(info.shape)}")
        parts = {"blocks": name, "scales": own + SCALES}
        yield Weight(own, (experts, groups * GROUP, outputs), parts, pack, unpack, kind="mxfp4")


def pack(blocks: np.ndarray, scales: np.ndarray) -> QTensor:
    """[E, in, out]; ValueError for the exponent 255, which is no number."""
    codes = blocks.reshape(*blocks.shape[:2], -1)
    return QTensor({"codes": codes, "scale": exponents(scales)}, Floats("mxfp4", 4, group=GROUP), trailing=1)


def unpack(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [E, in, out]: back from `pack`."""
    codes, scales = w.parts["codes"], w.parts["scale"]
    return {"blocks": codes.reshape(*scales.shape, GROUP // 2), "scales": scales}


def exponents(scales: np.ndarray) -> np.ndarray:
    """Bytes e that stand for 2^(e - 127).

    Raises:
        ValueError: the exponent 255, which stands for NaN.
    """
    raw = scales.view(np.uint8)
    if raw.size and raw.max() == 255:
        raise ValueError("a scale has the exponent 255, which stands for NaN; expected 0 to 254")
    return raw


# ------------------------------------------------------------------------------------------------ made from others
def facts(w: QTensor) -> tuple[int, ...]:
    """The shape of a packed tensor [E, in, out]; ValueError where the format cannot hold it."""
    if w.scheme != Floats("mxfp4", 4, group=GROUP) or (w.ndim, w.trailing) != (3, 1):
        raise ValueError(f"is {w.scheme.name} of {list(w.shape)}; expected experts [E, in, out] in mxfp4")
    return w.shape


def config(said: Mapping[str, tuple[int, ...]], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of experts, and of modules that are plain."""
    return {"quant_method": "mxfp4", "modules_to_not_convert": list(plain)}


def made(module: str, said: tuple[int, ...], config: Mapping[str, Any]) -> Weight:
    """The description of experts that are written anew."""
    return Weight(module, said, {"blocks": module + BLOCKS, "scales": module + SCALES}, pack, unpack)
