"""Packed weights of any origin as compressed-tensors holds them; `converters.packed.compressed` has the layouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from converters.packed import compressed
from converters.packed.compressed import MXFP4, MXFP8, NVFP4, PACKED
from converters.packed.unsigned import facts_of, unsigned
from converters.packed.weight import Weight, integers, shared_rows
from forge_jax.quantization.schemes import Floats, Integers
from forge_jax.tensor import QTensor

POWERS = ("mxfp4", "mxfp8")


@dataclass(frozen=True)
class Kind:
    """How one group of modules is quantised, in the words of a config; `group` is the side of a block too."""

    format: str
    bits: int
    type: str
    strategy: str
    group: int = 0
    symmetric: bool = True
    ordered: bool = False

    def said(self, targets: Sequence[str]) -> dict[str, Any]:
        """The group of a config for the modules that it is about."""
        block = self.strategy == "block"
        weights: dict[str, Any] = {
            "actorder": "group" if self.ordered else None,
            "block_structure": [self.group, self.group] if block else None,
            "dynamic": False,
            "group_size": None if block else self.group or None,
            "num_bits": self.bits,
            "strategy": self.strategy,
            "symmetric": self.symmetric,
            "type": self.type,
        }
        scales = {NVFP4: "torch.float8_e4m3fn", MXFP4: "torch.uint8", MXFP8: "torch.uint8"}
        weights |= {"scale_dtype": scales[self.format]} if self.format in scales else {}
        none = {"input_activations": None, "output_activations": None}
        return {"format": self.format, "targets": list(targets), "weights": weights} | none

    def cells(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The part of a matrix that one scale is for."""
        height = {"tensor": shape[0], "block": self.group}.get(self.strategy, 1)
        return height, self.group or shape[1]


@dataclass(frozen=True)
class Facts:
    """A matrix and how it is quantised."""

    shape: tuple[int, ...]
    kind: Kind


def facts(w: QTensor) -> Facts:
    """What is to be said of a packed tensor; ValueError where the format cannot hold it."""
    if w.ndim != 2:
        raise ValueError(f"has {w.ndim} axes, expected a matrix")
    return Facts(w.shape, floats(w, w.scheme) if isinstance(w.scheme, Floats) else whole_numbers(w))


def whole_numbers(w: QTensor) -> Kind:
    """How a matrix of integers is quantised; ValueError where the format has no such integers."""
    scheme, zero = integers(w), w.parts.get("zero", w.parts["codes"])
    signed = scheme == Integers(8, group=scheme.group) and w.parts["codes"].dtype == zero.dtype == np.int8
    if signed and not {"shift", "index"} & {*w.parts}:
        return Kind("int-quantized", 8, "int", strategy(w, scheme.group), scheme.group, "zero" not in w.parts)
    said = facts_of(unsigned(w))
    by = "group" if said.group else "channel"
    return Kind(PACKED, said.bits, "int", by, said.group, said.symmetric, said.ordered)


def floats(w: QTensor, scheme: Floats) -> Kind:
    """How a matrix of small floats is quantised; ValueError where the format has no such floats, or not such scales."""
    plain = scheme == Floats(scheme.name, scheme.bits, group=scheme.group, rounded=scheme.name == "nvfp4")
    extra, group = {*w.parts} - {"codes", "scale"}, scheme.group
    if plain and scheme.name == "nvfp4" and extra == {"divisor"} and group:
        return Kind(NVFP4, 4, "float", "tensor_group", group)
    if plain and scheme.name in POWERS and not extra and group:
        return Kind(MXFP4 if scheme.bits == 4 else MXFP8, scheme.bits, "float", "group", group)
    if plain and scheme.name == "fp8" and not extra and w.parts["codes"].dtype == ml_dtypes.float8_e4m3fn:
        return Kind("float-quantized", 8, "float", strategy(w, group), group)
    raise ValueError(f"is {scheme.name} with parts {sorted(w.parts)}; expected fp8 (e4m3), nvfp4, mxfp4 or mxfp8")


def strategy(w: QTensor, group: int) -> str:
    """What one scale is for."""
    height = shared_rows(w)
    if group:
        return "block" if height % group == 0 else "group"
    return "channel" if height else "tensor"


def config(said: Mapping[str, Facts], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of modules, and of those that are plain."""
    kinds: dict[Kind, list[str]] = {}
    for module, one in said.items():
        kinds.setdefault(one.kind, []).append(module)
    formats = sorted({kind.format for kind in kinds})
    alone = len(kinds) == 1
    groups = {f"group_{i}": kind.said(["Linear"] if alone else mine) for i, (kind, mine) in enumerate(kinds.items())}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": list(plain),
        "kv_cache_scheme": None,
    }


def made(module: str, said: Facts, config: Mapping[str, Any]) -> Weight:
    """The description of a module that is written anew."""
    kind, block = said.kind, said.kind.cells(said.shape)
    suffixes = {"scale": "weight_scale"} | ({} if kind.symmetric else {"zero": "weight_zero_point"})
    match kind.format:
        case "pack-quantized":
            suffixes |= {"packed": "weight_packed", "shape": "weight_shape"}
            suffixes |= {"g_idx": "weight_g_idx"} if kind.ordered else {}
            pack = partial(compressed.pack_stream, where=module, bits=kind.bits, block=block)
            unpack = partial(unpack_unsigned, kind=kind)
        case "nvfp4-pack-quantized":
            suffixes |= {"packed": "weight_packed", "whole": "weight_global_scale"}
            pack, unpack = partial(compressed.pack_nvfp4, group=kind.group), compressed.unpack_nvfp4
        case "mxfp4-pack-quantized":
            suffixes |= {"packed": "weight_packed"}
            pack, unpack = partial(compressed.pack_mxfp4, group=kind.group), compressed.unpack_mxfp4
        case _:
            suffixes |= {"weight": "weight"}
            pack = partial(compressed.pack_plain, block=block, powers=kind.format == MXFP8)
            unpack = partial(unpack_plain, step=block[0])
    parts = {role: f"{module}.{suffix}" for role, suffix in suffixes.items()}
    return Weight(f"{module}.weight", said.shape, parts, pack, unpack)


def unpack_unsigned(w: QTensor, *, kind: Kind) -> dict[str, np.ndarray]:
    """The parts of any integers in streams of bits."""
    whole = unsigned(w)
    parts = {name: part for name, part in whole.parts.items() if name != "zero" or not kind.symmetric}
    return compressed.unpack_stream(replace(whole, parts=parts), bits=kind.bits, step=1, ordered=kind.ordered)


def unpack_plain(w: QTensor, *, step: int) -> dict[str, np.ndarray]:
    """The parts of bytes or float8, their scales floats or exponents."""
    parts = compressed.unpack_plain(w, step=step)
    power = parts["scale"].dtype == ml_dtypes.float8_e8m0fnu
    return parts | ({"scale": parts["scale"].astype(np.float32)} if power else {})
