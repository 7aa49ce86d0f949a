"""GPTQ: integers of 2 to 8 bits with a scale and a zero for every group of inputs and every output.

Layout (AutoGPTQ, GPTQModel, auto-round): of a module [in -> out], in words of `pack_dtype` (int32), each value in the
next bits of a stream that begins with the least significant (values of 3, 5, 6, 7 bits lie across int32 words):
    qweight int32 [in * bits / 32, out], a stream down each column; qzeros int32 [groups, out * bits / 32], a stream
    along each row; scales [groups, out]; g_idx int32 [in], the group of each input: not rising where the inputs were
    quantised in the order of their activations (desc_act), else it may be left out.
    w[o, i] = scales[g, o] * (q[i, o] - z[g, o]), g = g_idx[i]
Format "gptq" stores z - 1, "gptq_v2" stores z. Of auto-round's packings, "auto_round:auto_gptq" is the first of these,
"auto_round" and "auto_round:gptqmodel" are the second, "auto_round:auto_awq" is that of `converters.packed.awq`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from converters.packed.patterns import matches
from converters.packed.unsigned import Facts, facts_of, unsigned
from converters.packed.weight import FLOATS, Stored, Weight, ceil_div, fields, words, zeros
from converters.take import Take
from forge_jax.quantization.schemes import Integers
from forge_jax.quantization.streams import packed
from forge_jax.tensor import QTensor

BITS = (2, 3, 4, 5, 6, 7, 8)
WRITTEN = (2, 3, 4, 8)  # what every program that reads the format takes
WORDS = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
# how the quantiser came to its numbers, how programs run them, what the files are called: the numbers are there
QUIET = """
    act_group_aware adapter auto_forward_data_parallel backend batch_size block_name_to_quantize cache_block_outputs
    cache_examples_on_gpu calibration_data_device damp_auto_increment damp_percent dataset desc_act device
    disable_exllama exllama_config fail_safe failsafe foem gptaq gptaq_alpha gptaq_memory_device hessian
    hyb_act max_input_length meta model_file_base_name model_name_or_path model_seqlen
    module_name_preceding_first_block modules_in_block_to_quantize mock_quantization mse offload_to_disk
    offload_to_disk_path pack_impl parallel_packing pad_token_id quantizer static_groups sym tokenizer
    true_sequential use_cuda_fp16 use_exllama vram_strategy wait_for_submodule_finalizers lm_head
    modules_to_not_convert
""".split()


@dataclass(frozen=True)
class Scheme:
    """How one module was quantised; group_size -1 stands for all inputs."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Layout:
    """How all modules are stored: what zeros are stored less, the dtype of words, whether inputs tell their group."""

    add: int
    words: str = "int32"
    ordered: bool = False


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `qweight`.

    Raises:
        ValueError: a format or a number of bits that is not known, or parts that are missing or misshapen.
    """
    stored_zeros = str(take.either("checkpoint_format", "format", default="gptq")).lower()
    if stored_zeros not in ("gptq", "gptq_v2"):
        raise ValueError(f"{take.where}: checkpoint_format = {stored_zeros!r}; expected 'gptq' or 'gptq_v2'")
    kind = str(take("pack_dtype", "int32")).removeprefix("torch.")
    if kind not in WORDS:
        raise ValueError(f"{take.where}: pack_dtype = {kind!r} is not known; expected {', '.join(WORDS)}")
    layout = Layout(1 if stored_zeros == "gptq" else 0, kind, bool(take("desc_act", False)))
    common = {"bits": take("bits"), "group_size": take("group_size", 128)}
    dynamic = take("dynamic", {})
    take.ignore(*QUIET)
    for module in stored.modules("qweight"):
        yield weight(module, scheme_of(module, common, dynamic, take.where), stored, layout)


def scheme_of(module: str, common: Mapping[str, Any], dynamic: Any, where: str) -> Scheme:
    """The scheme of one module: the config's, or what the first matching pattern of `dynamic` says.

    A pattern that begins with "-:" names modules that are not quantised, "+:" stands for nothing.

    Raises:
        ValueError: what is said is no scheme.
    """
    if not isinstance(dynamic, Mapping):
        raise ValueError(f"{where}: dynamic is {type(dynamic).__name__}, expected a dict of patterns")
    said = dict(common)
    for pattern, override in dynamic.items():
        if not matches(pattern.removeprefix("-:").removeprefix("+:"), module, where):
            continue
        if pattern.startswith("-:"):
            raise ValueError(f"{where}: dynamic {pattern!r} says that {module} is not quantised; it has a qweight")
        if not isinstance(override, Mapping):
            raise ValueError(f"{where}: dynamic {pattern!r} is {type(override).__name__}, expected a dict")
        mine = Take(override, f"{where}: dynamic {pattern!r}")
        mine.ignore(*QUIET)
        said = {key: mine(key, value) for key, value in common.items()}
        mine.done()
        break
    bits, size = said["bits"], said["group_size"]
    if type(bits) is not int or bits not in BITS or type(size) is not int or (size < 1 and size != -1):
        raise ValueError(
            f"{where}: {module} has bits = {bits!r}, group_size = {size!r}; expected one of {BITS} and -1 or a size"
        )
    return Scheme(bits, size)


def weight(module: str, scheme: Scheme, stored: Stored, layout: Layout) -> Weight:
    """One module; its sizes come from its tensors, and every tensor must have the size that follows.

    Raises:
        ValueError: a part that is missing or misshapen.
    """
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    kinds, width = (WORDS[layout.words],), np.dtype(layout.words).itemsize * 8
    length, outputs = stored.part(parts["qweight"], kinds, (None, None)).shape
    inputs = length * width // scheme.bits
    said = f"{scheme.bits} bits, group_size {scheme.group_size}, qweight {[length, outputs]}"
    if width != 32 and width % scheme.bits:
        raise stored.error(parts["qweight"], f"has {scheme.bits} bits in words of {width}; expected words of 32")
    if layout.ordered or stored.has(f"{module}.g_idx"):
        parts["g_idx"] = f"{module}.g_idx"
        stored.part(parts["g_idx"], ("I32", "I64"), (inputs,), said)
    groups = 1 if scheme.group_size == -1 else ceil_div(inputs, scheme.group_size)
    stored.part(parts["scales"], FLOATS, (groups, outputs), said)
    stored.part(parts["qzeros"], kinds, (groups, ceil_div(outputs * scheme.bits, width)), said)
    way = partial(pack, where=module, bits=scheme.bits, add=layout.add)
    back = partial(unpack, bits=scheme.bits, layout=layout)
    kind = Integers(scheme.bits, group=0 if groups == 1 else scheme.group_size).name
    return Weight(f"{module}.weight", (outputs, inputs), parts, way, back, kind=kind)


def pack(
    qweight: np.ndarray,
    qzeros: np.ndarray,
    scales: np.ndarray,
    g_idx: np.ndarray | None = None,
    *,
    where: str,
    bits: int,
    add: int,
) -> QTensor:
    """[out, in] from the parts of the module's docstring; `add` is what zeros are stored less.

    Raises:
        ValueError: an input's group that there is not.
    """
    groups, outputs = scales.shape
    codes = np.ascontiguousarray(qweight.T).view(np.uint8)
    inputs = codes.shape[1] * 8 // bits
    size = ceil_div(inputs, groups)
    g_idx = np.arange(inputs) // size if g_idx is None else g_idx
    if g_idx.size and not (-groups <= g_idx.min() and g_idx.max() < groups):
        raise ValueError(f"{where}: g_idx has {g_idx.min()} to {g_idx.max()}, expected a group of 0 to {groups - 1}")
    zero = (fields(qzeros, bits, outputs) + np.uint8(add)) & np.uint8(2**bits - 1)
    parts = {"codes": codes, "scale": np.ascontiguousarray(scales.T)}
    if not np.array_equal(g_idx, np.arange(inputs) // size):
        parts["index"] = (g_idx % groups).astype(np.int32)[None]
    scheme = Integers(bits, group=0 if groups == 1 else size, middle=int(zero[0, 0]))
    if (zero != zero[0, 0]).any():
        scheme, parts["zero"] = replace(scheme, middle=0), np.ascontiguousarray(zero.T)
    return QTensor(parts, scheme)


def unpack(w: QTensor, *, bits: int, layout: Layout) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack`."""
    outputs, inputs = w.shape
    scales = w.every_row("scale").T
    order = w.parts["index"][0] if "index" in w.parts else np.arange(inputs) // ceil_div(inputs, len(scales))
    return {
        "qweight": np.ascontiguousarray(words(w.parts["codes"], layout.words).T),
        "qzeros": words(packed(zeros(w).T - np.uint8(layout.add), bits), layout.words),
        "scales": np.ascontiguousarray(scales),
        "g_idx": order.astype(np.int32),
    }


# ------------------------------------------------------------------------------------------------ made from others
def facts(w: QTensor) -> Facts:
    """What is to be said of a packed tensor; ValueError where the format cannot hold it."""
    said = facts_of(unsigned(w))
    if said.bits not in WRITTEN or said.shape[1] * said.bits % 32:
        raise ValueError(f"has {said.bits} bits of {said.shape[1]} inputs; GPTQ has {WRITTEN}, in whole words of 32")
    return said


def config(said: Mapping[str, Facts], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of modules, and of those that are plain; modules unlike most are told one by one."""
    sizes = Counter(one.group for one in said.values() if one.group)
    usual_size = sizes.most_common(1)[0][0] if sizes else -1

    def size(one: Facts) -> int:
        """The size of groups; more inputs than a matrix has stand for all of them."""
        return one.group or (usual_size if one.shape[1] <= usual_size else -1)

    kinds = {module: Scheme(one.bits, size(one)) for module, one in said.items()}
    usual = Counter(kinds.values()).most_common(1)[0][0]
    odd = {f"+:{re.escape(module)}$": vars(kind) for module, kind in kinds.items() if kind != usual}
    dynamic = odd | {f"-:{re.escape(module)}$": {} for module in plain}
    # a zero of 0 is stored as -1 in the first version, and readers differ in how they take that
    version = "gptq_v2" if min(one.lowest for one in said.values()) == 0 else "gptq"
    return {
        "quant_method": "gptq",
        "bits": usual.bits,
        "group_size": usual.group_size,
        "desc_act": any(one.ordered for one in said.values()),
        "sym": all(one.symmetric for one in said.values()),
        "lm_head": "lm_head" in said,
        "checkpoint_format": version,
    } | ({"dynamic": dynamic} if dynamic else {})


def made(module: str, said: Facts, config: Mapping[str, Any]) -> Weight:
    """The description of a module that is written anew."""
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    add = 1 if config["checkpoint_format"] == "gptq" else 0
    way, layout = partial(pack, where=module, bits=said.bits, add=add), Layout(add)
    return Weight(
        f"{module}.weight", said.shape, parts, way, lambda w: unpack(unsigned(w), bits=said.bits, layout=layout)
    )
