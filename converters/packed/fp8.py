"""FP8: float8 weights with a scale for the tensor, for a row, or for every block.

Layout (DeepSeek V3, transformers): `weight` float8 [out, in], or experts [E, out, in]; beside it
    weight_scale_inv float32 [out / 128, in / 128], one for each block of `weight_block_size`, the last ones cut off;
    or weight_scale (or weight_scale_inv) of one number, or weight_scale [out, 1]; of experts [E, in, out], [E, 1, out].
    w = weight * scale, whatever "inv" says.
Scales of activations (`input_scale`, `activation_scale`) say how a program may round what goes into a module; the
weights here are meant for float activations, which is what the reference computes in float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd, prod
from typing import Any

import numpy as np

from converters.packed.weight import Stored, Weight, by_row, ceil_div, is_block, shared_rows
from converters.take import Take
from forge_jax.quantization.schemes import Floats
from forge_jax.tensor import QTensor

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("F32", "F16", "BF16", "F8_E8M0")
BLOCK = (128, 128)  # where the config does not say it
SUFFIXES = ("_scale_inv", "_scale")
# which modules are quantised is seen from their tensors, and their type too
QUIET = (
    "activation_scheme",
    "dequantize",
    "fmt",
    "ignored_layers",
    "modules_to_convert",
    "modules_to_not_convert",
    "scale_fmt",
    "weight_per_tensor",
    "activation_scale_ub",
)


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised tensors of a checkpoint: those that are float8.

    Raises:
        ValueError: scales that are missing or misshapen, a block size that is none.
    """
    block = take("weight_block_size", None) if "weight_block_size" in take.config else list(BLOCK)
    if block is not None and not is_block(block):
        raise ValueError(f"{take.where}: weight_block_size = {block!r}, expected two sizes or null")
    take.require("expert_dtype", "fp8")
    take.ignore(*QUIET)
    for name, info in stored.source.tensors.items():
        if info.dtype in FLOAT8:
            yield weight(name, None if block is None else (block[0], block[1]), stored)


def weight(name: str, block: tuple[int, int] | None, stored: Stored) -> Weight:
    """One tensor; ValueError where its scale is missing or misshapen."""
    shape = stored.source.tensors[name].shape
    if len(shape) < 2:
        raise stored.error(name, f"is float8 of shape {list(shape)}, expected a matrix")
    scale = next(iter(stored.there(*(name + suffix for suffix in SUFFIXES))), name + SUFFIXES[0])
    found = stored.part(scale, SCALES, None, f"the scale of {name}").shape
    step = 1
    if found in ((), (1,), (1, 1), (*shape[:-2], 1, 1)):
        block, step = (1, 1), shape[-2]
    elif block is not None and scale.endswith("_inv"):
        stored.part(scale, SCALES, (*shape[:-2], *blocks(shape, block)), f"{name} {list(shape)} in blocks {block}")
        step = block[0]
    elif found == (*shape[:-1], 1) or (len(shape) == 3 and found == (shape[0], 1, shape[2])):
        block = (1, 1)
    else:
        raise stored.error(scale, f"is {list(found)}, expected one number or {[*shape[:-1], 1]}")
    module = name.rpartition(".")[0]
    spare = stored.there(*(f"{module}.{part}" for part in ("input_scale", "activation_scale")))
    parts: Mapping[str, str] = {"weight": name, "scale": scale}
    back = partial(unpack, step=step, count=prod(found))
    return Weight(name, shape, parts, partial(pack, block=block), back, spare, kind="fp8")


def blocks(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks there are along the last two axes."""
    return ceil_div(shape[-2], block[0]), ceil_div(shape[-1], block[1])


def pack(weight: np.ndarray, scale: np.ndarray, *, block: tuple[int, int]) -> QTensor:
    """[..., out, in] from float8 [..., out, in] and its scales; blocks of (1, 1) stand for one a tensor, or a row."""
    if scale.ndim == 3 and scale.shape[1] == 1 < scale.shape[2]:  # experts [E, in, out]: a row is a column
        columns = {"codes": weight.swapaxes(1, 2), "scale": scale.swapaxes(1, 2)}
        return QTensor({name: np.ascontiguousarray(part) for name, part in columns.items()}, Floats("fp8"), trailing=1)
    if block == (1, 1):
        scale = scale.reshape((1,) * (weight.ndim - scale.ndim) + scale.shape)
        return QTensor({"codes": weight, "scale": scale}, Floats("fp8"))
    scales = by_row(scale, block[0], weight.shape[-2])
    return QTensor({"codes": weight, "scale": scales}, Floats("fp8", group=block[1] if scale.shape[-1] > 1 else 0))


def unpack(w: QTensor, *, step: int, count: int) -> dict[str, np.ndarray]:
    """The parts of a packed tensor: back from `pack`. There are `count` scales, one for every `step` rows."""
    codes, scale = w.parts["codes"], w.every_row("scale")
    if w.trailing:
        return {"weight": np.ascontiguousarray(codes.swapaxes(1, 2)), "scale": scale.swapaxes(1, 2)}
    scale = scale[..., ::step, :]
    return {"weight": codes, "scale": scale if scale.size == count else scale[:1]}


# ------------------------------------------------------------------------------------------------ made from others
@dataclass(frozen=True)
class Facts:
    """What a config says of a float8 matrix: how many rows and how many inputs share a scale, 0 for all of them."""

    shape: tuple[int, ...]
    height: int
    group: int

    def fits(self, size: int) -> bool:
        """Whether its scales are those of squares of a size."""
        return self.height % size == 0 and (self.group == size or (self.group == 0 and self.shape[1] <= size))


def facts(w: QTensor) -> Facts:
    """What is to be said of a packed tensor; ValueError where the format cannot hold it."""
    scheme = w.scheme
    if w.ndim != 2 or not isinstance(scheme, Floats) or scheme != Floats("fp8", group=scheme.group) or len(w.parts) > 2:
        raise ValueError(f"is {scheme.name} of {list(w.shape)}; expected a matrix in fp8")
    said = Facts(w.shape, shared_rows(w), scheme.group)
    if said.height == 1 < w.shape[0]:
        raise ValueError("has scales of its own for every row; FP8 has one for the matrix or for a square block")
    return said


def config(said: Mapping[str, Facts], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of modules, and of those that are plain; ValueError where their blocks differ."""
    whole = all((one.height, one.group) == (0, 0) for one in said.values())
    size = 0 if whole else max(one.group for one in said.values()) or gcd(*(one.height for one in said.values()))
    odd = [module for module, one in said.items() if size and not one.fits(size)]
    if odd:
        raise ValueError(f"{odd[0]} has other blocks of scales than {size} x {size}; FP8 has one size for all modules")
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [size, size] if size else None,
        "modules_to_not_convert": list(plain),
    }


def made(module: str, said: Facts, config: Mapping[str, Any]) -> Weight:
    """The description of a module that is written anew."""
    name, size = f"{module}.weight", config["weight_block_size"]
    parts = {"weight": name, "scale": name + SUFFIXES[size is None]}
    block = (1, 1) if size is None else (size[0], size[1])
    grid = (1, 1) if size is None else blocks(said.shape, block)
    if grid == (1, 1):
        way, back = partial(pack, block=(1, 1)), partial(unpack, step=said.shape[0], count=1)
    else:
        way, back = partial(pack, block=block), partial(unpack, step=block[0], count=prod(grid))
    return Weight(name, said.shape, parts, way, back)
