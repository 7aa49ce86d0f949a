"""AWQ: 4-bit integers with a scale and a zero for every group of inputs and every output.

Layout "gemm" (AutoAWQ): of a module [in -> out], 8 values in an int32 word, along the outputs; the nibbles of a word,
from the least significant, are the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight:
    qweight int32 [in, out / 8], qzeros int32 [in / group, out / 8], scales [in / group, out]
Layout "gemv": outputs first, in their natural order, groups padded to whole words of zeros:
    qweight int32 [out, in / 8], qzeros int32 [out, W], scales [out, 8 W]
Both: w[o, i] = scales[g, o] * (q[i, o] - z[g, o]), g = i // group.
Layout "gemv_fast" (AutoAWQ, after llm-awq): qweight int16 [out / 4, in]; scales, qzeros floats [8 W, out], groups
    padded; of 4 outputs and 64 inputs, the 64 words hold those of the first output in 16 words, then the second's; of
    32 inputs, in the order of FAST, a word holds the next 4, the least significant bits first.
    w[o, i] = scales[g, o] * q[i, o] + qzeros[g, o]
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from converters.packed.gptq import scheme_of
from converters.packed.unsigned import Facts, facts_of, unsigned
from converters.packed.weight import FLOATS, Stored, Weight, ceil_div, fields, words, zeros
from converters.take import Take
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import packed, unpacked
from forge_jax.tensor import QTensor

BITS, WORD = 4, 8  # values in a word
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # in which nibble an output lies
# which of 32 inputs lie one after another in "gemv_fast"
FAST = np.arange(32).reshape(4, 4, 2).swapaxes(0, 1).reshape(4, 4, 2).swapaxes(1, 2).ravel()
# which modules are quantised is seen from their tensors; how they were, and by which program they run, is no number
QUIET = """
    backend dataset desc_act do_fuse exllama_config fuse_max_seq_len lm_head meta modules_to_fuse
    modules_to_not_convert sym zero_point damp_percent true_sequential pack_dtype
""".split()


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `qweight`.

    Raises:
        ValueError: a layout or a number of bits that is not known, or parts that are missing or misshapen.
    """
    version = str(take.either("version", "checkpoint_format", "format", default="gemm")).lower()
    if version not in LAYOUTS:
        raise ValueError(f"{take.where}: version = {version!r} is not implemented; expected {', '.join(LAYOUTS)}")
    bits, size = take.either("bits", "w_bit", default=BITS), take.either("group_size", "q_group_size", default=128)
    if bits != BITS or type(size) is not int or (size < 1 and size != -1):
        raise ValueError(f"{take.where}: bits = {bits!r}, group_size = {size!r}; expected {BITS}, and -1 or a size")
    dynamic = take("dynamic", {})
    take.ignore(*QUIET)
    for module in stored.modules("qweight"):
        scheme = scheme_of(module, {"bits": bits, "group_size": size}, dynamic, take.where)
        if scheme.bits != BITS:
            raise ValueError(f"{take.where}: {module} has {scheme.bits} bits; AWQ has {BITS}")
        yield LAYOUTS[version](module, scheme.group_size, stored)


def gemm(module: str, size: int, stored: Stored) -> Weight:
    """One module of layout "gemm"; ValueError for a part that is missing or misshapen."""
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    inputs, width = stored.part(parts["qweight"], ("I32",), (None, None)).shape
    group = inputs if size == -1 else size
    said = f"group_size {size}, qweight {[inputs, width]}"
    if inputs % group:
        raise stored.error(parts["qweight"], f"has {inputs} inputs, no multiple of group_size {size}")
    stored.part(parts["qzeros"], ("I32",), (inputs // group, width), said)
    stored.part(parts["scales"], FLOATS, (inputs // group, width * WORD), said)
    shape, pack = (width * WORD, inputs), partial(pack_gemm, group=group)
    return Weight(f"{module}.weight", shape, parts, pack, unpack_gemm, kind=kind(inputs, group))


def gemv(module: str, size: int, stored: Stored) -> Weight:
    """One module of layout "gemv"; ValueError for a part that is missing or misshapen."""
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    outputs, length = stored.part(parts["qweight"], ("I32",), (None, None)).shape
    inputs = length * WORD
    group = inputs if size == -1 else size
    said = f"group_size {size}, qweight {[outputs, length]}"
    width = stored.part(parts["qzeros"], ("I32",), (outputs, None), said).shape[1]
    if inputs % group or width * WORD < inputs // group:
        raise stored.error(parts["qzeros"], f"has {width} words, expected {ceil_div(inputs // group, WORD)} ({said})")
    stored.part(parts["scales"], FLOATS, (outputs, width * WORD), said)
    unpack = partial(unpack_gemv, width=width)
    shape, pack = (outputs, inputs), partial(pack_gemv, group=group)
    return Weight(f"{module}.weight", shape, parts, pack, unpack, kind=kind(inputs, group))


def fast(module: str, size: int, stored: Stored) -> Weight:
    """One module of layout "gemv_fast"; ValueError for a part that is missing or misshapen."""
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    quarter, inputs = stored.part(parts["qweight"], ("I16",), (None, None)).shape
    group = inputs if size == -1 else size
    said = f"group_size {size}, qweight {[quarter, inputs]}"
    height = stored.part(parts["scales"], FLOATS, (None, quarter * 4), said).shape[0]
    stored.part(parts["qzeros"], FLOATS, (height, quarter * 4), said)
    if inputs % group or inputs % 64 or height < inputs // group:
        raise stored.error(parts["scales"], f"has {height} rows, expected {inputs // group} or more ({said})")
    ways = partial(pack_fast, group=group), partial(unpack_fast, height=height)
    return Weight(f"{module}.weight", (quarter * 4, inputs), parts, *ways, kind=kind(inputs, group))


def kind(inputs: int, group: int) -> str:
    """How the scheme of a matrix is called."""
    return Integers(BITS, group=group if group < inputs else 0).name


LAYOUTS = {"gemm": gemm, "gemv": gemv, "gemv_fast": fast}


def pack_gemm(qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, *, group: int) -> QTensor:
    """[out, in] from the parts of layout "gemm"."""
    parts = {"codes": packed(ordered(qweight).T, BITS), "scale": scales.T, "zero": ordered(qzeros).T}
    return rows(parts, group)


def unpack_gemm(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in] in layout "gemm"."""
    qweight, qzeros = shuffled(unpacked(w.parts["codes"], BITS).T), shuffled(zeros(w).T)
    return {"qweight": qweight, "qzeros": qzeros, "scales": np.ascontiguousarray(w.every_row("scale").T)}


def ordered(stored: np.ndarray) -> np.ndarray:
    """The nibbles [..., n * 8] of words [..., n], as outputs in order."""
    nibbles = fields(stored, BITS, stored.shape[-1] * WORD)
    return nibbles.reshape(*stored.shape, WORD)[..., ORDER].reshape(nibbles.shape)


def shuffled(values: np.ndarray) -> np.ndarray:
    """Outputs [..., n * 8] as the nibbles of words [..., n]: back from `ordered`."""
    nibbles = values.reshape(*values.shape[:-1], -1, WORD)[..., np.argsort(ORDER)]
    return words(packed(nibbles.reshape(values.shape), BITS))


def pack_gemv(qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, *, group: int) -> QTensor:
    """[out, in] from the parts of layout "gemv"."""
    codes = np.ascontiguousarray(qweight).view(np.uint8)
    groups = codes.shape[1] * 2 // group
    return rows({"codes": codes, "scale": scales[:, :groups], "zero": fields(qzeros, BITS, groups)}, group)


def unpack_gemv(w: QTensor, *, width: int) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in] in layout "gemv", with groups for `width` words of zeros."""
    scales = w.every_row("scale")
    more = ((0, 0), (0, width * WORD - scales.shape[1]))
    qzeros = words(packed(np.pad(zeros(w), more), BITS))
    return {"qweight": words(w.parts["codes"]), "qzeros": qzeros, "scales": np.pad(scales, more)}


def pack_fast(qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, *, group: int) -> QTensor:
    """[out, in] from the parts of layout "gemv_fast"."""
    quarter, inputs = qweight.shape
    nibbles = fields(qweight, BITS, inputs * 4).reshape(quarter, inputs // 64, 4, 64).swapaxes(1, 2)
    codes = nibbles.reshape(-1, 32)[:, np.argsort(FAST)].reshape(quarter * 4, inputs)
    groups = inputs // group
    return rows({"codes": packed(codes, BITS), "scale": scales[:groups].T, "shift": qzeros[:groups].T}, group)


def unpack_fast(w: QTensor, *, height: int) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in] in layout "gemv_fast", with `height` rows of scales."""
    outputs, inputs = w.shape
    codes = unpacked(w.parts["codes"], BITS).reshape(-1, 32)[:, FAST]
    nibbles = codes.reshape(outputs // 4, 4, inputs // 64, 64).swapaxes(1, 2).reshape(outputs // 4, -1)
    floats = {name: w.every_row(part).T for name, part in (("qzeros", "shift"), ("scales", "scale"))}
    more = ((0, height - len(floats["scales"])), (0, 0))
    return {"qweight": words(packed(nibbles, BITS), "int16")} | {name: np.pad(x, more) for name, x in floats.items()}


def rows(parts: dict[str, np.ndarray], group: int) -> QTensor:
    """The packed tensor of codes, scales and zeros."""
    parts = {name: np.ascontiguousarray(part) for name, part in parts.items()}
    return QTensor(parts, Integers(BITS, group=group if parts["scale"].shape[-1] > 1 else 0))


# ------------------------------------------------------------------------------------------------ made from others
def facts(w: QTensor) -> Facts:
    """What is to be said of a packed tensor; ValueError where the format cannot hold it."""
    said = facts_of(unsigned(w))
    outputs, inputs = said.shape
    if said.bits != BITS or said.ordered or outputs % WORD or inputs % (said.group or inputs):
        order = ", inputs in another order" if said.ordered else ""
        raise ValueError(
            f"has {said.bits} bits of {[outputs, inputs]} in groups of {said.group or inputs}{order}; AWQ has 4 bits, "
            f"whole groups of inputs in their order, a multiple of {WORD} outputs"
        )
    return said


def config(said: Mapping[str, Facts], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of modules, and of those that are plain; ValueError where they differ in their groups."""
    whole = all(one.group == 0 for one in said.values())
    sizes = [-1] if whole else sorted({one.group or one.shape[1] for one in said.values()})
    if len(sizes) > 1:
        raise ValueError(f"groups are of {sizes} inputs; AWQ has one size for all modules")
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": sizes[0],
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(plain) or None,
    }


def made(module: str, said: Facts, config: Mapping[str, Any]) -> Weight:
    """The description of a module that is written anew, in layout "gemm"."""
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    pack = partial(pack_gemm, group=said.group or said.shape[1])
    return Weight(f"{module}.weight", said.shape, parts, pack, lambda w: unpack_gemm(unsigned(w)))
