"""AWQ: inputs of weights are scaled where a layer allows it, then the weights are rounded to the nearest numbers."""

from collections.abc import Sequence

import numpy as np

from forge_jax.calibration.folds import Described, Fold, Leaves, holding
from forge_jax.calibration.observing import Report, Select, Sums, entries, matrices, observe, paths
from forge_jax.calibration.rounding import own, round_leaf, shared_sums
from forge_jax.decoder import share, unshared, whole
from forge_jax.params import Tree, abstract, flatten, unflatten
from forge_jax.quantization import rows_of
from forge_jax.quantization.awq import best_scale, clipped
from forge_jax.quantization.grid import Grid, Rounded
from forge_jax.spec import Block, ModelSpec
from forge_jax.tensor import dense


def awq(
    spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], grid: Grid, select: Select = matrices
) -> tuple[Tree, Report]:
    """The same parameters with the chosen ones rounded by AWQ, and norms or other weights that make up for the scales.

    Weights whose inputs cannot be scaled, as the report says, are rounded as they are, and so is what several layers
    share. Of the chosen parameters those stay as they are that `observe` has no sums for, or whose rows do not fill
    bytes.

    Args:
        batches: ids [B, T] each, without padding.
    """
    described, leaves = dict(flatten(abstract(spec))), dict(flatten(params))
    report = Report()
    known: dict[Block, list[Fold]] = {}
    chosen: Select = lambda path, param: grid.fills(param.fan_in) and select(path, param)  # noqa: E731

    def nearest(rows: np.ndarray, gram: np.ndarray) -> Rounded:
        lines = clipped(rows, gram, grid)
        return Rounded(grid.nearest(rows, lines), lines)

    def rounded(sums: Sums) -> Leaves:
        report.seen.update({path: found["count"] for path, found in sums.items()})
        return {
            path: round_leaf(leaves[path], described[path], found["gram"].astype(np.float32), nearest, grid)
            for path, found in sums.items()
        }

    leaves |= rounded(shared_sums(spec, params, batches, chosen))
    states = entries(spec, params, batches)
    for i, layer in enumerate(spec.layers):
        sums, after = observe(spec, params, i, states, own(chosen), ("gram", "absolute"))
        prefix = f"layers.{i}."
        mine = {near: described[far] for near, far in paths(layer, i, described) if far.startswith(prefix)}
        before = whole(layer, params["layers"].get(str(i), {}), params)
        # packed weights are decoded, or nothing could be scaled
        before = {path: dense(leaf) if path in mine else leaf for path, leaf in flatten(before)}
        if (kind := unshared(layer)) not in known:
            x, call = states[0]
            known[kind] = holding(layer, mine, before, (x, share(call, i)))
        seen = {path.removeprefix(prefix): found for path, found in sums.items()}
        near = before
        for fold in known[kind]:
            if any(path in seen for path in fold.into):
                near = fold.applied(near, mine, searched(fold, near, mine, seen, grid))
                report.scaled[prefix + fold.source] = tuple(prefix + path for path in fold.into)
        leaves |= {prefix + path: near[path] for path in mine if near[path] is not before[path]}
        leaves |= rounded(sums)
        states = after
    return unflatten(leaves), report


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
