"""A model back to files with its weights packed as they are: nothing is rounded, or it is an error. Part of the front."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from converters import architectures, rules
from converters.files import atomic_directory
from converters.packed import Packing, write
from converters.rules import Instance
from converters.safetensors_file import Entry, entry_bytes, write_sharded
from forge_jax.exporting import embedding_dtype, hf_config, own_leaves, plain_entry, storage_types, write_sides
from forge_jax.loading import Model
from forge_jax.params import abstract
from forge_jax.tensor import QTensor

Method = Literal["auto", "awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "mxfp4"]
MAX_SHARD_BYTES = 5 * 10**9


def export_packed(
    model: Model,
    directory: str | Path,
    *,
    method: Method = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write a HuggingFace directory whose packed weights stay packed, exactly: config, weights, tokenizer.

    Args:
        method: the format of the packed weights. "auto": the one that the model came from, byte for byte; of a model
            that came from none, one that holds its weights. Plain weights are written as they were stored.

    Raises:
        FileExistsError: the directory is there and not empty, and `overwrite` is false.
        ValueError: no weight is packed, one that is adapted, or that the format cannot hold exactly (names the path and
            the formats that can).
        OSError: the disk is full; nothing is left behind.
    """
    leaves = own_leaves(model)
    if not any(isinstance(leaf, QTensor) for leaf in leaves.values()):
        raise ValueError("export: no weight of this model is packed; use export_huggingface, or load with packed=True")
    tensors, said = again(model, leaves, model.packing)
    config = hf_config(model, embedding_dtype(model, "stored")) | {"quantization_config": dict(said)}
    with atomic_directory(Path(directory), sum(map(entry_bytes, tensors)), overwrite=overwrite) as part:
        write_sides(model, part, config)
        write_sharded(part, tensors, max_shard_bytes, {"format": "pt"})
    return Path(directory)


def again(model: Model, leaves: Mapping[str, Any], packing: Packing) -> tuple[list[Entry], Mapping[str, Any]]:
    """Every tensor as it was stored, and what the config says about them."""
    kind, parts, out = storage_types(model, "stored"), write.Parts(), []
    for instance in packing.found:
        weight = packing.weights.get(instance.theirs)
        mine = [leaves[path] for path in instance.paths]
        if weight is None and not any(isinstance(leaf, QTensor) for leaf in mine):
            out.append(plain_entry(instance, leaves, kind(instance.paths[0])))
        elif weight is not None and all(isinstance(leaf, QTensor) for leaf in mine):
            out += write.entries(weight, lambda i=instance: fetch(i, leaves), parts, packing)
        else:
            raise ValueError(f"{instance.theirs}")
    return out, packing.config


def fetch(instance: Instance, leaves: Mapping[str, Any]) -> QTensor:
    """The packed tensor of an instance, on the host."""
    return write.packed_tensor(instance, [jax.tree.map(np.asarray, leaves[path]) for path in instance.paths])
