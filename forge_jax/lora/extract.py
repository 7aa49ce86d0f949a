"""An adapter from what a fine-tuned model has more than its base: the nearest updates of a given rank."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from forge_jax.lora.adapter import Adapter, Update
from forge_jax.params import Param, Tree, abstract, flatten
from forge_jax.spec import ModelSpec
from forge_jax.tensor import dense


def extract(spec: ModelSpec, base: Tree, tuned: Tree, rank: int) -> Adapter:
    """The adapter that makes `tuned` of `base` as nearly as updates of `rank` can (Eckart-Young), one SVD a weight.

    Parameters that multiply nothing (norms, biases) are replaced whole where they differ. What is equal is left out.

    Raises:
        ValueError: the rank is not positive, or the two trees are not of this spec.
    """
    if rank < 1:
        raise ValueError(f"extract: rank {rank}; expected 1 or more")
    old, new, described = dict(flatten(base)), dict(flatten(tuned)), dict(flatten(abstract(spec)))
    if odd := sorted((old.keys() ^ described.keys()) | (new.keys() ^ described.keys())):
        raise ValueError(f"extract: the trees and the spec differ in {', '.join(odd[:5])}")
    updates: dict[str, Update] = {}
    values: dict[str, Any] = {}
    for path, param in described.items():
        before, after = (np.asarray(dense(tree[path])) for tree in (old, new))
        if before.shape != after.shape:
            raise ValueError(f"extract: {path} is {list(before.shape)} and {list(after.shape)} in the two")
        if np.array_equal(before, after):
            continue
        if param.fill is not None or len(param.shape) - param.stacked < 2:
            values[path] = jnp.asarray(after)
            continue
        updates[path] = nearest(after.astype(np.float32) - before.astype(np.float32), param, rank)
    if spec.tied and "embed" in updates:
        update = updates["embed"]
        updates["head"] = Update(update.b.T, update.a.T)
    return Adapter(updates, values)


def nearest(change: np.ndarray, param: Param, rank: int) -> Update:
    """The update of a weight, or of each in a stack, that is nearest to a change; singular values are shared evenly."""
    s = param.stacked
    end = s + max(param.inputs, 1)
    lead, into, out = change.shape[:s], change.shape[s:end], change.shape[end:]
    left, size, right = np.linalg.svd(change.reshape(*lead, math.prod(into), math.prod(out)), full_matrices=False)
    rank = min(rank, size.shape[-1])
    root = np.sqrt(size[..., :rank])
    a = (left[..., :rank] * root[..., None, :]).reshape(*lead, *into, rank)
    b = (right[..., :rank, :] * root[..., None]).reshape(*lead, rank, *out)
    return Update(jnp.asarray(a), jnp.asarray(b), stacked=s)
