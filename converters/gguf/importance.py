"""Importance by our paths to and from that of a GGUF's matrices: mean squares of what columns are multiplied by."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from converters import rules
from converters.gguf import mixes, names
from converters.gguf.export import architecture, variant
from converters.gguf.facts import mixture
from converters.gguf.writer import TensorToWrite, write_gguf
from forge_jax.params import abstract, flatten
from forge_jax.quantization import rows_of
from forge_jax.spec import ModelSpec


def write_imatrix(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    model_type: str,
    squares: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    *,
    chunks: int,
    length: int,
) -> None:
    """Write sums of squares [*stacked, n] over counts [*stacked, 1] of rows, by our paths, under the names of GGUF.

    Matrices that a GGUF stores as one have the same inputs, and one entry.

    Args:
        chunks, length: of the text that they are over: how many windows, and tokens of each.

    Raises:
        ValueError: the family has no GGUF architecture, or a GGUF has other columns than a matrix has inputs.
        OSError: the disk is full or the path cannot be written.
    """
    arch = variant(architecture(model_type), mixture(spec))
    tensors: list[TensorToWrite] = []
    for instance in rules.instances(names.rules(arch, spec), abstract(spec)):
        ours = next((one for one in instance.paths if one in squares), None)
        if ours is None:
            continue
        total, over = squares[ours], counts[ours]
        if total.shape[-1] != instance.stored_shape[-1]:
            raise ValueError(
                f"{ours} has {total.shape[-1]} inputs, but {instance.theirs} {instance.stored_shape[-1]} columns; this "
                "importance cannot be written"
            )
        for end, values in ((".in_sum2", total), (".counts", over)):
            flat = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
            tensors.append((instance.theirs + end, flat.shape, "F32", partial(np.asarray, flat)))
    said: dict[str, Any] = {"general.type": "imatrix", "imatrix.datasets": ["text"]}
    write_gguf(path, said | {"imatrix.chunk_count": chunks, "imatrix.chunk_size": length}, tensors)


def by_path(importance: Mapping[str, np.ndarray], spec: ModelSpec, model_type: str) -> dict[str, np.ndarray]:
    """The importance of columns of our parameters, float32 [*stacked, n] by path, from what `read_imatrix` gives.

    Every number of a stored matrix gets that of its column and goes the way that weights go, so that it arrives where
    they do.

    Raises:
        ValueError: the family has no GGUF architecture, or there are entries of other tensors or of another size.
    """
    arch = variant(architecture(model_type), mixture(spec))
    described, found = dict(flatten(abstract(spec))), {}
    every = rules.instances(names.rules(arch, spec), abstract(spec), importance)
    mixes.check_entries(importance, [instance.theirs for instance in every if instance.axis is None])
    for instance in every:
        if instance.theirs in importance:
            shape = instance.stored_shape
            weights = mixes.of_columns(instance.theirs, importance[instance.theirs], shape)
            leaves = instance.rule.read(np.broadcast_to(weights[..., None, :], shape), instance.shapes)
            for path, leaf in zip(instance.paths, leaves, strict=True):
                rows, stacked = rows_of(leaf, described[path])[0], described[path].stacked
                found[path] = rows[(..., *(0,) * (rows.ndim - 1 - stacked), slice(None))]
    return found
