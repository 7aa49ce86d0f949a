"""compressed-tensors (llm-compressor): integers, float8 and 4-bit floats, in groups of modules that a config describes.

Of a module [in -> out], by the format of its group:
    pack-quantized: weight_packed int32 [out, in * bits / 32], unsigned codes q + 2^(bits - 1) in a stream of bits along
        the inputs, the least significant first; weight_scale by strategy (below); weight_shape int64 [2], [out, in];
        weight_zero_point int32 [out * bits / 32, groups], a stream along the outputs, where not symmetric;
        weight_g_idx int32 [in], the group of each input, where inputs were quantised in another order
    int-quantized, naive-quantized, float-quantized: weight int8 or float8 [out, in], weight_scale, weight_zero_point
    nvfp4-pack-quantized: weight_packed uint8 [out, in / 2], E2M1, the low nibble first; weight_scale float8
        [out, in / 16]; weight_global_scale float32 [1], which divides; the weight is bfloat16
    mxfp4-pack-quantized: weight_packed as above; weight_scale uint8 [out, in / 32], exponents with a bias of 127
    mxfp8-quantized: weight float8 [out, in], weight_scale as in mxfp4
Scales of a strategy: tensor [1]; channel [out, 1]; group [out, in / group_size]; block [out / b0, in / b1], the last
ones cut off. w = (q - zero_point) * scale.
Activations are taken as floats: how they may be rounded on the way in is up to the program that runs the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from converters.packed.mxfp4 import exponents
from converters.packed.patterns import matches
from converters.packed.weight import (
    FLOATS,
    Stored,
    Weight,
    by_row,
    ceil_div,
    fields,
    integers,
    is_block,
    words,
)
from converters.take import Take
from forge_jax.quantization.schemes import Floats, Integers
from forge_jax.quantization.streams import packed as stream
from forge_jax.tensor import QTensor

PACKED = "pack-quantized"
PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
NVFP4, MXFP4, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"
FORMATS = (PACKED, *PLAIN, NVFP4, MXFP4, MXFP8)
POWERS = ("U8", "F8_E8M0")
ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
TYPES = {"int": ("I8",), "float": ("F8_E4M3",)}


@dataclass(frozen=True)
class Scheme:
    """How the modules of one group are quantised."""

    targets: tuple[str, ...]
    format: str
    bits: int
    type: str
    symmetric: bool
    strategy: str
    group_size: int
    block: tuple[int, int]
    ordered: bool
    where: str


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `weight_packed` or a `weight_scale`.

    Raises:
        ValueError: a format or strategy that is not known, or parts that are missing or misshapen.
    """
    take.ignore("global_compression_ratio", "ignore", "quantization_status", "version")
    sparsity = take("sparsity_config", {})
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise ValueError(f"{take.where}: sparsity_config = {sparsity!r} is not implemented; expected none or dense")
    format = take("format", None)
    groups = take("config_groups", {})
    if not isinstance(groups, Mapping):
        raise ValueError(f"{take.where}: config_groups is {type(groups).__name__}, expected a dict")
    schemes = [scheme(group, format, f"{take.where}: {name}", take.seen) for name, group in groups.items()]
    for module in stored.modules("weight_packed", "weight_scale"):
        yield weight(module, scheme_of(module, schemes, take.where), stored)


def scheme(group: Any, format: str | None, where: str, allow: set[str]) -> Scheme:
    """One entry of config_groups.

    Raises:
        ValueError: keys or values that are not known.
    """
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise ValueError(f"{where}: expected a dict with weights, a dict")
    take = Take(group, where, allow)
    take.ignore("input_activations")
    found, targets, own = take.sub("weights"), take("targets"), take("format", format)
    take.done()
    found.ignore("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
    found.require("dynamic", False)
    order, block = found("actorder", None), found("block_structure", None)
    strategy, size = found("strategy", None), found("group_size", None)
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    bits, kind, symmetric = found("num_bits", 8), found("type", "int"), found("symmetric", True)
    found.done()
    if own not in FORMATS or type(bits) is not int or not 1 <= bits <= 8 or kind not in [*TYPES]:
        raise ValueError(f"{where}: format {own!r}, type {kind!r}, num_bits {bits!r}; expected one of {FORMATS}")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"{where}: targets is {targets!r}, expected a list of names")
    if strategy == "block" and not is_block(block):
        raise ValueError(f"{where}: block_structure is {block!r}, expected two sizes")
    if (strategy in ("group", "tensor_group") or own in (NVFP4, MXFP4)) and not (type(size) is int and size > 0):
        raise ValueError(f"{where}: group_size is {size!r}, expected a size")
    blocks = (block[0], block[1]) if strategy == "block" else (1, 1)
    ordered = order in (True, "group", "dynamic")
    return Scheme(tuple(targets), own, bits, kind, symmetric, strategy, size or 0, blocks, ordered, where)


def scheme_of(module: str, schemes: list[Scheme], where: str) -> Scheme:
    """The group of a module: one that names it goes before one whose pattern fits, and that before a class of layers.

    Raises:
        ValueError: there is none.
    """

    def rank(target: str) -> int:
        if target == module:
            return 0
        if target.startswith("re:"):
            return 1 if matches(target.removeprefix("re:"), module, where) else 3
        return 2 if "." not in target and target[:1].isupper() else 3

    ranked = [(rank(target), i) for i, one in enumerate(schemes) for target in one.targets]
    best, index = min(ranked, default=(3, 0))
    if best == 3:
        raise ValueError(f"{where}: {module} is quantised, and is a target of no config group")
    return schemes[index]


def weight(module: str, scheme: Scheme, stored: Stored) -> Weight:
    """One module; ValueError where a part is missing or misshapen."""
    make = {PACKED: packed, NVFP4: nvfp4, MXFP4: mxfp4}.get(scheme.format, plain)
    name, shape, parts, pack, unpack = make(module, scheme, stored)
    spare = stored.there(*(f"{module}.{part}" for part in ACTIVATIONS))
    return Weight(name, shape, parts, pack, unpack, spare, kind=kind(scheme))


def kind(scheme: Scheme) -> str:
    """How a scheme is called."""
    small = {NVFP4: "nvfp4", MXFP4: "mxfp4", MXFP8: "mxfp8"}
    if scheme.format in small or scheme.type == "float":
        return small.get(scheme.format, "fp8")
    return Integers(scheme.bits, group=scheme.group_size if scheme.strategy == "group" else 0).name


Made = tuple[str, tuple[int, ...], dict[str, str], Any, Any]


def plain(module: str, scheme: Scheme, stored: Stored) -> Made:
    """A module whose weight is stored as int8 or float8."""
    parts = {"weight": f"{module}.weight", "scale": f"{module}.weight_scale"}
    out, inputs = stored.part(parts["weight"], TYPES[scheme.type], (None, None)).shape
    shape = grid(scheme, out, inputs)
    powers = scheme.format == MXFP8
    scaled(parts["scale"], shape, scheme, stored, POWERS if powers else FLOATS)
    parts |= zeros(module, shape, scheme, stored, ())
    block = cells(scheme, out, inputs)
    pack = partial(pack_plain, block=block, powers=powers)
    return parts["weight"], (out, inputs), parts, pack, partial(unpack_plain, step=block[0])


def packed(module: str, scheme: Scheme, stored: Stored) -> Made:
    """A module whose weight is a stream of bits."""
    names = {"packed": "weight_packed", "scale": "weight_scale", "shape": "weight_shape"}
    names |= {"g_idx": "weight_g_idx"} if scheme.ordered else {}
    parts = {part: f"{module}.{name}" for part, name in names.items()}
    stored.part(parts["shape"], ("I64", "I32"), (2,))
    out, inputs = (int(size) for size in stored.source.read(parts["shape"]))
    bits = scheme.bits
    if out < 1 or inputs < 1:
        raise stored.error(parts["shape"], f"is {[out, inputs]}, expected sizes")
    said = f"{bits} bits of {[out, inputs]}"
    stored.part(parts["packed"], ("I32",), (out, ceil_div(inputs * bits, 32)), said)
    shape = grid(scheme, out, inputs)
    scaled(parts["scale"], shape, scheme, stored)
    parts |= zeros(module, shape, scheme, stored, ("group", "channel"))
    if "g_idx" in parts:
        stored.part(parts["g_idx"], ("I32", "I64"), (inputs,), said)
    block = cells(scheme, out, inputs)
    pack = partial(pack_stream, where=module, bits=bits, block=block)
    unpack = partial(unpack_stream, bits=bits, step=block[0], ordered=scheme.ordered)
    return f"{module}.weight", (out, inputs), parts, pack, unpack


def zeros(
    module: str, shape: tuple[int, int], scheme: Scheme, stored: Stored, packed: tuple[str, ...]
) -> dict[str, str]:
    """The zeros of a module, one for each scale: in a stream of bits where its strategy is among `packed`, else int8.

    A scheme that is symmetric has none, but where they are stored they count.

    Raises:
        ValueError: they are missing or misshapen.
    """
    name = f"{module}.weight_zero_point"
    if scheme.symmetric and not stored.has(name):
        return {}
    if not scheme.symmetric and scheme.strategy in packed:
        words = ceil_div(shape[0] * scheme.bits, 32)
        stored.part(name, ("I32",), (words, shape[1]), f"{scheme.bits} bits of {list(shape)}")
    else:
        scaled(name, shape, scheme, stored, ("I8",))
    return {"zero": name}


def nvfp4(module: str, scheme: Scheme, stored: Stored) -> Made:
    """A module of 4-bit floats with float8 scales and one for all of them."""
    names = {"packed": "weight_packed", "scale": "weight_scale", "whole": "weight_global_scale"}
    parts = {part: f"{module}.{name}" for part, name in names.items()}
    out, half = stored.part(parts["packed"], ("U8",), (None, None)).shape
    stored.part(parts["scale"], ("F8_E4M3",), (out, ceil_div(2 * half, scheme.group_size)))
    stored.part(parts["whole"], ("F32",), (1,))
    return f"{module}.weight", (out, 2 * half), parts, partial(pack_nvfp4, group=scheme.group_size), unpack_nvfp4


def mxfp4(module: str, scheme: Scheme, stored: Stored) -> Made:
    """A module of 4-bit floats with powers of two as scales."""
    parts = {"packed": f"{module}.weight_packed", "scale": f"{module}.weight_scale"}
    out, half = stored.part(parts["packed"], ("U8",), (None, None)).shape
    stored.part(parts["scale"], POWERS, (out, ceil_div(2 * half, scheme.group_size)))
    return f"{module}.weight", (out, 2 * half), parts, partial(pack_mxfp4, group=scheme.group_size), unpack_mxfp4


def grid(scheme: Scheme, out: int, inputs: int) -> tuple[int, int]:
    """How many scales there are along each axis.

    Raises:
        ValueError: the strategy is not known.
    """
    block = cells(scheme, out, inputs)
    return ceil_div(out, block[0]), ceil_div(inputs, block[1])


def cells(scheme: Scheme, out: int, inputs: int) -> tuple[int, int]:
    """The part of the weight that one scale is for; ValueError for a strategy that is not known."""
    known = {
        "tensor": (out, inputs),
        "channel": (1, inputs),
        "group": (1, scheme.group_size),
        "block": scheme.block,
    }
    if scheme.strategy not in [*known]:
        raise ValueError(f"{scheme.where}: strategy = {scheme.strategy!r} is not implemented; expected {[*known]}")
    return known[scheme.strategy]


def scaled(name: str, shape: tuple[int, int], scheme: Scheme, stored: Stored, dtypes: tuple[str, ...] = FLOATS) -> None:
    """Check the shape of scales or plain zeros; one for the tensor may be [1] or []."""
    if not (scheme.strategy == "tensor" and stored.part(name, dtypes).shape in ((), (1,))):
        stored.part(name, dtypes, shape, f"strategy {scheme.strategy}")


def pack_plain(
    weight: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None = None,
    *,
    block: tuple[int, int],
    powers: bool,
) -> QTensor:
    """[out, in] from int8 or float8 values; the scales may be powers of two."""
    parts = {"codes": weight, "scale": exponents(scale) if powers else scale} | ({} if zero is None else {"zero": zero})
    scheme = Integers(8) if weight.dtype == np.int8 else Floats("mxfp8" if powers else "fp8")
    return rows(parts, scheme, block, weight.shape)


def pack_stream(
    packed: np.ndarray,
    scale: np.ndarray,
    shape: np.ndarray,
    zero: np.ndarray | None = None,
    g_idx: np.ndarray | None = None,
    *,
    where: str,
    bits: int,
    block: tuple[int, int],
) -> QTensor:
    """[out, in] from the parts of a pack-quantized module.

    Raises:
        ValueError: an input's group that there is not.
    """
    out, inputs = (int(size) for size in shape)
    offset = 2 ** (bits - 1)
    parts = {"scale": as_grid(scale)}
    if zero is not None and zero.dtype == np.int8:
        parts["zero"] = np.int16(offset) + as_grid(zero)
    elif zero is not None:
        parts["zero"] = np.ascontiguousarray(fields(zero.T, bits, len(parts["scale"])).T)
    groups = parts["scale"].shape[1]
    if g_idx is not None and not (-1 <= g_idx.min() and g_idx.max() < groups):
        raise ValueError(f"{where}: weight_g_idx has {g_idx.min()} to {g_idx.max()}, expected 0 to {groups - 1}")
    if g_idx is not None and not (g_idx == -1).any():  # -1: made, and never filled in
        parts["index"] = g_idx.astype(np.int32)[None]
    if inputs % 8:  # a row ends within a byte
        bits, codes = 8, fields(packed, bits, inputs)
    else:
        codes = np.ascontiguousarray(packed).view(np.uint8)[:, : inputs * bits // 8]
    scheme = Integers(bits, middle=0 if "zero" in parts else offset)
    return rows({"codes": codes, **parts}, scheme, block, (out, inputs))


def pack_nvfp4(packed: np.ndarray, scale: np.ndarray, whole: np.ndarray, *, group: int) -> QTensor:
    """[out, in] from the parts of an NVFP4 module, rounded to bfloat16 as compressed-tensors does."""
    return QTensor(
        {"codes": packed, "scale": scale, "divisor": whole[None]}, Floats("nvfp4", 4, group=group, rounded=True)
    )


def pack_mxfp4(packed: np.ndarray, scale: np.ndarray, *, group: int) -> QTensor:
    """[out, in] from the parts of an MXFP4 module."""
    return QTensor({"codes": packed, "scale": exponents(scale)}, Floats("mxfp4", 4, group=group))


def unpack_plain(w: QTensor, *, step: int) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack_plain`; `step` rows share scales."""
    zero = {"zero": w.every_row("zero")[::step]} if "zero" in w.parts else {}
    return {"weight": w.parts["codes"], "scale": w.every_row("scale")[::step]} | zero


def unpack_stream(w: QTensor, *, bits: int, step: int, ordered: bool) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack_stream`."""
    codes = w.parts["codes"] if integers(w).bits == bits else stream(w.parts["codes"], bits)
    parts = {"packed": words(codes), "scale": w.every_row("scale")[::step], "shape": np.array(w.shape)}
    if "zero" in w.parts:
        zero = w.every_row("zero")[::step]
        as_stream = zero.dtype == np.uint8  # and int16 where they are stored as int8
        parts["zero"] = words(stream(zero.T, bits)).T if as_stream else (zero - 2 ** (bits - 1)).astype(np.int8)
    if ordered:
        inputs = w.shape[1]
        parts["g_idx"] = w.parts["index"][0] if "index" in w.parts else np.full(inputs, -1, np.int32)
    return parts


def unpack_nvfp4(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack_nvfp4`."""
    return {"packed": w.parts["codes"], "scale": w.parts["scale"], "whole": w.parts["divisor"].reshape(1)}


def unpack_mxfp4(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack_mxfp4`."""
    return {"packed": w.parts["codes"], "scale": w.parts["scale"]}


def rows(
    parts: dict[str, np.ndarray], scheme: Integers | Floats, block: tuple[int, int], shape: tuple[int, ...]
) -> QTensor:
    """The packed tensor: what is stored for every block, for every row."""
    wide = {name: by_row(as_grid(parts[name]), block[0], shape[0]) for name in ("scale", "zero") if name in parts}
    group = block[1] if wide["scale"].shape[1] > 1 else 0
    return QTensor({**parts, **wide}, replace(scheme, group=group))


def as_grid(values: np.ndarray) -> np.ndarray:
    """Scales as a matrix: one number may be stored as [1] or []."""
    return values.reshape(1, 1) if values.ndim < 2 else values
