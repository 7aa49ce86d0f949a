"""Integers as the formats of words store them: codes from 0 on, and a zero among the codes for every group."""

from dataclasses import dataclass, replace

import numpy as np

from converters.packed.weight import integers, zeros
from forge_jax.tensor import QTensor


@dataclass(frozen=True)
class Facts:
    """What a config says of a matrix of integers.

    group: how many inputs share a scale, 0 for all of them. ordered: inputs belong to groups in another order. lowest:
    the least of the zeros.
    """

    shape: tuple[int, ...]
    bits: int
    group: int
    ordered: bool
    symmetric: bool
    lowest: int


def unsigned(w: QTensor) -> QTensor:
    """The same numbers as codes 0 to 2^bits - 1 and a part "zero", uint8 [out, groups].

    Raises:
        ValueError: the scheme is another, or a zero is no code.
    """
    if w.ndim != 2:
        raise ValueError(f"has {w.ndim} axes, expected a matrix")
    scheme, codes = integers(w), w.parts["codes"]
    if scheme.over != 1 or "shift" in w.parts:
        raise ValueError("is not of the kind scale * (integer - zero)")
    low = 128 if codes.dtype == np.int8 else 0
    scale, zero = w.every_row("scale"), zeros(w)
    with np.errstate(invalid="ignore"):  # what is beyond int16 is found unequal
        whole = zero.astype(np.int16)
    if not np.array_equal(whole, zero) or whole.min() + low < 0 or whole.max() + low >= 2**scheme.bits:
        raise ValueError(f"has zeros that are no codes of {scheme.bits} bits")
    shifted = {"codes": codes.view(np.uint8) ^ np.uint8(low), "zero": (whole + low).astype(np.uint8), "scale": scale}
    return replace(w, scheme=replace(scheme, middle=0), parts=w.parts | shifted)


def facts_of(w: QTensor) -> Facts:
    """What a config says of a matrix that `unsigned` gave."""
    zero, scheme = w.parts["zero"], integers(w)
    symmetric = bool((zero == 2 ** (scheme.bits - 1)).all())
    return Facts(w.shape, scheme.bits, scheme.group, "index" in w.parts, symmetric, int(zero.min()))
