"""Every matrix of a model rounded so that its products with the inputs of some text change least, layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax.calibration.observing import Report, Select, Sums, advanced, entries, matrices, observe
from forge_jax.params import Param, Tree, abstract, flatten, unflatten
from forge_jax.quantization import rows_of
from forge_jax.quantization.gptq import Gptq
from forge_jax.quantization.grid import Grid, Lines, Rounded
from forge_jax.quantization.swift import swift
from forge_jax.spec import ModelSpec
from forge_jax.tensor import QTensor, dense

Round = Callable[[np.ndarray, np.ndarray], Rounded]
"""(rows [R, n], H [n, n]) -> what they are rounded to."""


def gptq(
    spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], how: Gptq, select: Select = matrices
) -> tuple[Tree, Report]:
    """The same parameters with the chosen ones rounded by GPTQ; a layer sees what the rounded ones before it make.

    What several layers share is rounded first, for the inputs that it has in all of them. Of the chosen parameters
    those stay as they are that `observe` has no sums for, or whose rows do not fill bytes.

    Args:
        batches: ids [B, T] each, without padding.
    """
    described, report = dict(flatten(abstract(spec))), Report()
    chosen: Select = lambda path, param: how.grid.fills(param.fan_in) and select(path, param)  # noqa: E731

    def rounded(sums: Sums) -> Tree:
        leaves = dict(flatten(params))
        for path, found in sums.items():
            report.seen[path] = found["count"]
            leaves[path] = round_leaf(leaves[path], described[path], found["gram"], how.round, how.grid)
        return unflatten(leaves)

    params = rounded(shared_sums(spec, params, batches, chosen))
    states = entries(spec, params, batches)
    for i in range(len(spec.layers)):
        sums, _ = observe(spec, params, i, states, own(chosen), ("gram",))
        params = rounded(sums)
        states = advanced(spec, params, i, states)
    return params, report


def own(select: Select) -> Select:
    """Of those chosen, the parameters that are a layer's own."""
    return lambda path, param: not path.startswith("shared.") and select(path, param)


def shared_sums(spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], select: Select) -> Sums:
    """The sums for what several layers share."""
    total: Sums = {}
    if "shared" not in params:
        return total
    common: Select = lambda path, param: path.startswith("shared.") and select(path, param)  # noqa: E731
    states = entries(spec, params, batches)
    for i in range(len(spec.layers)):
        sums, states = observe(spec, params, i, states, common, ("gram",))
        for path, found in sums.items():
            total[path] = {name: found[name] + total[path][name] for name in found} if path in total else found
    return total


def round_leaf(leaf: Any, param: Param, gram: np.ndarray, way: Round, grid: Grid) -> QTensor:
    """One weight, each of those stacked in it for inputs of its own: gram is [*stacked, n, n]."""
    plain = dense(leaf)
    rows, inner, trailing = rows_of(plain, param)
    outputs, n = rows.shape[:-1], rows.shape[-1]
    stacked = outputs[: param.stacked]
    each = np.asarray(rows, np.float32).reshape(*stacked, -1, n)
    found = [way(each[at], gram[at]) for at in np.ndindex(stacked)]
    codes, scale, zero = (
        np.stack(part).reshape(*outputs, -1) for part in zip(*((one.codes, *one.lines) for one in found), strict=True)
    )
    indexes = [one.index for one in found if one.index is not None]
    ones = (1,) * (len(outputs) - len(stacked))
    index = np.stack(indexes).reshape(*stacked, *ones, n) if indexes else None
    scheme, parts = grid.parts(codes, Lines(scale, zero), index)
    packed = QTensor(parts, scheme, inner, trailing, str(plain.dtype))
    return jax.tree.map(jnp.asarray, swift(packed, param, None))
