"""bitsandbytes: 8-bit integers with a scale a row, or 4-bit codes of a table with a scale for every block.

Layout of 8 bits: weight int8 [out, in], SCB float32 [out]; w[o, i] = weight[o, i] * SCB[o] / 127.
Layout of 4 bits (NF4, FP4): weight uint8 [n / 2, 1], two codes in a byte, the high nibble first, of the flat weight;
    weight.quant_map float32 [16], what the codes stand for; weight.absmax float32 [n / blocksize];
    weight.quant_state.bitsandbytes__nf4 uint8, JSON: blocksize, dtype, quant_type, shape.
    w[j] = quant_map[code[j]] * absmax[j // blocksize], in float32: the dtype is what a model computes in
Nested: weight.absmax is uint8, with nested_quant_map float32 [256] and nested_absmax float32; then the absmax is
    nested_quant_map[absmax[k]] * nested_absmax[k // nested_blocksize] + nested_offset
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from converters.files import parse_json
from converters.packed.weight import Stored, Weight, ceil_div
from converters.take import Take
from forge_jax.quantization.schemes import Codebook, Integers
from forge_jax.tensor import QTensor

NESTED = ("nested_quant_map", "nested_absmax")
DTYPES = ("float32", "float16", "bfloat16")
# the tensors say what was quantised and how; outliers are found in activations, by the program that runs
QUIET = """
    _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage bnb_4bit_quant_type
    bnb_4bit_use_double_quant llm_int8_enable_fp32_cpu_offload llm_int8_skip_modules llm_int8_threshold load_in_4bit
    load_in_8bit
""".split()


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised tensors of a checkpoint: those with a quant_state or SCB; ValueError for parts that do not fit."""
    take.require("llm_int8_has_fp16_weight", False)
    take.ignore(*QUIET)
    for name in stored.source.tensors:
        module, _, last = name.rpartition(".")
        if last == "SCB":
            yield eight(module, stored)
        elif last.startswith("bitsandbytes__"):
            yield four(module.removesuffix(".quant_state"), name, stored)


def eight(module: str, stored: Stored) -> Weight:
    """A module of 8 bits; ValueError for a part that is missing, misshapen or in the order of another machine."""
    shape = stored.part(f"{module}.weight", ("I8",), (None, None)).shape
    stored.part(f"{module}.SCB", ("F32",), (shape[0],))
    order = f"{module}.weight_format"
    if stored.has(order):
        single = (1,) if stored.source.tensors[order].shape else ()
        stored.part(order, ("U8", "I32", "I64"), single)
        if code := int(stored.source.read(order).max()):
            raise stored.error(order, f"is {code}, expected 0, rows one after another")
    parts = {"weight": f"{module}.weight", "SCB": f"{module}.SCB"}
    return Weight(parts["weight"], shape, parts, pack_eight, unpack_eight, stored.there(order), kind="int8")


def pack_eight(weight: np.ndarray, SCB: np.ndarray) -> QTensor:
    """[out, in] from int8 [out, in] and the largest absolute value of each row."""
    return QTensor({"codes": weight, "scale": SCB[:, None]}, Integers(8, over=127))


def unpack_eight(w: QTensor) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [out, in]: back from `pack_eight`."""
    return {"weight": w.parts["codes"], "SCB": w.every_row("scale")[:, 0]}


def four(name: str, state: str, stored: Stored) -> Weight:
    """A tensor of 4 bits; ValueError for a part that is missing or misshapen, or a state that is none."""
    said = state_of(state, stored)
    shape = tuple(said["shape"])
    count = prod(shape)
    blocks = ceil_div(count, said["blocksize"])
    packed = stored.part(name, ("U8", "I8", "F16", "BF16", "F32"))
    if packed.nbytes != ceil_div(count, 2):
        raise stored.error(name, f"has {packed.nbytes} bytes, expected {ceil_div(count, 2)} for {list(shape)}")
    stored.part(f"{name}.quant_map", ("F32",), (16,))
    parts = {"weight": name, "quant_map": f"{name}.quant_map", "absmax": f"{name}.absmax"}
    nested = "nested_blocksize" in said
    stored.part(parts["absmax"], ("U8",) if nested else ("F32",), (blocks,), f"{list(shape)} in blocks")
    if nested:
        stored.part(f"{name}.nested_quant_map", ("F32",), (256,))
        stored.part(f"{name}.nested_absmax", ("F32",), (ceil_div(blocks, said["nested_blocksize"]),))
        parts |= {key: f"{name}.{key}" for key in NESTED}
    pack, unpack = partial(pack_four, state=said), partial(unpack_four, state=said)
    return Weight(name, shape, parts, pack, unpack, (state,), NESTED if nested else (), said["quant_type"])


def state_of(name: str, stored: Stored) -> dict[str, Any]:
    """The quant_state of one tensor, checked.

    Raises:
        ValueError: it is no JSON, or has keys or values that are not known.
    """
    raw = stored.source.read(name).tobytes()
    where = f"{stored.where}: {name}"
    said = parse_json(raw, where, file_size=len(raw))
    if not isinstance(said, Mapping):
        raise ValueError(f"{where}: is {type(said).__name__}, expected a dict")
    take = Take(said, where)
    out = {key: take(key) for key in ("quant_type", "blocksize", "shape", "dtype")}
    take.seen.add("dtype")
    if take.has("nested_blocksize"):
        out |= {"nested_blocksize": take("nested_blocksize"), "nested_offset": take("nested_offset")}
        take.require("nested_dtype", "float32")
    take.done()
    shape = out["shape"] if isinstance(out["shape"], list) else [0]
    if not all(type(size) is int and size > 0 for size in (out["blocksize"], out.get("nested_blocksize", 1), *shape)):
        raise ValueError(f"{where}: blocksize and shape are {out['blocksize']!r}, {out['shape']!r}; expected sizes")
    if not isinstance(out.get("nested_offset", 0.0), float | int):
        raise ValueError(f"{where}: nested_offset is {out['nested_offset']!r}, expected a number")
    if out["dtype"] not in DTYPES or out["quant_type"] not in ("nf4", "fp4"):
        raise ValueError(f"{where}: {out['quant_type']!r} of {out['dtype']!r}; expected nf4 or fp4, a float dtype")
    return out


def pack_four(
    weight: np.ndarray,
    quant_map: np.ndarray,
    absmax: np.ndarray,
    nested_quant_map: np.ndarray | None = None,
    nested_absmax: np.ndarray | None = None,
    *,
    state: Mapping[str, Any],
) -> QTensor | np.ndarray:
    """`state["shape"]` from the parts of the module's docstring; dense where blocks go on from row to row."""
    codes = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
    if nested_quant_map is not None and nested_absmax is not None:
        outer = repeated(nested_absmax, state["nested_blocksize"], len(absmax))
        absmax = nested_quant_map[absmax] * outer + np.float32(state["nested_offset"])
    *rows, columns = state["shape"]
    scheme, table = Codebook(state["quant_type"], group=state["blocksize"]), quant_map.reshape((1,) * len(rows) + (16,))
    if columns % state["blocksize"] == 0 and rows:
        return QTensor({"codes": codes.reshape(*rows, -1), "table": table, "scale": absmax.reshape(*rows, -1)}, scheme)
    values = scheme.decode({"codes": codes, "table": quant_map, "scale": absmax})
    return values[: prod(state["shape"])].reshape(state["shape"])


def unpack_four(
    w: QTensor,
    nested_quant_map: np.ndarray | None = None,
    nested_absmax: np.ndarray | None = None,
    *,
    state: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The parts of a packed tensor [..., in]: back from `pack_four`, whose nested parts are given where there are."""
    absmax = np.ascontiguousarray(w.every_row("scale")).reshape(-1)
    if nested_quant_map is not None and nested_absmax is not None:
        absmax = nested_codes(absmax, nested_quant_map, nested_absmax, state)
    return {"weight": w.parts["codes"].reshape(-1, 1), "quant_map": w.parts["table"].reshape(-1), "absmax": absmax}


def nested_codes(absmax: np.ndarray, levels: np.ndarray, outer: np.ndarray, state: Mapping[str, Any]) -> np.ndarray:
    """The codes uint8 of scales: the first of the levels that gives the same number, or else the nearest."""
    codes, size = np.empty(len(absmax), np.uint8), state["nested_blocksize"]
    for block, scale in enumerate(outer):
        mine = absmax[block * size : (block + 1) * size]
        known = levels * scale + np.float32(state["nested_offset"])
        codes[block * size : (block + 1) * size] = np.abs(known - mine[:, None]).argmin(1)
    return codes


def repeated(values: np.ndarray, times: int, count: int) -> np.ndarray:
    """`count` numbers: each value `times` times, the last one as often as there is room."""
    return np.repeat(values, min(times, count))[:count]


# ------------------------------------------------------------------------------------------------ made from others
@dataclass(frozen=True)
class Facts:
    """What is said of a weight: "int8", "nf4" or "fp4", its block size, and the dtype that it is multiplied in."""

    shape: tuple[int, ...]
    kind: str
    block: int
    dtype: str


def facts(w: QTensor) -> Facts:
    """What is to be said of a packed tensor; ValueError where the format cannot hold it."""
    scheme = w.scheme
    if isinstance(scheme, Codebook) and scheme.name in ("nf4", "fp4") and scheme.group and not w.trailing:
        return Facts(w.shape, scheme.name, scheme.group, w.dtype)
    if w.ndim == 2 and scheme == Integers(8, over=127) and {*w.parts} == {"codes", "scale"}:
        return Facts(w.shape, "int8", 0, w.dtype)
    raise ValueError(f"is {scheme.name}; bitsandbytes has nf4, fp4, and int8 with a scale over 127 for every row")


def config(said: Mapping[str, Facts], plain: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of modules, and of those that are plain; ValueError where they are of several kinds."""
    kinds = sorted({one.kind for one in said.values()})
    if len(kinds) > 1:
        raise ValueError(f"weights are {' and '.join(kinds)}; bitsandbytes has one kind for all modules")
    eight = kinds == ["int8"]
    four_bits = {
        "bnb_4bit_compute_dtype": next(iter(said.values())).dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kinds[0],
        "bnb_4bit_use_double_quant": False,
    }
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": eight,
        "load_in_4bit": not eight,
        "llm_int8_skip_modules": list(plain) or None,
        "llm_int8_has_fp16_weight": False,
    } | ({} if eight else four_bits)


def made(module: str, said: Facts, config: Mapping[str, Any]) -> Weight:
    """The description of a module that is written anew."""
    name = f"{module}.weight"
    if said.kind == "int8":
        parts = {"weight": name, "SCB": f"{module}.SCB", "order": f"{module}.weight_format"}
        rows_first = {"order": np.zeros((), np.uint8)}
        return Weight(
            name, said.shape, parts, lambda order, **parts: pack_eight(**parts), lambda w: unpack_eight(w) | rows_first
        )
    state = {"quant_type": said.kind, "blocksize": said.block, "dtype": said.dtype, "shape": list(said.shape)}
    written = {"state": np.frombuffer(json.dumps(state).encode(), np.uint8)}
    parts = {"weight": name, "quant_map": f"{name}.quant_map", "absmax": f"{name}.absmax"}
    parts |= {"state": f"{name}.quant_state.bitsandbytes__{said.kind}"}

    def again(state: np.ndarray, **parts: np.ndarray) -> QTensor | np.ndarray:
        return pack_four(**parts, state=json.loads(state.tobytes()))

    return Weight(name, said.shape, parts, again, lambda w: unpack_four(w, state=state) | written)
