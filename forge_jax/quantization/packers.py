"""Schemes by their names, and how rows are packed into them. Knows rows, no models.

int8 ... int2, int4-g64, int4-g64-asym    integers with a scale a row, or for every 64 numbers (`integers`)
int8-dynamic                              int8, and products round their inputs to int8 too, token by token
fp8, fp8-block, mxfp4, nvfp4, nf4, fp4    small floats and codes of tables (`floats`)
Q8_0, Q4_K, IQ4_NL, MXFP4, ...            blocks of ggml's, with the bits that its own quantisers give (`ggml`)
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd, lcm

import numpy as np

from forge_jax.quantization import ggml
from forge_jax.quantization.floats import FP4, NF4, coded, divisor_of, fp8, fp8_blocks, mxfp4, nvfp4
from forge_jax.quantization.ggml.codec import ENCODERS
from forge_jax.quantization.integers import integers
from forge_jax.quantization.schemes import Codebook, Floats, Integers
from forge_jax.tensor import Scheme

CHUNK = 1 << 20
"""Numbers that are packed at once: temporaries stay at tens of MB however large a matrix is."""

Parts = dict[str, np.ndarray]
Pack = Callable[[np.ndarray, np.ndarray | None], Parts]
"""(finite float32 rows [R, N], importance float32 [N] or None) -> parts [R, n], or [1, n] for all rows."""


@dataclass(frozen=True)
class Packer:
    """How rows become the parts of a scheme: `block` numbers of a row are packed together. name: as it is asked for."""

    name: str
    scheme: Scheme
    block: int
    pack: Pack


def packer(name: str) -> Packer:
    """The packer of a name.

    Raises:
        ValueError: there is no such scheme; the message names near ones.
    """
    if found := re.fullmatch(r"int([2-8])(?:-g([1-9]\d*))?(-asym)?", name):
        return integer_packer(name, int(found[1]), int(found[2] or 0), found[3] is None)
    if name in ENCODERS:
        return Packer(name, ggml.Ggml(name), ggml.lookup(name).block, partial(pack_blocks, name))
    if name in SMALL:
        return SMALL[name]
    names = [*SMALL, "int8", "int4-g64", "int4-g64-asym", *ENCODERS]
    near = difflib.get_close_matches(name, names, 3, 0.5) or names
    raise ValueError(f"quantize: there is no scheme {name!r}; did you mean {', '.join(near)}?")


def integer_packer(name: str, bits: int, group: int, symmetric: bool) -> Packer:
    """Integers of some bits."""
    middle = 2 ** (bits - 1) if symmetric and bits < 8 else 0
    block = lcm(group or 1, 8 // gcd(8, bits))  # rows end with a byte
    pack = partial(integers, bits=bits, group=group, symmetric=symmetric)
    return Packer(name, Integers(bits, middle, group=group), block, in_chunks(pack))


def in_chunks(pack: Callable[[np.ndarray, np.ndarray | None], Parts], together: int = 1) -> Pack:
    """The same for few rows at a time, a multiple of `together`."""

    def chunked(rows_RN: np.ndarray, weight_N: np.ndarray | None) -> Parts:
        step = max(CHUNK // rows_RN.shape[1] // together, 1) * together
        found = [pack(rows_RN[i : i + step], weight_N) for i in range(0, len(rows_RN), step)]
        return {name: np.concatenate([parts[name] for parts in found]) for name in found[0]}

    return chunked


def alone(pack: Callable[[np.ndarray], Parts], together: int = 1) -> Pack:
    """In chunks, for what has no use for importance."""
    return in_chunks(lambda rows_RN, weight_N: pack(rows_RN), together)


def pack_nvfp4(rows_RN: np.ndarray, weight_N: np.ndarray | None) -> Parts:
    """Two levels of scales, of which one is the matrix's."""
    divisor = divisor_of(rows_RN)
    return alone(partial(nvfp4, group=16, divisor=divisor))(rows_RN, None) | {"divisor": divisor.reshape(1, 1)}


def pack_table(rows_RN: np.ndarray, weight_N: np.ndarray | None, *, table: np.ndarray) -> Parts:
    """Codes of a table, beside it."""
    return alone(partial(coded, group=64, table=table))(rows_RN, None) | {"table": table[None]}


def pack_blocks(name: str, rows_RN: np.ndarray, weight_N: np.ndarray | None) -> Parts:
    """Blocks of a ggml type."""
    return ggml.parts_of(name, ggml.encode(name, rows_RN, weight_N))


SMALL = {
    found.name: found
    for found in (
        Packer("int8-dynamic", Integers(8, dynamic=True), 1, integer_packer("int8", 8, 0, True).pack),
        Packer("fp8", Floats("fp8"), 1, alone(fp8)),
        Packer("fp8-block", Floats("fp8", group=128), 1, alone(partial(fp8_blocks, block=128), 128)),
        Packer("mxfp4", Floats("mxfp4", 4, group=32), 32, alone(partial(mxfp4, group=32))),
        Packer("nvfp4", Floats("nvfp4", 4, group=16, rounded=True), 16, pack_nvfp4),
        Packer("nf4", Codebook("nf4", group=64), 64, partial(pack_table, table=NF4)),
        Packer("fp4", Codebook("fp4", group=64), 64, partial(pack_table, table=FP4)),
    )
}
