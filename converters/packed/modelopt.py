"""TensorRT Model Optimizer (nvidia-modelopt): float8, and 4-bit floats with float8 scales and one for the tensor.

Layout: of a module [in -> out],
    NVFP4: weight uint8 [out, in / 2], E2M1, the low nibble first; weight_scale float8 [out, in / 16]; weight_scale_2
        float32, one number; w = code * (weight_scale * weight_scale_2)
    FP8: weight float8 [out, in], weight_scale float32, one number or [out]; w = weight * weight_scale
Scales of activations (`input_scale`) are for a program that rounds them. What is written beside the weights otherwise
(pre_quant_scale, low-rank updates) belongs to other algorithms and is left to be refused by its name.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from converters.packed import fp8
from converters.packed.weight import Stored, Weight
from converters.take import Take
from forge_jax.quantization.schemes import Floats
from forge_jax.tensor import QTensor

GROUP = 16
ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION", "NVFP4", "W4A16_NVFP4")
# the tensors say which modules are quantised, and how
QUIET = "config_groups exclude_modules group_size has_zero_point ignore producer quantized_layers".split()


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `weight_scale`.

    Raises:
        ValueError: an algorithm that is not known, or parts that are missing or misshapen.
    """
    inner = take.sub("quantization")  # as hf_quant_config.json nests it
    found = {one.where: one("quant_algo", None) for one in (take, inner)}
    for where, algorithm in found.items():
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise ValueError(
                f"{where}: quant_algo = {algorithm!r} is not implemented; expected {', '.join(ALGORITHMS)}"
            )
    for one in (take, inner):
        one.ignore(*QUIET)
    inner.done()
    for module in stored.modules("weight_scale"):
        yield four(module, stored) if stored.dtype(f"{module}.weight") == "U8" else eight(module, stored)


def four(module: str, stored: Stored) -> Weight:
    """A module in NVFP4; ValueError where a part is missing or misshapen."""
    names = {"weight": "weight", "scale": "weight_scale", "whole": "weight_scale_2"}
    parts = {part: f"{module}.{name}" for part, name in names.items()}
    out, half = stored.part(parts["weight"], ("U8",), (None, None)).shape
    if 2 * half % GROUP:
        raise stored.error(parts["weight"], f"has {2 * half} inputs, expected whole groups of {GROUP}")
    stored.part(parts["scale"], ("F8_E4M3",), (out, 2 * half // GROUP))
    single = (1,) if stored.has(parts["whole"]) and stored.source.tensors[parts["whole"]].shape else ()
    stored.part(parts["whole"], ("F32",), single)
    spare = stored.there(f"{module}.input_scale")
    return Weight(parts["weight"], (out, 2 * half), parts, pack, unpack, spare, kind="nvfp4")


def pack(weight: np.ndarray, scale: np.ndarray, whole: np.ndarray) -> QTensor:
    """[out, in] from the parts of a module in NVFP4."""
    parts = {"codes": weight, "scale": scale, "multiplier": whole.reshape(1, 1)}
    return QTensor(parts, Floats("nvfp4", 4, group=GROUP))


def unpack(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor: back from `pack`."""
    return {"weight": w.parts["codes"], "scale": w.parts["scale"], "whole": w.parts["multiplier"]}


def eight(module: str, stored: Stored) -> Weight:
    """A module in float8; ValueError where a part is missing or misshapen."""
    parts = {"weight": f"{module}.weight", "scale": f"{module}.weight_scale"}
    out, inputs = stored.part(parts["weight"], ("F8_E4M3",), (None, None)).shape
    found = stored.part(parts["scale"], fp8.SCALES).shape
    single = found in ((), (1,), (1, 1))
    if not single:
        stored.part(parts["scale"], fp8.SCALES, (out, 1) if len(found) == 2 else (out,), f"{[out, inputs]}")
    spare = stored.there(f"{module}.input_scale")
    back = partial(fp8.unpack, step=out if single else 1, count=1 if single else out)
    return Weight(parts["weight"], (out, inputs), parts, pack_eight, back, spare, kind="fp8")


def pack_eight(weight: np.ndarray, scale: np.ndarray) -> QTensor:
    """[out, in] from float8 values and their scale, or one for every row."""
    return QTensor({"codes": weight, "scale": scale.reshape(-1, 1)}, Floats("fp8"))
