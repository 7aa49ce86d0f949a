"""Packed weights to the tensors of a checkpoint: again as they were stored, or in another format that holds them.

Nothing is rounded: before anything is written, every weight is packed, read back and compared, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converters import rows
from converters.packed import awq, bitsandbytes, compressed_made, fp8, gptq, mxfp4
from converters.packed.packing import Packing
from converters.packed.source import inputs_first
from converters.packed.weight import Weight
from converters.rules import Instance
from converters.safetensors_file import Entry, dtype_name, numpy_dtype
from converters.source import TensorInfo
from forge_jax.tensor import QTensor

Fetch = Callable[[], QTensor]


@dataclass(frozen=True)
class Maker:
    """How a format takes weights of any origin.

    facts: what is to be said of a packed matrix; ValueError where the format cannot hold it exactly. config: the
    quantization_config of modules, and of those that stay plain. made: the description of one module.
    """

    facts: Callable[[QTensor], Any]
    config: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    made: Callable[[str, Any, Mapping[str, Any]], Weight]


MAKERS: Mapping[str, Maker] = {
    "awq": Maker(awq.facts, awq.config, awq.made),
    "bitsandbytes": Maker(bitsandbytes.facts, bitsandbytes.config, bitsandbytes.made),
    "compressed-tensors": Maker(compressed_made.facts, compressed_made.config, compressed_made.made),
    "fp8": Maker(fp8.facts, fp8.config, fp8.made),
    "gptq": Maker(gptq.facts, gptq.config, gptq.made),
    "mxfp4": Maker(mxfp4.facts, mxfp4.config, mxfp4.made),
}


class Parts:
    """The parts of weights as they are asked for, those of one weight after another in memory."""

    def __init__(self) -> None:
        self.name, self.parts = "", {}

    def __call__(self, weight: Weight, fetch: Fetch, packing: Packing | None) -> dict[str, np.ndarray]:
        """The stored tensors of a weight by their names, as they are written."""
        if weight.name != self.name:
            self.name, self.parts = weight.name, stored_parts(weight, fetch(), packing)
        return self.parts


def stored_parts(weight: Weight, w: QTensor, packing: Packing | None) -> dict[str, np.ndarray]:
    """The tensors of a weight by their names.

    Raises:
        ValueError: they do not say the same numbers as the packed weight.
    """
    values, stored = (packing.values, packing.stored) if packing is not None else ({}, {})
    kept = {role: values[weight.parts[role]] for role in weight.kept}
    parts = weight.unpack(w, **kept) | kept
    named = {name: as_stored(parts[role], name, stored.get(name)) for role, name in weight.parts.items()}
    again = weight.pack(**{role: named[name] for role, name in weight.parts.items()})
    said = again.dense() if isinstance(again, QTensor) else again
    if not np.array_equal(said, replace(w, dtype="float32").dense()):
        raise ValueError(f"{weight.name} ({w.scheme.name}) was changed since it was loaded: its format cannot hold it")
    return named | {name: values[name] for name in weight.spare}


def as_stored(values: np.ndarray, name: str, info: TensorInfo | None) -> np.ndarray:
    """A part in the type and shape that it was stored in; as it is where it was not.

    Raises:
        ValueError: it has other sizes than it had.
    """
    if info is None:
        return values
    dtype = numpy_dtype(info.dtype)
    if values.dtype != dtype:
        whole = np.issubdtype(values.dtype, np.integer) and np.issubdtype(dtype, np.integer)
        values = values.astype(dtype) if whole else np.ascontiguousarray(values).reshape(-1).view(dtype)
    if values.size != np.prod(info.shape):
        raise ValueError(f"{name} has {values.size} values, it was stored as {list(info.shape)}; load without a mesh")
    return values.reshape(info.shape)


def entries(weight: Weight, fetch: Fetch, parts: Parts, packing: Packing | None = None) -> Iterator[Entry]:
    """The stored tensors of one weight, made once to be checked, and again when they are written.

    Raises:
        ValueError: they do not say the same numbers as the packed weight.
    """
    for name, values in parts(weight, fetch, packing).items():
        yield Entry(name, values.shape, dtype_name(values.dtype), lambda n=name: parts(weight, fetch, packing)[n])


def packed_tensor(instance: Instance, leaves: Sequence[QTensor]) -> QTensor:
    """Their packed tensor, from our packed leaves, on the host.

    Raises:
        ValueError: its rows cannot be made of the leaves' rows.
    """
    for first in reversed(range(len(instance.stored_shape))):
        w = rows.tensor(instance, leaves, first)
        if w is not None and w.shape == instance.stored_shape:
            return w
    kinds = ", ".join(sorted({leaf.scheme.name for leaf in leaves}))
    raise ValueError(f"{instance.theirs}: its rows cannot be made of {', '.join(instance.paths)} ({kinds})")


def outputs_first(w: QTensor, name: str, model_type: Any) -> QTensor:
    """A packed matrix as formats hold it, [out, in]: that of a model whose dense matrices are [in, out] is turned.

    Raises:
        ValueError: it lies [in, out] where no reader expects it.
    """
    if (w.ndim, w.trailing) != (2, 1):
        return w
    if not inputs_first(model_type, name):
        raise ValueError(f"export: {name} is packed along its first axis; formats hold matrices [out, in]")
    return replace(w, trailing=0)


def facts(method: str, name: str, w: QTensor) -> Any:
    """What a format is to say of the packed tensor of a name.

    Raises:
        ValueError: it cannot hold it exactly; the message names those that can.
    """
    try:
        return MAKERS[method].facts(w)
    except ValueError as error:
        able = ", ".join(methods_for(w)) or "none; load with packed=False to write it dense"
        raise ValueError(
            f"export: {name} ({w.scheme.name}) cannot be written as {method}: it {error}. Formats that can: {able}"
        ) from None


def methods_for(w: QTensor) -> list[str]:
    """The formats that hold a packed tensor exactly."""
    if w.scheme.rounds:  # its products do more than the numbers say
        return []
    able = []
    for method, maker in MAKERS.items():
        try:
            maker.facts(w)
        except ValueError:
            continue
        able.append(method)
    return able


def described(method: str, said: Mapping[str, Any], plain: Sequence[str]) -> tuple[dict[str, Weight], dict[str, Any]]:
    """The descriptions of weights that are written anew, by the names of `said`, and the quantization_config.

    Raises:
        ValueError: what is common to a file differs among them.
    """
    maker, modules = MAKERS[method], {name: name.removesuffix(".weight") for name in said}
    try:
        config = maker.config({modules[name]: one for name, one in said.items()}, plain)
    except ValueError as error:
        raise ValueError(f"export: these weights cannot be written as {method}: {error}") from None
    return {name: maker.made(modules[name], one, config) for name, one in said.items()}, config
