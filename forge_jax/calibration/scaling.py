"""AWQ: inputs of weights are scaled where a layer allows it, then the weights are rounded to the nearest numbers."""

from collections.abc import Sequence

import numpy as np

from forge_jax.calibration.folds import Described, Fold, Leaves, holding
from forge_jax.calibration.observing import Select, Sums, entries, matrices, observe, paths
from forge_jax.calibration.rounding import own, round_leaf, shared_sums
from forge_jax.decoder import share, unshared, whole
from forge_jax.params import Tree, abstract, flatten, unflatten
from forge_jax.quantization.awq import best_scale, clipped
from forge_jax.quantization.grid import Grid, Rounded
from forge_jax.quantization.int8 import rows_of
from forge_jax.spec import Block, ModelSpec


def awq(
    spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], grid: Grid, select: Select = matrices
) -> tuple[Tree, dict[str, tuple[str, ...]]]:
    """The same parameters with the chosen ones rounded by AWQ, and norms or other weights that make up for the scales.

    Args:
        batches: ids [B, T] each, without padding.

    Returns:
        The tree, and by the path of a norm or weight those that its scales went into. Others are rounded as they are.
    """
    described, leaves = dict(flatten(abstract(spec))), dict(flatten(params))
    scaled: dict[str, tuple[str, ...]] = {}
    known: dict[Block, list[Fold]] = {}

    def nearest(rows: np.ndarray, gram: np.ndarray) -> Rounded:
        lines = clipped(rows, gram, grid)
        return Rounded(grid.nearest(rows, lines), lines)

    def rounded(sums: Sums) -> Leaves:
        return {
            path: round_leaf(leaves[path], described[path], found["gram"].astype(np.float32), nearest, grid)
            for path, found in sums.items()
        }

    leaves |= rounded(shared_sums(spec, params, batches, select))
    states = entries(spec, params, batches)
    for i, layer in enumerate(spec.layers):
        sums, after = observe(spec, params, i, states, own(select), ("gram", "absolute"))
        prefix = f"layers.{i}."
        mine = {near: described[far] for near, far in paths(layer, i, described) if far.startswith(prefix)}
        near = dict(flatten(whole(layer, params["layers"].get(str(i), {}), params)))
        if (kind := unshared(layer)) not in known:
            x, call = states[0]
            known[kind] = holding(layer, mine, near, (x, share(call, i)))
        seen = {path.removeprefix(prefix): found for path, found in sums.items()}
        for fold in known[kind]:
            if any(path in seen for path in fold.into):
                near = fold.applied(near, mine, searched(fold, near, mine, seen, grid))
                scaled[prefix + fold.source] = tuple(prefix + path for path in fold.into)
        leaves |= {prefix + path: near[path] for path in mine}
        leaves |= rounded(sums)
        states = after
    return unflatten(leaves), scaled


def searched(fold: Fold, leaves: Leaves, described: Described, sums: Sums, grid: Grid) -> np.ndarray:
    """The best scales of a fold; the sums become those of the scaled inputs."""
    into = [path for path in fold.into if path in sums]
    size = sum(sums[path]["absolute"].sum(tuple(range(fold.stacked, described[path].stacked))) for path in into)
    size = fold.wide(fold.narrow(np.asarray(size, np.float32)))
    weights = []
    for path in into:
        rows, _, _ = rows_of(leaves[path], described[path])
        stacked = rows.shape[: described[path].stacked]
        each = np.asarray(rows, np.float32).reshape(*stacked, -1, rows.shape[-1])
        weights.append((each, sums[path]["gram"].astype(np.float32)))
    s = best_scale(size, weights, grid)
    for path in into:
        sums[path]["gram"] /= s[..., :, None] * s[..., None, :]
    return fold.narrow(s)
