"""Every matrix of a model rounded so that its products with the inputs of some text change least, layer by layer."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from forge_jax.calibration.observing import Select, Sums, advanced, entries, matrices, observe
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.int8 import rows_of
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor, dense


def gptq(
    spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], how: Gptq = Gptq(), select: Select = matrices
) -> Tree:
    """The same parameters with the chosen ones rounded by GPTQ; a layer sees what the rounded ones before it make.

    What several layers share is rounded first, for the inputs that it has in all of them. Parameters that are not
    multiplied, and stay as they are, are those that the result has no `QTensor` for.

    Args:
        batches: ids [B, T] each, without padding.
    """
    params = rounded(spec, params, shared_sums(spec, params, batches, select), how)
    states = entries(spec, params, batches)
    for i in range(len(spec.layers)):
        own = lambda path, param: not path.startswith("shared.") and select(path, param)  # noqa: E731
        sums, _ = observe(spec, params, i, states, own, ("gram",))
        params = rounded(spec, params, sums, how)
        states = advanced(spec, params, i, states)
    return params


def shared_sums(spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], select: Select) -> Sums:
    """The sums for what several layers share."""
    if "shared" not in params:
        return {}
    common = lambda path, param: path.startswith("shared.") and select(path, param)  # noqa: E731
    states, total = entries(spec, params, batches), {}
    for i in range(len(spec.layers)):
        sums, states = observe(spec, params, i, states, common, ("gram",))
        for path, found in sums.items():
            total[path] = {name: found[name] + total[path][name] for name in found} if path in total else found
    return total


def rounded(spec: ModelSpec, params: Tree, sums: Sums, how: Gptq) -> Tree:
    """The parameters with those that there are sums for rounded."""
    described, leaves = dict(flatten(abstract(spec))), dict(flatten(params))
    new = {path: round_leaf(leaves[path], described[path], found["gram"], how) for path, found in sums.items()}
    return unflatten(leaves | new)


def round_leaf(leaf: Any, param: Param, gram: np.ndarray, how: Gptq) -> QTensor:
    """One weight, each of those stacked in it for inputs of its own: gram is [*stacked, n, n]."""
    dtype = str(dense(leaf).dtype)
    rows, inner, trailing = rows_of(dense(leaf), param)
    outputs, n = rows.shape[:-1], rows.shape[-1]
    stacked = outputs[: param.stacked]
    each = np.asarray(rows, np.float32).reshape(*stacked, -1, n)
    found = [how.round(each[at], gram[at]) for at in np.ndindex(stacked)]
    codes, scale, zero = (np.stack(part).reshape(*outputs, -1) for part in list(zip(*found, strict=True))[:3])
    ones = (1,) * (len(outputs) - len(stacked))
    index = None if found[0].index is None else np.stack([each.index for each in found]).reshape(*stacked, *ones, n)
    scheme, parts = how.grid.parts(codes, scale, zero, index)
    return QTensor({name: jnp.asarray(part) for name, part in parts.items()}, scheme, inner, trailing, dtype)
