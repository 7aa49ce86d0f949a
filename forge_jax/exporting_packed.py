"""A model back to files with its weights packed as they are, nothing rounded. Part of the front."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters import architectures, rules
from converters.checkpoint import tied_heads
from converters.files import atomic_directory
from converters.packed import Packing, write
from converters.rules import Instance
from converters.safetensors_file import Entry, entry_bytes, write_sharded
from forge_jax.exporting import embedding_dtype, hf_config, own_leaves, plain_entry, storage_types, write_sides
from forge_jax.loading import Model
from forge_jax.params import Param, abstract, flatten
from forge_jax.quantization.schemes import Codebook
from forge_jax.tensor import QTensor


def export_packed(
    model: Model,
    directory: str | Path,
    *,
    method: str = "auto",
    dtype: str = "stored",
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> Path:
    """Write a HuggingFace directory whose packed weights stay packed, exactly: config, weights, tokenizer.

    Args:
        method: the format of the packed weights: awq, bitsandbytes, compressed-tensors, fp8, gptq or mxfp4. "auto": the
            one that the model came from, byte for byte; of a model that came from none, one that holds its weights.
            Scales of activations, which are no part of the numbers here, are kept only in the format that the model
            came from.
        dtype: of the weights that are not packed: "stored" (as in the checkpoint), "float32", "bfloat16" or "float16".

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ValueError: no weight is packed, one that is adapted, or that the format cannot hold exactly (names the path and
            the formats that can), an unknown dtype, or another than what the model came from is to be written again in.
        OSError: the disk is full; nothing is left behind.
    """
    leaves = own_leaves(model)
    if not any(isinstance(leaf, QTensor) for leaf in leaves.values()):
        raise ValueError("export: no weight of this model is packed; use export_huggingface, or load with packed=True")
    for path, leaf in leaves.items():
        if isinstance(leaf, QTensor) and leaf.scheme.rounds:
            raise ValueError(
                f"export: products with {path} round their inputs ({leaf.scheme.name}), which these files do not say; "
                "export_orbax keeps it, or quantise to int8"
            )
    packing = model.packing
    if packing is not None and packing.weights and method in ("auto", packing.method):
        if dtype != "stored":
            raise ValueError(
                f"export: dtype {dtype!r}, but {packing.method} is what the model came from and is written as it was; "
                "leave out dtype, or name another method"
            )
        tensors, said = again(model, leaves, packing)
    else:
        chosen = method_of(model, leaves) if method == "auto" else method
        if chosen not in write.MAKERS:
            raise ValueError(f"export: method {method!r} is unknown; expected auto, {', '.join(write.MAKERS)}")
        tensors, said = anew(model, leaves, chosen, dtype)
    config = hf_config(model, embedding_dtype(model, dtype)) | {"quantization_config": dict(said)}
    with atomic_directory(Path(directory), sum(map(entry_bytes, tensors)), overwrite=overwrite) as part:
        write_sides(model, part, config)
        write_sharded(part, tensors, max_shard_bytes, {"format": "pt"})
    return Path(directory)


def method_of(model: Model, leaves: Mapping[str, Any]) -> str:
    """The format that a model came from; of one that came from none, what its packed leaves are usually stored in."""
    if model.packing is not None and model.packing.method in write.MAKERS:
        return model.packing.method
    packed = [leaf for leaf in leaves.values() if isinstance(leaf, QTensor)]
    if any("index" in leaf.parts for leaf in packed):  # inputs in an order of their own, which one format holds
        return "gptq"
    kinds = {type(leaf.scheme) for leaf in packed}
    return "bitsandbytes" if kinds == {Codebook} else "compressed-tensors"


def again(model: Model, leaves: Mapping[str, Any], packing: Packing) -> tuple[list[Entry], Mapping[str, Any]]:
    """Every tensor as it was stored, and what the config says about them.

    Raises:
        ValueError: a weight is packed that was not, or not packed that was.
    """
    kind, parts, out = storage_types(model, "stored"), write.Parts(), []
    for instance in packing.found:
        weight, packed = packing.weights.get(instance.theirs), is_packed(instance, leaves)
        if (weight is not None) != packed:
            was, now = ("packed", "plain") if weight is not None else ("plain", "packed")
            raise ValueError(f"export: {instance.theirs} is {now} and was {was} in the checkpoint; name another method")
        if weight is None:
            out.append(plain_entry(instance, leaves, kind(instance.paths[0])))
        else:
            out += write.entries(weight, partial(fetch, instance, leaves), parts, packing)
    return out, packing.config


def anew(model: Model, leaves: Mapping[str, Any], method: str, dtype: str) -> tuple[list[Entry], Mapping[str, Any]]:
    """Every tensor as a format stores it, plain ones in a dtype, and what the config says about them.

    Raises:
        ValueError: a packed weight that the format cannot hold exactly.
    """
    model_type, described = model.config.get("model_type"), dict(flatten(abstract(model.spec)))
    family = architectures.find(model_type, "export")
    found = model.packing.found if model.packing is not None else ()
    found = found or rules.instances(family.table(model.spec), abstract(model.spec))
    plain = [name for name in tied_heads(family) if model.spec.tied]
    turned, said = {}, {}
    for instance in found:
        name, matrix = instance.theirs, all(is_matrix(described[path]) for path in instance.paths)
        if is_packed(instance, leaves):
            if not matrix:
                raise ValueError(f"export: {name} is packed and a table; {method} has matrices; load with packed=False")
            turned[name] = partial(turn, instance, leaves, model_type)
            said[name] = write.facts(method, name, turned[name]())
        elif matrix and name.endswith(".weight"):
            plain.append(name)
    weights, config = write.described(method, said, [name.removesuffix(".weight") for name in plain])
    kind, parts, out = storage_types(model, dtype), write.Parts(), []
    for instance in found:
        if instance.theirs in weights:
            out += write.entries(weights[instance.theirs], turned[instance.theirs], parts)
        else:
            out.append(plain_entry(instance, leaves, kind(instance.paths[0])))
    return out, config


def is_matrix(param: Param) -> bool:
    """Whether a product sums over a part of a parameter's axes; one of a table, a norm or a bias does not."""
    return param.fill is None and 0 < param.inputs < len(param.shape)


def is_packed(instance: Instance, leaves: Mapping[str, Any]) -> bool:
    """Whether the leaves of a tensor are packed.

    Raises:
        ValueError: some of them are.
    """
    packed = [isinstance(leaves[path], QTensor) for path in instance.paths]
    if any(packed) and not all(packed):
        raise ValueError(f"export: of {', '.join(instance.paths)}, which are one tensor, only some are packed")
    return all(packed)


def fetch(instance: Instance, leaves: Mapping[str, Any]) -> QTensor:
    """The packed tensor of an instance, on the host."""
    return write.packed_tensor(instance, [jax.tree.map(np.asarray, leaves[path]) for path in instance.paths])


def turn(instance: Instance, leaves: Mapping[str, Any], model_type: Any) -> QTensor:
    """The packed tensor of an instance, on the host, outputs first."""
    return write.outputs_first(fetch(instance, leaves), instance.theirs, model_type)
