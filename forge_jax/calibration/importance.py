"""Importance: how large the inputs of each weight are, which is how much an error of its columns counts."""

from collections.abc import Sequence

import numpy as np

from forge_jax.calibration.observing import Select, entries, matrices, observe
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec


def squares(
    spec: ModelSpec, params: Tree, batches: Sequence[np.ndarray], select: Select = matrices
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Sums of squares of the inputs of the chosen parameters [*stacked, n], and how many rows they are over
    [*stacked, 1], by path. Of the chosen parameters those are missing that `observe` has no sums for.

    Args:
        batches: ids [B, T] each, without padding.
    """
    states = entries(spec, params, batches)
    totals: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for i in range(len(spec.layers)):
        sums, states = observe(spec, params, i, states, select, ("square",))
        for path, found in sums.items():
            totals[path] = totals.get(path, 0) + found["square"]
            counts[path] = counts.get(path, 0) + found["count"][..., None]
    return totals, counts


def means(totals: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean squares, float32 [*stacked, n]; ones for stacked weights that no token went to."""
    return {
        path: np.where(counts[path] > 0, total / np.maximum(counts[path], 1), 1).astype(np.float32)
        for path, total in totals.items()
    }
