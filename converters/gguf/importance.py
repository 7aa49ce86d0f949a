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
from converters.rules import Instance
from forge_jax.params import Param, abstract, flatten
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
        ValueError: the family has no GGUF architecture, or the columns of its matrix are not our inputs.
        OSError: the disk is full or the path cannot be written.
    """
    arch, described = variant(architecture(model_type), mixture(spec)), dict(flatten(abstract(spec)))
    tensors: list[TensorToWrite] = []
    for instance in rules.instances(names.rules(arch, spec), abstract(spec)):
        ours = next((one for one in instance.paths if one in squares), None)
        if ours is None:
            continue
        over = np.asarray(counts[ours], np.float32).reshape(-1, 1)
        total = stored_columns(instance, np.asarray(squares[ours], np.float32), described, len(over))
        for end, values in ((".in_sum2", total), (".counts", over)):
            tensors.append((instance.theirs + end, values.shape, "F32", partial(np.asarray, values)))
    said: dict[str, Any] = {"general.type": "imatrix", "imatrix.datasets": ["text"]}
    write_gguf(path, said | {"imatrix.chunk_count": chunks, "imatrix.chunk_size": length}, tensors)


def stored_columns(instance: Instance, weights: np.ndarray, described: Mapping[str, Param], stacks: int) -> np.ndarray:
    """What is known of our inputs [*stacked, n] for the columns of a stored matrix, [stacks, columns].

    Every number of our parameters gets that of its input and goes the way that weights go, so that it arrives where
    they do.

    Raises:
        ValueError: columns of the stored matrix are not our inputs.
    """

    def spread(path: str) -> np.ndarray:
        param = described[path]
        along = param.stacked + param.inputs
        ones = (1,) * (len(param.shape) - along)
        return np.broadcast_to(weights.reshape(*param.shape[:along], *ones), param.shape)

    whole = instance.write(spread)
    rows = whole.reshape(stacks, -1, whole.shape[-1])
    if not (rows == rows[:, :1]).all():
        raise ValueError(
            f"the columns of {instance.theirs} are not the inputs of {instance.paths[0]}; this importance cannot be "
            "written, llama.cpp's own (llama-imatrix) must be made with a GGUF of the model"
        )
    return rows[:, 0]


def by_path(importance: Mapping[str, np.ndarray], spec: ModelSpec, model_type: str) -> dict[str, np.ndarray]:
    """The importance of columns of our parameters, float32 [*stacked, n] by path, from what `read_imatrix` gives.

    The reverse of `stored_columns`.

    Raises:
        ValueError: the family has no GGUF architecture, there are entries of other tensors or of another size, or
            columns are not our inputs.
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
                rows = rows_of(leaf, described[path])[0]
                stacked = rows.shape[: described[path].stacked]
                rows = rows.reshape(*stacked, -1, rows.shape[-1])
                if not (rows == rows[..., :1, :]).all():
                    raise ValueError(
                        f"the columns of {instance.theirs} are not the inputs of {path}; take importance from a text"
                    )
                found[path] = rows[..., 0, :]
    return found
