"""MXFP4 as gpt-oss stores its experts: 4-bit floats with a power of two for every 32 of them.

Layout: of a tensor `name` whose transpose is [E, out, in],
    name_blocks uint8 [E, out, in / 32, 16], two values in a byte, the low nibble first;
    name_scales uint8 [E, out, in / 32], exponents with a bias of 127.
    name[e, i, o] = E2M1[nibble] * 2^(scale - 127)
E2M1: a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
"""

from collections.abc import Iterator

import numpy as np

from converters.packed.weight import Stored, Weight
from converters.take import Take

GROUP = 32
POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = np.array([*POSITIVE, *(-value for value in POSITIVE)], np.float32)
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
        yield Weight(own, (experts, groups * GROUP, outputs), parts, decode)


def decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [E, in, out]; ValueError for the exponent 255, which is no number."""
    values = E2M1[nibbles(blocks)] * powers(scales)[..., None]
    return np.ascontiguousarray(values.reshape(*values.shape[:2], -1).transpose(0, 2, 1))


def nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 [..., 2 n] from bytes [..., n]: the low half of a byte comes first."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def powers(exponents: np.ndarray) -> np.ndarray:
    """2^(e - 127) in float32 from bytes e.

    Raises:
        ValueError: the exponent 255, which stands for NaN.
    """
    raw = exponents.view(np.uint8)
    if raw.size and raw.max() == 255:
        raise ValueError("a scale has the exponent 255, which stands for NaN; expected 0 to 254")
    return np.ldexp(np.float32(1), raw.astype(np.int32) - 127)
