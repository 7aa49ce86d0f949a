"""HQQ: integers of 1 to 8 bits with a scale and a zero, both floats, for every group along one of the axes.

Layout (hqq's HQQLinear, transformers): of a module [in -> out], every setting is a tensor of the module.
    shape int64 [2], [out, in]; axis, group_size, nbits, numbers; packing, a text of uint8, how codes are packed
    W_q: the codes of the weight as a matrix, [n / group_size, group_size] where axis is 1, its transpose's shape where
    it is 0, cut along the first axis into as many equal pieces as a word holds codes; word j holds row j of every
    piece, the first piece in the highest bits. "1bit_u8", "2bit_u8", "4bit_u8", "8bit_u8": uint8; "3bit_32": int32 of
    10 codes, the last piece filled up. Seen as floats where view_as_float is 1
    scale, zero: [n / group_size, 1] where axis is 1, [1, n / group_size] where it is 0
    w = (code - zero) * scale, here in float32: the package computes in compute_dtype
Scales and zeros that are quantised themselves are not written to safetensors by the package.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from converters.packed.weight import FLOATS, Stored, Weight, ceil_div
from converters.take import Take
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import packed, unpacked
from forge_jax.tensor import QTensor

# how many bits a code has, how many codes a word
PACKINGS = {"1bit_u8": (1, 8), "2bit_u8": (2, 4), "3bit_32": (3, 10), "4bit_u8": (4, 2), "8bit_u8": (8, 1)}
# the tensors of each module say how it was quantised
QUIET = "quant_config skip_modules weight_quant_params scale_quant_params zero_quant_params offload_meta".split()
SETTINGS = (
    "axis channel_wise compute_dtype encoded_state_dict group_size nbits offload_meta optimize packing quant_scale "
    "quant_zero round_zero shape stores_quant_config unpack_view_dtype view_as_float"
).split()
SHORT = 64  # no setting takes more bytes


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `W_q`; ValueError for parts that do not fit."""
    take.ignore(*QUIET)
    for module in stored.modules("W_q"):
        yield weight(module, stored)


def weight(module: str, stored: Stored) -> Weight:
    """One module; ValueError for a part that is missing or misshapen, or a setting that is not known."""
    out, inputs = settings(module, "shape", stored, (2,))
    group, axis = (setting(module, name, stored) for name in ("group_size", "axis"))
    raw = stored.part(f"{module}.packing", ("U8",), (None,))
    packing = bytes(stored.source.read(raw.name)).decode("latin-1") if raw.nbytes < SHORT else ""
    if packing not in PACKINGS:
        raise stored.error(f"{module}.packing", f"is {packing!r}, expected one of {[*PACKINGS]}")
    if axis not in (0, 1) or out < 1 or inputs < 1 or group < 1 or out * inputs % group:
        raise stored.error(
            f"{module}.W_q", f"has axis {axis}, group_size {group}, shape {[out, inputs]}; expected groups of the whole"
        )
    for name in ("quant_scale", "quant_zero"):
        if stored.has(f"{module}.{name}") and setting(module, name, stored):
            raise stored.error(f"{module}.{name}", "is 1: quantised scales are not implemented, expected 0")
    bits, count = PACKINGS[packing]
    groups = out * inputs // group
    rows, columns = (groups, group) if axis == 1 else (group, groups)
    parts = {part: f"{module}.{part}" for part in ("W_q", "scale", "zero")}
    said = f"{packing} of {[out, inputs]} in groups of {group} along axis {axis}"
    plain = "I32" if packing == "3bit_32" else "U8"
    found = stored.part(parts["W_q"], (plain, *FLOATS), (None, None), said)
    if found.nbytes != ceil_div(rows, count) * columns * (4 if plain == "I32" else 1):
        raise stored.error(parts["W_q"], f"is {list(found.shape)}, {found.nbytes} bytes; expected {said}")
    for name in ("scale", "zero"):
        stored.part(parts[name], FLOATS, (groups, 1) if axis == 1 else (1, groups), said)
    pack_one = partial(pack, bits=bits, count=count, shape=(out, inputs), grid=(rows, columns), axis=axis)
    spare = stored.there(*(f"{module}.{name}" for name in SETTINGS))
    back, kind = partial(unpack, bits=bits, count=count), Integers(bits, group=group).name
    return Weight(f"{module}.weight", (out, inputs), parts, pack_one, back, spare, kind=kind)


def settings(module: str, name: str, stored: Stored, shape: tuple[int, ...]) -> list[int]:
    """The whole numbers of a setting; ValueError where there are none."""
    stored.part(f"{module}.{name}", ("I64", "I32", "U8"), shape)
    return [int(value) for value in stored.source.read(f"{module}.{name}").ravel()]


def setting(module: str, name: str, stored: Stored) -> int:
    """A setting that is one number; ValueError where it is none."""
    there = stored.there(f"{module}.{name}")
    return settings(module, name, stored, (1,) if there and stored.source.tensors[there[0]].shape else ())[0]


def pack(
    W_q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    *,
    bits: int,
    count: int,
    shape: tuple[int, int],
    grid: tuple[int, int],
    axis: int,
) -> QTensor | np.ndarray:
    """[out, in] from the parts of a module; dense where its groups are no pieces of rows."""
    width = np.dtype(np.int32 if bits == 3 else np.uint8)
    words = np.ascontiguousarray(W_q).view(width).reshape(-1, grid[1])
    pieces = [(words >> (bits * (count - 1 - i))) & (2**bits - 1) for i in range(count)]
    codes = np.concatenate(pieces).astype(np.uint8)[: grid[0]]
    group = grid[1]
    if axis == 0 or shape[1] % group:
        return ((codes - zero.astype(np.float32)) * scale.astype(np.float32)).reshape(shape)
    whole = bits if shape[1] % 8 == 0 else 8  # a row ends with a byte
    parts = {"codes": packed(codes.reshape(shape), whole)}
    parts |= {"scale": scale.reshape(shape[0], -1), "zero": zero.reshape(shape[0], -1)}
    return QTensor(parts, Integers(whole, group=group if group < shape[1] else 0))


def unpack(w: QTensor, *, bits: int, count: int) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack`."""
    scale, zero, codes = w.every_row("scale"), w.every_row("zero"), w.parts["codes"]
    whole = codes.shape[1] * 8 // w.shape[1]
    rows = (codes if whole == 8 else unpacked(codes, whole)).reshape(scale.size, -1)
    padded = np.zeros((ceil_div(len(rows), count) * count, rows.shape[1]), np.int32 if bits == 3 else np.uint8)
    padded[: len(rows)] = rows
    pieces = padded.reshape(count, -1, rows.shape[1])
    words = sum((piece << (bits * (count - 1 - i)) for i, piece in enumerate(pieces)), np.zeros_like(pieces[0]))
    return {"W_q": words, "scale": scale.reshape(-1, 1), "zero": zero.reshape(-1, 1)}
