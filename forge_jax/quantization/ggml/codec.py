"""`decode` and `encode`: the two directions of every type, chunk by chunk so that temporaries stay small."""

from collections.abc import Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from forge_jax.quantization.ggml import (
    encoders,
    grid_encoders,
    iquants,
    kencoders,
    kquants,
    legacy,
    level_encoders,
    small_encoders,
    small_floats,
    ternary_encoders,
)
from forge_jax.quantization.ggml.bits import Decoder
from forge_jax.quantization.ggml.importance import Weighing, weighing
from forge_jax.quantization.ggml.packing import Encoder
from forge_jax.quantization.ggml.types import GGMLType, lookup

CHUNK = 1 << 17
"""Elements converted at once. 0.5 MB of float32: the working set stays in the cache, temporaries below 3 MB."""

DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {**legacy.DECODERS, **kquants.DECODERS, **iquants.DECODERS, **small_floats.DECODERS}
)

SEARCH_CHUNK = 1 << 17
"""Elements encoded at once. A search has up to ten arrays of them. Fewer are slower, more hardly faster."""

ENCODERS: Mapping[str, Encoder] = MappingProxyType(
    {
        **encoders.ENCODERS,
        **kencoders.ENCODERS,
        **grid_encoders.ENCODERS,
        **level_encoders.ENCODERS,
        **small_encoders.ENCODERS,
        **ternary_encoders.ENCODERS,
    }
)

BEYOND = 1e10
"""No type with a float16 scale holds such numbers, and no search for a scale overflows below."""

LARGEST: Mapping[str, float] = MappingProxyType({"MXFP4": np.inf, "Q8_K": np.inf, "NVFP4": 6 * 448.0})
"""The largest numbers of the types with scales of another kind."""

FLOATS = ("F32", "F16", "BF16")


def decode(type_name: str, raw: np.ndarray) -> np.ndarray:
    """Unpack stored bytes, uint8 [..., bytes], into float32 [..., elements].

    The values are those of ggml's reference code, bit for bit. Blocks with a NaN or infinite scale give NaN and
    infinite values, as they do there.

    Raises:
        ValueError: an unknown type, integers or F64 (float32 would not hold them), or bytes that are not whole blocks.
    """
    kind = lookup(type_name)
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.nbytes:
        raise ValueError(f"{type_name} decodes uint8 rows of a multiple of {kind.nbytes} bytes, not {_describe(raw)}")
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.nbytes * kind.block)
    flat = np.ascontiguousarray(raw).reshape(-1)
    if kind.plain:
        if type_name not in FLOATS:
            raise ValueError(f"{type_name} values do not fit into float32; read them as {kind.values}")
        return flat.view(kind.values).astype(np.float32).reshape(shape)
    blocks = flat.view(kind.layout)
    out = np.empty((len(blocks), kind.block), np.float32)
    step = CHUNK // kind.block
    with np.errstate(all="ignore"):  # a hostile scale may be NaN, infinite or huge
        for start in range(0, len(blocks), step):
            chunk = blocks[start : start + step]
            out[start : start + step] = DECODERS[type_name]({name: chunk[name] for name in kind.layout.names or ()})
    return out.reshape(shape)


def encode(type_name: str, values: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Pack numbers [..., elements] into stored bytes, uint8 [..., bytes].

    F32, F16, BF16 and the packed types take floats, with the results of ggml's own quantisers bit for bit, but where
    those are mistaken (IQ2_XXS, and IQ3_S after a group of zeros). I8 ... I64 and F64 take arrays of their dtype.

    Args:
        importance: float32 [elements], what the columns weigh when scales are searched (see `importance`); or
            [..., elements] without the rows' axis for a stack of matrices. Types without a search do not use it, and
            IQ1_S, IQ2_XXS and IQ2_XS need it.

    Raises:
        ValueError: an unknown type, rows that are not whole blocks, a wrong dtype, finite values that the type cannot
            hold (nothing becomes infinite on the way; packed types hold no NaN either), or importance that does not fit
            or is missing.
    """
    kind = lookup(type_name)
    if values.ndim == 0:
        raise ValueError(f"{type_name}: encoding takes rows of values, not a single one")
    if kind.plain and type_name not in FLOATS:
        if values.dtype != kind.values:
            raise ValueError(f"{type_name} stores {kind.values} values, not {values.dtype}")
        return np.ascontiguousarray(values).view(np.uint8)
    if values.dtype not in (np.float32, np.float16, np.float64, ml_dtypes.bfloat16):
        raise ValueError(f"{type_name} encodes floating-point values, not {_describe(values)}")
    row_bytes = kind.row_bytes(values.shape[-1])
    source = np.ascontiguousarray(values).reshape(-1, kind.block)
    stored = np.empty(len(source), kind.layout)
    step = (CHUNK if kind.plain else SEARCH_CHUNK) // kind.block
    with np.errstate(all="ignore"):  # overflow is found below, and said with its cause
        weigh = weighing(kind, values, importance)
        for start in range(0, len(source), step):
            _encode_chunk(kind, source[start : start + step], weigh, start, stored[start : start + step])
    return stored.view(np.uint8).reshape(*values.shape[:-1], row_bytes)


def _encode_chunk(kind: GGMLType, source: np.ndarray, weigh: Weighing | None, first: int, out: np.ndarray) -> None:
    """Fill `out` from blocks, the first of which is the `first` of all."""
    finite = np.isfinite(source)
    values = source.astype(np.float32)
    if kind.plain:
        out[...] = _bfloat16_bits(values[:, 0]) if kind.name == "BF16" else values[:, 0]
        kept = np.isfinite(out.view(kind.values)) | ~finite[:, 0]
    else:
        if not finite.all():
            raise ValueError(f"{kind.name} holds no NaN and no infinity, and {(~finite).sum()} of the values are")
        kept = np.abs(values).max(axis=-1, initial=0) <= LARGEST.get(kind.name, BEYOND)
        if kept.all():
            ENCODERS[kind.name](values, weigh.weights(values, first) if weigh else None, out)
            for field in {"d", "m", "dmin"}.intersection(kind.layout.names or ()):
                kept &= np.isfinite(out[field].reshape(len(out), -1)).all(axis=-1)
    if not kept.all():
        largest = np.abs(source[finite]).max()
        raise ValueError(f"values up to {largest:.6g} are too large for {kind.name}; choose a type with a wider range")


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round to nearest even; a NaN keeps its sign and upper payload and becomes quiet."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 64, rounded).astype(np.uint16)


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
