"""A checkpoint with packed weights, seen as one with dense weights: decoded tensor by tensor as they are read.

`quantization_config` of config.json says how; families, rules and their strictness see the dense names and shapes.
What is packed and belongs to no weight stays in the list under its own name, so that strictness refuses it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.composed import Composed
from converters.files import quote, read_json
from converters.packed import auto_round, awq, bitsandbytes, compressed, fp8, gptq, hqq, modelopt, mxfp4
from converters.packed.weight import Stored, Weight
from converters.source import TensorSource
from converters.take import Take
from forge_jax.tensor import QTensor

KEY = "quantization_config"
# models whose dense weights are [in, out]; packed, they are [out, in] like all others
INPUTS_FIRST = ("gpt2", "jais", "openai-gpt")
INPUTS_FIRST_NAMES = re.compile(r"\.(c_attn|c_proj|c_fc2?)\.weight$")
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files beside config.json that older quantisers wrote, and what they are about where they do not say it."""
METHODS: Mapping[str, Callable[[Take, Stored], Iterator[Weight]]] = {
    "auto-round": auto_round.weights,
    "awq": awq.weights,
    "bitsandbytes": bitsandbytes.weights,
    "compressed-tensors": compressed.weights,
    "fbgemm_fp8": fp8.weights,
    "fp8": fp8.weights,
    "gptq": gptq.weights,
    "hqq": hqq.weights,
    "intel/auto-round": auto_round.weights,
    "modelopt": modelopt.weights,
    "mxfp4": mxfp4.weights,
}
UNREAD = {
    "aqlm": "sums of learned codebooks",
    "bitnet": "ternary codes; load the checkpoint of the same model in bfloat16",
    "eetq": "int8 in the order of a kernel",
    "fp_quant": "floats behind a rotation",
    "higgs": "points of a lattice behind a rotation",
    "quanto": "tensors of its own classes",
    "quark": "exports of many kinds",
    "spqr": "a sparse part beside a packed one",
    "torchao": "tensors of its own classes",
    "vptq": "vectors of learned codebooks",
}
"""Methods that are known and not read, and what they store."""
CACHE_SCHEME = "kv_cache_scheme"
CACHE_SCALES = ("k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale")
# types that no weight of a model is computed in: what is left in them has no scheme
CODES = ("I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


class Packed(Composed):
    """The dense tensors of a checkpoint, of which some are made of several stored ones."""

    def __init__(
        self,
        whole: TensorSource,
        weights: Iterable[Weight],
        where: str,
        method: str,
        said: Mapping[str, Any],
        dropped: Iterable[str] = (),
    ) -> None:
        self.method, self.said = method, said
        self.weights = {weight.name: weight for weight in weights}
        used = {part for weight in self.weights.values() for part in (*weight.parts.values(), *weight.spare)}
        used.update(dropped)
        rest = {name: info for name, info in whole.tensors.items() if name not in used}
        for name, info in rest.items():
            if name in self.weights:
                raise ValueError(f"{where}: {quote(name)} is stored, and {list(self.weights[name].parts.values())} too")
            if name.endswith(".weight") and info.dtype in CODES:
                raise ValueError(f"{where}: {quote(name)} is {info.dtype}, and no scale beside it says of what")
        super().__init__(whole, rest, {name: weight.recipe() for name, weight in self.weights.items()})


def unpacked(
    path: Path, source: TensorSource, config: Mapping[str, Any], allow: Iterable[str]
) -> tuple[TensorSource, dict[str, Any]]:
    """The dense tensors of a checkpoint, and its config without what says how they are packed.

    Raises:
        ValueError: a method that is not known, keys of its config that are not, or parts that do not fit.
    """
    said, rest = said_of(config)
    where = f"{path / 'config.json' if path.is_dir() else path}: {KEY}"
    if not said:
        said, where = said_beside(path, source, where)
    if not said:
        return source, rest
    if not isinstance(said, Mapping):
        raise ValueError(f"{where} is {type(said).__name__}, expected a dict")
    allow = set(allow)
    take = Take(said, where, allow)
    method = take.either("quant_method", "method", default=None)
    if not isinstance(method, str) or method not in METHODS:
        kind = f"is not read ({UNREAD[method]})" if isinstance(method, str) and method in UNREAD else "is not known"
        raise ValueError(f"{where}: quant_method = {method!r} {kind}; expected {', '.join(METHODS)}")
    cache = [name for name in source.tensors if name.rpartition(".")[2] in CACHE_SCALES]
    if cache and CACHE_SCHEME not in allow:
        raise ValueError(
            f"{where}: {len(cache)} tensors scale a cache in few bits, for example {quote(cache[0])}; caches here are "
            f"floats, which are more exact. If that is right, load with allow={{{CACHE_SCHEME!r}}}"
        )
    weights = list(METHODS[method](take, Stored(source, where)))
    take.done()
    kind = config.get("model_type")
    weights = [flipped(weight) if inputs_first(kind, weight.name) else weight for weight in weights]
    return Packed(source, weights, where, method, said, cache), rest


def said_of(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a config says about packing, on its own level or the language model's, and the config without it."""
    rest = {key: value for key, value in config.items() if key != KEY}
    text = config.get("text_config")
    inner = text.get(KEY) if isinstance(text, Mapping) else None
    if isinstance(text, Mapping) and inner:
        rest["text_config"] = {key: value for key, value in text.items() if key != KEY}
    return config.get(KEY) or inner, rest


def said_beside(path: Path, source: TensorSource, where: str) -> tuple[Any, str]:
    """What a file beside config.json says about packing, and its name; looked for where there are packed tensors."""
    directory = path if path.is_dir() else path.parent
    if any(name.endswith((".qweight", ".weight_scale")) for name in source.tensors):
        for name, method in BESIDE.items():
            file = directory / name
            if file.exists() and isinstance(said := read_json(file), Mapping):
                return ({} if "method" in said else {"quant_method": method}) | dict(said), str(file)
    return None, where


def inputs_first(model_type: Any, name: str) -> bool:
    """Whether a dense tensor is [in, out] in models of a type."""
    return model_type in INPUTS_FIRST and INPUTS_FIRST_NAMES.search(name) is not None


def flipped(weight: Weight) -> Weight:
    """The transpose of a matrix."""

    def pack(**parts: np.ndarray) -> QTensor | np.ndarray:
        stored = weight.pack(**parts)
        return replace(stored, trailing=1) if isinstance(stored, QTensor) else np.ascontiguousarray(stored.T)

    def unpack(w: QTensor, **kept: np.ndarray) -> dict[str, np.ndarray]:
        return weight.unpack(replace(w, trailing=0), **kept)

    return replace(weight, shape=weight.shape[::-1], pack=pack, unpack=unpack)
